package org.mizzle.bridge;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.Map;
import java.util.function.Function;
import org.apache.spark.SparkEnv;
import org.apache.spark.api.plugin.ExecutorPlugin;
import org.apache.spark.api.plugin.PluginContext;

/** Starts and stops the bridge with its executor. */
public final class ExecutorSide implements ExecutorPlugin {
  /** The one of this JVM: Spark has one executor a process, and its tasks need a static way in. */
  private static volatile Bridge current;

  private final Function<SparkEnv, Peers> peers;
  private Bridge bridge;

  ExecutorSide() {
    this(Peers::new);
  }

  /** {@code peers}: how others are reached. */
  ExecutorSide(Function<SparkEnv, Peers> peers) {
    this.peers = peers;
  }

  /** The bridge of the executor that the calling task runs in, or null when there is none. */
  static Bridge current() {
    return current;
  }

  @Override
  public void init(PluginContext plugin, Map<String, String> extraConf) {
    try {
      bridge = new Bridge(SparkEnv.get(), new DriverLink(plugin), peers.apply(SparkEnv.get()));
      bridge.start();
      current = bridge;
    } catch (IOException e) {
      throw new UncheckedIOException("mizzle's bridge could not start", e);
    }
  }

  @Override
  public void shutdown() {
    if (bridge != null) {
      current = null;
      bridge.close();
    }
  }
}
