package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

import java.io.IOException;
import java.io.RandomAccessFile;
import java.nio.ByteBuffer;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;

final class RegionTest {
  /** Memory that a Python process holds meanwhile: its path under /proc, 4096 bytes. */
  private static final Path MEMFD = Path.of(System.getProperty("memfd"));
  private final Path directory = Files.createTempDirectory("region");

  RegionTest() throws IOException {}

  private Path file(long size) throws IOException {
    Path path = directory.resolve("r" + size);
    try (RandomAccessFile file = new RandomAccessFile(path.toFile(), "rw")) {
      file.setLength(size);
    }
    return path;
  }

  void aRangeMayCrossWindows() throws IOException, BridgeException {
    long size = Region.WINDOW_BYTES + 100;
    Region region = Region.open(0, "r", file(size), size);
    List<ByteBuffer> parts = region.range(Region.WINDOW_BYTES - 10, 30);
    equal(2, parts.size());
    equal(10, parts.get(0).remaining());
    equal(20, parts.get(1).remaining());
    equal(0, region.range(5, 0).size());
    region.release();
  }

  void aRangeOutsideIsRefused() throws IOException {
    Region region = Region.open(0, "r", file(100), 100);
    long[][] ranges = {{-1, 1}, {0, 101}, {100, 1}, {1, Long.MAX_VALUE}, {Long.MAX_VALUE, 1}, {0, -1}};
    for (long[] range : ranges) {
      equal(BridgeException.Code.REFUSED,
          fails(BridgeException.class, () -> region.range(range[0], range[1])).code);
    }
    region.release();
  }

  void itStaysMappedUntilItsLastUserIsDone() throws IOException, BridgeException {
    Path path = file(100);
    Region region = Region.open(0, "r", path, 100);
    region.acquire();
    region.release();
    region.write(96, new byte[] {1, 2, 3, 4});
    region.write(97, new byte[] {9, 9, 9, 9});
    equal(4, (int) region.range(99, 1).get(0).get());
    check(Files.exists(path), "held");
    region.release();
    check(!Files.exists(path), "a file is removed with its region");
    fails(BridgeException.class, region::acquire);
    region.write(0, new byte[4]);
  }

  void aFileThatCannotBeRemovedDoesNotFailItsLastUser() throws IOException {
    Path path = file(100);
    long before = open();
    Region region = Region.open(0, "r", path, 100);
    Files.delete(path);
    Files.createFile(Files.createDirectory(path).resolve("x"));
    region.release();
    equal(before, open());
  }

  void impossibleSizesAreRefusedAndNothingStaysOpen() throws IOException {
    Path path = file(100);
    long before = open();
    for (long size : new long[] {101, 0, -1}) {
      fails(IOException.class, () -> Region.open(0, "r", path, size));
    }
    equal(before, open());
  }

  void aMemfdIsTakenOverUnderAPathOfThisProcess() throws IOException, BridgeException {
    check(Region.isMemory(MEMFD, directory), "a memfd of mizzle's");
    long before = open();
    Region region = Region.open(0, "r", MEMFD, 4096);
    check(region.path.startsWith("/proc/" + ProcessHandle.current().pid() + "/fd"), "lasting");
    region.write(0, new byte[] {42});
    Region again = Region.open(1, "r", region.path, 4096);
    equal(42, (int) again.range(0, 1).get(0).get());
    region.release();
    again.release();
    equal(before, open());
  }

  /** How many descriptors of regions are open. */
  private static long open() throws IOException {
    long count = 0;
    try (var descriptors = Files.newDirectoryStream(Path.of("/proc/self/fd"))) {
      for (Path fd : descriptors) {
        String target = Files.readSymbolicLink(fd).toString();
        count += target.contains("memfd:") || target.contains("/region") ? 1 : 0;
      }
    }
    return count;
  }

  void nothingElseOfTheFileSystemIsMemory() throws IOException {
    Path other = file(10);
    Files.createSymbolicLink(directory.resolve("link"), Path.of("/etc/passwd"));
    check(Region.isMemory(other, directory), "a file of the directory");
    String[] refused = {
      "/etc/passwd", "/proc/self/mem", "/proc/1/../../etc/passwd", "/proc/self/fd/0",
      "/proc/" + ProcessHandle.current().pid() + "/fd/0", "/proc/999999999/fd/1",
      "/proc/" + ProcessHandle.current().pid() + "/root/etc/passwd",
      directory + "/../x", directory + "/a/b", directory + "/link", directory.toString(), "", "x"
    };
    for (String path : refused) {
      check(!Region.isMemory(Path.of(path), directory), path);
    }
  }

  void anArenaIsHeldByOneSessionAndReplacesRegionsByName() throws IOException, BridgeException {
    Arena arena = new Arena("r");
    check(arena.claim("a"), "free");
    check(!arena.claim("b"), "held");
    arena.unclaim("b");
    check(!arena.claim("b"), "still held");
    arena.unclaim("a");
    check(arena.claim("b"), "free again");
    Region first = arena.add("w", file(10), 10);
    Region held = arena.acquire(first.number);
    Region second = arena.add("w", file(20), 20);
    check(first.number != second.number, "another number");
    fails(BridgeException.class, () -> arena.acquire(first.number));
    equal(1, held.range(0, 1).size());
    held.release();
    arena.close();
    equal(BridgeException.Code.FENCED,
        fails(BridgeException.class, () -> arena.add("w", file(30), 30)).code);
  }

  void aMemberNotesTheFirstLossAndNothingAfterItLeft() throws IOException, BridgeException {
    Arena arena = new Arena("r");
    Region control = arena.add("control", file(4000), 4000);
    var timer = Threads.scheduler("timer");
    Member member = new Member(new Group("r", 0, 0), 3, 1, arena, null, timer);
    member.lost(1, "why");
    member.lost(2, "later");
    ByteBuffer bytes = control.range(0, 4000).get(0);
    equal(2, (int) bytes.get(8));
    equal((int) 'w', (int) bytes.get(1092));
    Member other = new Member(new Group("r", 0, 0), 3, 1, arena, null, timer);
    bytes.put(8, (byte) 0);
    boolean[] unwatched = new boolean[2];
    other.connected(1, null, () -> unwatched[0] = true);
    other.leave(new BridgeException(BridgeException.Code.FENCED, "left"));
    other.connected(2, null, () -> unwatched[1] = true);
    other.lost(1, "why");
    equal(0, (int) bytes.get(8));
    check(unwatched[0] && unwatched[1], "connections are not watched any more");
    timer.shutdownNow();
    arena.close();
  }
}
