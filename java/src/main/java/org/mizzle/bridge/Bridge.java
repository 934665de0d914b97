package org.mizzle.bridge;

import java.io.Closeable;
import java.io.IOException;
import java.net.StandardProtocolFamily;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.ClosedChannelException;
import java.nio.channels.ServerSocketChannel;
import java.nio.channels.SocketChannel;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.attribute.PosixFilePermissions;
import java.security.SecureRandom;
import java.util.HexFormat;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ThreadFactory;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.spark.SparkEnv;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * The service in each executor JVM between Python workers and the BlockManager: a Unix socket in a
 * directory that only this user can enter, and a token that only this user can read.
 */
final class Bridge implements Closeable {
  /** Both sides say it in the first frame; other versions are refused. */
  static final int PROTOCOL_VERSION = 1;
  private static final Logger LOG = LoggerFactory.getLogger(Bridge.class);
  private static final long LEASE_PERIOD_MS = 1_000;
  private static final long READY_PERIOD_MS = 20;

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
  private final ExecutorService workers = Executors.newCachedThreadPool(daemon("mizzle-session"));
  private final ScheduledExecutorService timer =
      Executors.newSingleThreadScheduledExecutor(daemon("mizzle-timer"));
  /** Removes blocks and asks for leases: may block, so nobody else uses it. */
  private final ScheduledExecutorService janitor =
      Executors.newSingleThreadScheduledExecutor(daemon("mizzle-janitor"));

  Bridge(SparkEnv env, DriverLink driver) throws IOException {
    this.driver = driver;
    blocks = new Blocks(env);
    peers = new Peers(env);
    counters = driver.counters();
    runs = new Runs(blocks, counters, janitor);
    new SecureRandom().nextBytes(token);
    hostId = hostId();
    directory = Files.createTempDirectory("mizzle-",
        PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rwx------")));
    server = ServerSocketChannel.open(StandardProtocolFamily.UNIX);
    card = blocks.localDirectory().toPath().resolve("mizzle.bridge");
  }

  /** Opens the socket, tells the workers where it is and the driver that it is there. */
  void start() throws IOException {
    Path socket = directory.resolve("s");
    server.bind(UnixDomainSocketAddress.of(socket));
    Files.deleteIfExists(card);
    Files.createFile(card,
        PosixFilePermissions.asFileAttribute(PosixFilePermissions.fromString("rw-------")));
    Files.writeString(card, socket + "\n" + HexFormat.of().formatHex(token) + "\n");
    workers.execute(this::acceptAll);
    janitor.execute(this::hello);
    janitor.scheduleWithFixedDelay(
        this::renewLeases, LEASE_PERIOD_MS, LEASE_PERIOD_MS, TimeUnit.MILLISECONDS);
  }

  private void acceptAll() {
    try {
      while (true) {
        SocketChannel channel = server.accept();
        workers.execute(new Session(this, channel));
      }
    } catch (ClosedChannelException e) {
      LOG.debug("mizzle's bridge stops");
    } catch (IOException e) {
      LOG.error("mizzle's bridge cannot accept workers any more", e);
    }
  }

  private void hello() {
    if (!blocks.isReady()) {
      janitor.schedule(this::hello, READY_PERIOD_MS, TimeUnit.MILLISECONDS);
      return;
    }
    try {
      driver.hello(blocks.executorId(), "host=" + blocks.host() + " port=" + blocks.port()
          + " pid=" + ProcessHandle.current().pid() + " host_id=" + hostId);
    } catch (BridgeException e) {
      LOG.warn("mizzle's bridge could not report to the driver", e);
    }
  }

  private void renewLeases() {
    try {
      if (!runs.names().isEmpty()) {
        driver.ended(runs.names()).forEach(runs::forget);
      }
    } catch (BridgeException e) {
      LOG.warn("mizzle's bridge could not renew its leases", e);
    }
  }

  /** Same for processes that see each other's /proc: one boot, one process namespace. */
  private static String hostId() throws IOException {
    Path boot = Path.of("/proc/sys/kernel/random/boot_id");
    Path namespace = Path.of("/proc/self/ns/pid");
    if (!Files.exists(boot) || !Files.exists(namespace)) {
      return "no-proc-" + ProcessHandle.current().pid();
    }
    return Files.readString(boot).trim() + "/" + Files.readSymbolicLink(namespace);
  }

  private static ThreadFactory daemon(String name) {
    AtomicInteger count = new AtomicInteger();
    return task -> {
      Thread thread = new Thread(task, name + "-" + count.getAndIncrement());
      thread.setDaemon(true);
      return thread;
    };
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

  Counters counters() {
    return counters;
  }

  Runs runs() {
    return runs;
  }

  ExecutorService workers() {
    return workers;
  }

  ScheduledExecutorService timer() {
    return timer;
  }

  byte[] token() {
    return token;
  }

  String identity() {
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
    workers.shutdownNow();
    timer.shutdownNow();
    runs.names().forEach(runs::forget);
    janitor.shutdown();
    peers.close();
  }
}
