package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import org.apache.spark.api.plugin.PluginContext;

/** Questions to the driver over Spark's own authenticated RPC; calls block, never on a network thread. */
final class DriverLink {
  private final PluginContext plugin;
  private final Counters counters = new Counters();

  DriverLink(PluginContext plugin) {
    this.plugin = plugin;
  }

  Counters counters() {
    return counters;
  }

  private byte[] ask(int question, byte[] body) throws BridgeException {
    byte[] message = new Frame.Builder().u8(question).raw(body).body();
    counters.increment(question == DriverSide.LEASE
        ? Counters.Name.LEASES : Counters.Name.DRIVER_ASKS);
    try {
      return (byte[]) plugin.ask(message);
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      throw new BridgeException(BridgeException.Code.TIMEOUT, "the executor is ending");
    } catch (Exception e) {
      // The RPC layer declares Exception; whatever it was, the driver did not answer.
      throw new BridgeException(BridgeException.Code.TIMEOUT, "the driver does not answer: " + e);
    }
  }

  void hello(String executorId, String description) throws BridgeException {
    ask(DriverSide.HELLO, new Frame.Builder().string(executorId).string(description).body());
  }

  /** The driver's answer as bytes, first of them PENDING, TABLE or REFUSED. */
  byte[] join(Join join) throws BridgeException {
    return ask(DriverSide.JOIN, join.encode());
  }

  /** This joiner asks no more: nobody need wait for it. */
  void withdraw(Join join) throws BridgeException {
    ask(DriverSide.WITHDRAW, join.encode());
  }

  /**
   * Whether a task that found nobody need not be: that is the run's newest generation of residents,
   * all their executors live, and another attempt of the task is at work.
   */
  boolean isSuperfluous(String run, int generation, long task) throws BridgeException {
    return ask(DriverSide.SUPERFLUOUS,
        new Frame.Builder().string(run).u32(generation).u64(task).body())[0] != 0;
  }

  /** What the driver knows of some runs: those that have ended, and the newest generation of others. */
  record Leases(Set<String> ended, Map<String, Integer> newest) {}

  Leases leases(String executorId, Set<String> runs) throws BridgeException {
    Frame.Builder out = new Frame.Builder().string(executorId).u32(runs.size());
    runs.forEach(out::string);
    Frame in = new Frame(0, 0, ByteBuffer.wrap(ask(DriverSide.LEASE, out.body())));
    Set<String> ended = new HashSet<>();
    for (int left = in.body.getInt(); left > 0; left--) {
      ended.add(in.string());
    }
    Map<String, Integer> newest = new HashMap<>();
    for (int left = in.body.getInt(); left > 0; left--) {
      newest.put(in.string(), in.body.getInt());
    }
    return new Leases(ended, newest);
  }
}
