package org.mizzle.bridge;

import java.io.IOException;
import java.io.UncheckedIOException;
import java.util.Map;
import org.apache.spark.SparkEnv;
import org.apache.spark.api.plugin.ExecutorPlugin;
import org.apache.spark.api.plugin.PluginContext;

/** Starts and stops the bridge with its executor. */
public final class ExecutorSide implements ExecutorPlugin {
  private Bridge bridge;

  @Override
  public void init(PluginContext plugin, Map<String, String> extraConf) {
    try {
      bridge = new Bridge(SparkEnv.get(), new DriverLink(plugin));
      bridge.start();
    } catch (IOException e) {
      throw new UncheckedIOException("mizzle's bridge could not start", e);
    }
  }

  @Override
  public void shutdown() {
    if (bridge != null) {
      bridge.close();
    }
  }
}
