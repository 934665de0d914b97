package org.mizzle.bridge;

import java.io.Closeable;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * Asks the driver again and again which runs have ended, or have come to another generation, and
 * lets go of all that this executor holds of them; so the driver hears that the executor is not
 * hung. Before that it tells the driver that the bridge is there. It has the one thread that waits
 * for the driver's answers, another that sees to it that nothing goes on when none come, and a third
 * that removes what ended runs have left.
 */
final class Leases implements Closeable {
  private static final Logger LOG = LoggerFactory.getLogger(Leases.class);
  private static final long READY_PERIOD_MS = 20;
  private static final long HELLO_PERIOD_MS = 1_000;
  private static final long LOOK_PERIOD_MS = 250;

  /** Something that the driver is told. */
  interface Report {
    void send() throws BridgeException;
  }

  private final Bridge bridge;
  private final ShardFolders folders;
  private final Lease lease;
  private final ScheduledExecutorService thread = Threads.scheduler("mizzle-leases");
  /** Never waits for the driver, nor for anybody else. */
  private final ScheduledExecutorService guard = Threads.scheduler("mizzle-lease-guard");
  private final ScheduledExecutorService cleaner = Threads.scheduler("mizzle-lease-cleaner");
  private final LeaseAnswers answers;
  /** As the cleaner saw them: a disk that is slow must not hold up a question. */
  private volatile Set<String> runsWithFolders = Set.of();
  /** Whether the lease was over when it was looked at last; guarded by this. */
  private boolean wasOver;

  Leases(Bridge bridge, ShardFolders folders, Lease lease) {
    this.bridge = bridge;
    this.folders = folders;
    this.lease = lease;
    answers = new LeaseAnswers(bridge.runs(), folders, lease, cleaner);
  }

  void start(long periodMs) {
    thread.execute(this::hello);
    Threads.repeat(cleaner, periodMs, () -> runsWithFolders = folders.runs());
    Threads.repeat(thread, periodMs, this::renew);
    Threads.repeat(guard, LOOK_PERIOD_MS, this::look);
  }

  /** Out of turn; returns at once, {@link Hires#leasesAreFresh} is called in any case. */
  void renewNow() {
    thread.execute(() -> {
      try {
        renew();
      } finally {
        bridge.residents().hires().leasesAreFresh();
      }
    });
  }

  private void hello() {
    Blocks blocks = bridge.blocks();
    if (!blocks.isReady()) {
      thread.schedule(this::hello, READY_PERIOD_MS, TimeUnit.MILLISECONDS);
      return;
    }
    String description = "host=" + blocks.host() + " port=" + blocks.port()
        + " pid=" + ProcessHandle.current().pid() + " host_id=" + bridge.hostId()
        + " listens=" + String.join(",", Listening.on(blocks.port()));
    tell(thread, HELLO_PERIOD_MS, () -> bridge.driver().hello(blocks.executorId(), description));
  }

  /** Again and again, until the driver has heard it: who never reports is nowhere for a rank. */
  static void tell(ScheduledExecutorService thread, long periodMs, Report report) {
    try {
      report.send();
    } catch (BridgeException | RuntimeException e) {
      LOG.warn("mizzle's bridge could not report to the driver; it will try again", e);
      if (!thread.isShutdown()) {
        thread.schedule(() -> tell(thread, periodMs, report), periodMs, TimeUnit.MILLISECONDS);
      }
    }
  }

  private void renew() {
    if (!bridge.blocks().isReady()) {
      return;
    }
    try {
      Set<String> known = new TreeSet<>(bridge.runs().names());
      known.addAll(runsWithFolders);
      known.addAll(bridge.residents().runs());
      // Also when there is nothing to ask about: whoever says nothing counts as hung.
      boolean late;
      do {
        // In this order: whoever was frozen in between has asked before.
        long askedMs = lease.now();
        look();
        answers.take(bridge.driver().leases(bridge.blocks().executorId(), known), askedMs,
            bridge.residents());
        // An answer that took so long renews nothing.
        late = lease.isOver();
      } while (late);
    } catch (BridgeException e) {
      LOG.warn("mizzle's bridge could not renew its leases", e);
    }
  }

  /**
   * Once the lease is over nothing of any run goes on here, until a later generation of it. Called
   * by the guard, and before each renewal: whose lease was over has ended all before it is renewed.
   */
  private synchronized void look() {
    boolean isOver = lease.isOver();
    if (isOver != wasOver) {
      LOG.warn(isOver
          ? "the driver is out of reach: mizzle's bridge ends what its ranks are about"
          : "the driver answers mizzle's bridge again");
      bridge.counters().add(Counters.Name.LEASES_LOST, isOver ? 1 : 0);
      wasOver = isOver;
    }
    if (isOver) {
      bridge.runs().isolate();
      bridge.residents().runs().forEach(bridge.residents()::end);
    }
  }

  @Override
  public void close() {
    thread.shutdownNow();
    guard.shutdownNow();
    cleaner.shutdownNow();
  }
}
