package org.mizzle.bridge;

import com.sun.management.OperatingSystemMXBean;
import java.lang.management.ManagementFactory;
import java.nio.ByteBuffer;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.atomic.LongAdder;
import org.apache.spark.SparkContext;
import org.apache.spark.api.plugin.DriverPlugin;
import org.apache.spark.api.plugin.PluginContext;
import org.apache.spark.scheduler.SparkListener;
import org.apache.spark.scheduler.SparkListenerExecutorRemoved;
import org.apache.spark.scheduler.SparkListenerTaskEnd;
import org.apache.spark.scheduler.SparkListenerTaskStart;

/**
 * The driver's half of the plugin: answers admission and lease questions of the bridges, and is
 * called by mizzle's Python driver through py4j ({@link #current}). Never on the path of an
 * iteration, and no tensor ever comes here.
 */
public final class DriverSide implements DriverPlugin {
  /** Questions a bridge may ask; the first byte of a message. */
  static final int HELLO = 1;
  static final int JOIN = 2;
  static final int LEASE = 3;
  static final int WITHDRAW = 4;
  static final int SUPERFLUOUS = 5;

  private static final long LOOK_PERIOD_MS = 500;

  /** The one of this application: SparkContext is a singleton, and py4j needs a static way in. */
  private static volatile DriverSide current;

  private final Rendezvous rendezvous = new Rendezvous(DriverSide::nowMs);
  private Roster roster = new Roster(new Pulse(DriverSide::nowMs, Long.MAX_VALUE));
  private SparkContext context;
  private final Replacements replacements =
      new Replacements(executorId -> Replacements.begin(context, executorId), Replacements.PAUSE_MS);
  private final Attempts attempts = new Attempts();
  private final LongAdder messages = new LongAdder();
  private final LongAdder leases = new LongAdder();
  /** Looks who is silent, and has them replaced; so {@link Pulse} knows its own pauses. */
  private final ScheduledExecutorService watch = Threads.scheduler("mizzle-watch");
  private final Exposure exposure = new Exposure();

  /** The driver's half of the running application, or null when the plugin was not loaded. */
  public static DriverSide current() {
    return current;
  }

  @Override
  public Map<String, String> init(SparkContext context, PluginContext plugin) {
    this.context = context;
    roster = new Roster(new Pulse(DriverSide::nowMs, Lease.verdictMs(context.conf())));
    Threads.repeat(watch, LOOK_PERIOD_MS, () -> roster.hungDuringRuns().forEach(this::replace));
    current = this;
    context.addSparkListener(listener());
    return Map.of();
  }

  /** Hears from Spark which executors are gone, and which attempts of tasks run. */
  SparkListener listener() {
    return new SparkListener() {
      @Override
      public void onExecutorRemoved(SparkListenerExecutorRemoved removed) {
        roster.removed(removed.executorId(), removed.reason());
      }

      @Override
      public void onTaskStart(SparkListenerTaskStart start) {
        attempts.begin(start.taskInfo().taskId(), start.stageId(), start.taskInfo().index());
      }

      @Override
      public void onTaskEnd(SparkListenerTaskEnd end) {
        attempts.end(end.taskInfo().taskId());
      }
    };
  }

  @Override
  public Object receive(Object message) {
    ByteBuffer bytes = ByteBuffer.wrap((byte[]) message);
    int question = bytes.get();
    (question == LEASE ? leases : messages).increment();
    ByteBuffer body = bytes.slice();
    switch (question) {
      case HELLO:
        Frame hello = new Frame(question, 0, body);
        roster.hello(hello.string(), hello.string());
        return new byte[0];
      case JOIN:
        return rendezvous.join(Join.decode(body));
      case WITHDRAW:
        rendezvous.withdraw(Join.decode(body));
        return new byte[0];
      case LEASE:
        return lease(new Frame(question, 0, body));
      case SUPERFLUOUS:
        return superfluous(new Frame(question, 0, body));
      default:
        throw new IllegalArgumentException("no question number " + question);
    }
  }

  static long nowMs() {
    return System.nanoTime() / 1_000_000;
  }

  private byte[] superfluous(Frame in) {
    String run = in.string();
    int generation = in.body.getInt();
    boolean othersWork = attempts.park(in.body.getLong());
    return new byte[] {(byte) (othersWork && roster.isWhole(run, generation) ? 1 : 0)};
  }

  private byte[] lease(Frame in) {
    roster.heard(in.string());
    Set<String> asked = new HashSet<>();
    for (int left = in.body.getInt(); left > 0; left--) {
      asked.add(in.string());
    }
    Set<String> ended = rendezvous.ended(asked);
    Frame.Builder out = new Frame.Builder().u32(ended.size());
    ended.forEach(out::string);
    Map<String, Integer> newest = rendezvous.newest(asked);
    out.u32(newest.size());
    newest.forEach((run, generation) -> out.string(run).u32(generation));
    return out.body();
  }

  /** From now on ranks of this run are admitted. */
  public void begin(String run) {
    rendezvous.begin(run);
  }

  /** Within a second every bridge drops all that it holds of this run. */
  public void end(String run) {
    rendezvous.end(run);
    roster.end(run);
  }

  Roster roster() {
    return roster;
  }

  Replacements replacements() {
    return replacements;
  }

  /** Has Spark end an executor that hangs or cannot be reached, and start another one in its place; returns at once. */
  public void replace(String executorId) {
    replacements.ask(executorId);
  }

  /** "Executor id TAB description" of each living executor that is not silent, told to leave, or being replaced. */
  public String[] bridges() {
    return roster.lines(this::isLeaving);
  }

  private boolean isLeaving(String executorId) {
    return replacements.isAsked(executorId) || (context != null
        && context.taskScheduler().getExecutorDecommissionState(executorId).isDefined());
  }

  /** What Spark said when it removed an executor; empty: it has not. */
  public String whyRemoved(String executorId) {
    return roster.whyRemoved(executorId);
  }

  public Exposure exposure() {
    return exposure;
  }

  /** How many questions the bridges have asked so far, those for leases left out. */
  public long messages() {
    return messages.sum();
  }

  /** How often the bridges have asked which runs have ended: once a second each. */
  public long leases() {
    return leases.sum();
  }

  /** CPU time of the driver's JVM so far, in nanoseconds; -1 where the platform does not tell. */
  public long cpuNs() {
    return ManagementFactory.getOperatingSystemMXBean() instanceof OperatingSystemMXBean system
        ? system.getProcessCpuTime() : -1;
  }

  @Override
  public void shutdown() {
    current = null;
    watch.shutdownNow();
  }
}
