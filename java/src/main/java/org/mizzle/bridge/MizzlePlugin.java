package org.mizzle.bridge;

import java.util.Objects;
import org.apache.spark.api.plugin.DriverPlugin;
import org.apache.spark.api.plugin.ExecutorPlugin;
import org.apache.spark.api.plugin.SparkPlugin;

/** What {@code spark.plugins} names: starts a bridge in every executor. */
public final class MizzlePlugin implements SparkPlugin {
  /** Of mizzle, as the jar's manifest has it; empty: unknown. Workers of others refuse to go on. */
  static final String RELEASE =
      Objects.requireNonNullElse(MizzlePlugin.class.getPackage().getImplementationVersion(), "");

  @Override
  public DriverPlugin driverPlugin() {
    return new DriverSide();
  }

  @Override
  public ExecutorPlugin executorPlugin() {
    return new ExecutorSide();
  }
}
