package org.mizzle.bridge;

import java.io.Closeable;
import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.ServerSocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.SecureRandom;
import java.util.HexFormat;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import org.apache.spark.SparkEnv;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The service in each executor JVM between Python workers and the BlockManager: a Unix socket in a
 * directory that only this user can enter, and a token that only this user can read.
 */
final class Bridge implements Closeable {
  /** Both sides say it in the first frame; other versions are refused. */
  static final int PROTOCOL_VERSION = 2;
  private static final Logger LOG = LoggerFactory.getLogger(Bridge.class);
  /** How long a process without a run is kept for the next one. */
  private static final String RESIDENT_IDLE = "spark.mizzle.residentIdle";
  private static final long RESIDENT_GRACE_MS = 5_000;
  /** Workers that may be waiting to be accepted; a group's tasks all come at once. */
  private static final int BACKLOG = 1024;

  private final Blocks blocks;
  private final Peers peers;
  private final DriverLink driver;
  private final Counters counters;
  private final Runs runs;
  private final byte[] token = new byte[32];
  private final String hostId;
  private final Path directory;
  private final Path card;
  private final ServerSocketChannel server;
  private final ExecutorService workers = Executors.newCachedThreadPool(Threads.daemon("mizzle-session"));
  /** Ends waits at their deadlines: what it runs never blocks. */
  private final ScheduledExecutorService timer = Threads.scheduler("mizzle-timer");
  /** Removes blocks: never blocks. */
  private final ScheduledExecutorService janitor = Threads.scheduler("mizzle-janitor");
  private final Leases leases;
  private final Residents residents;
  private final GroupOrders groupOrders;
  private final Removals removals;
  private final long leasePeriodMs;
  private final long leaseMs;

  Bridge(SparkEnv env, DriverLink driver, Peers peers) throws IOException {
    this.driver = driver;
    blocks = new Blocks(env);
    this.peers = peers;
    counters = driver.counters();
    removals = new Removals(blocks::remove, janitor);
    new SecureRandom().nextBytes(token);
    leasePeriodMs = Lease.periodMs(env.conf());
    leaseMs = Lease.limitMs(env.conf());
    Lease lease = new Lease(DriverSide::nowMs, leaseMs);
    runs = new Runs(counters, lease);
    hostId = Host.id();
    directory = Files.createTempDirectory("mizzle-",
        PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------")));
    server = ServerSocketChannel.open(StandardProtocolFamily.UNIX);
    leases = new Leases(this, new ShardFolders(blocks.localDirectories()), lease);
    residents = new Residents(timer, env.conf().getTimeAsMs(RESIDENT_IDLE, "60s"),
        RESIDENT_GRACE_MS, leases::renewNow);
    groupOrders = new GroupOrders(residents, this::abort);
    card = blocks.localDirectories()[0].toPath().resolve("mizzle.bridge");
  }

  /** Opens the socket, tells the workers where it is and the driver that it is there. */
  void start() throws IOException {
    Path socket = directory.resolve("s");
    server.bind(UnixDomainSocketAddress.of(socket), BACKLOG);
    Files.deleteIfExists(card);
    Files.createFile(card,
        PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------")));
    Files.writeString(card, socket + "\n" + HexFormat.of().formatHex(token) + "\n" + leaseMs + "\n");
    workers.execute(
        new Reception(server, workers, channel -> new Session(this, channel)));
    leases.start(leasePeriodMs);
  }

  /**
   * A resident is to end within its group, and its peers with it. Not on the caller's thread, which
   * is a task's: Spark would count the lock that pins the reason's block as the task's, and drop it.
   */
  private void abort(String run, int generation, int rank, String why) {
    timer.execute(() -> {
      Member member = runs.member(run, generation, rank);
      if (member != null) {
        new Farewell(peers, member).abort(why);
        member.halt();
      }
    });
  }

  Blocks blocks() {
    return blocks;
  }

  Peers peers() {
    return peers;
  }

  DriverLink driver() {
    return driver;
  }

  /** How many blocks this executor holds whose name begins so. */
  long countBlocks(String prefix) {
    return blocks.count(prefix) + runs.countBlocks(prefix);
  }

  Counters counters() {
    return counters;
  }

  Runs runs() {
    return runs;
  }

  Residents residents() {
    return residents;
  }

  GroupOrders groupOrders() {
    return groupOrders;
  }

  Removals removals() {
    return removals;
  }

  ScheduledExecutorService timer() {
    return timer;
  }

  byte[] token() {
    return token;
  }

  String hostId() {
    return hostId;
  }

  Path directory() {
    return directory;
  }

  @Override
  public void close() {
    try {
      server.close();
      Files.deleteIfExists(card);
      Files.deleteIfExists(directory.resolve("s"));
      Files.deleteIfExists(directory);
    } catch (IOException e) {
      LOG.warn("mizzle's bridge left its socket behind in {}", directory, e);
    }
    leases.close();
    workers.shutdownNow();
    timer.shutdownNow();
    runs.names().forEach(runs::forget);
    janitor.shutdown();
    peers.close();
  }
}
