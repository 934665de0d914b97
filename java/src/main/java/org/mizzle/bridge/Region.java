package org.mizzle.bridge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.NoSuchFileException;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Pattern;
import org.apache.spark.storage.StorageUtils;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/**
 * A named piece of an arena: memory made by a Python worker (a memfd, or a file where there is
 * none), kept alive and mapped here. It is unmapped when it was closed and the last user has
 * released it, never earlier: a network thread may still be reading.
 */
final class Region {
  /** ByteBuffers end at 2 GiB, so a region is mapped in windows. */
  static final long WINDOW_BYTES = 1L << 30;
  private static final Pattern DESCRIPTOR = Pattern.compile("/proc/\\d+/fd/\\d+");
  private static final String MEMFD = "/memfd:mizzle-";
  private static final Logger LOG = LoggerFactory.getLogger(Region.class);

  final int number;
  final String name;
  final long size;
  /** Under which other processes of this user can open the same memory. */
  final Path path;
  private final FileChannel channel;
  private final List<ByteBuffer> windows = new ArrayList<>();
  /** Users plus one for being open; guarded by this. */
  private int references = 1;

  private Region(int number, String name, FileChannel channel, Path path, long size) {
    this.number = number;
    this.name = name;
    this.channel = channel;
    this.path = path;
    this.size = size;
  }

  /** Opens and maps memory that a worker holds meanwhile; afterwards the worker may let go. */
  static Region open(int number, String name, Path source, long size) throws IOException {
    String target = Files.isSymbolicLink(source) ? Files.readSymbolicLink(source).toString() : "";
    FileChannel channel =
        FileChannel.open(source, StandardOpenOption.READ, StandardOpenOption.WRITE);
    Region region = null;
    try {
      if (size <= 0 || channel.size() < size) {
        throw new IOException(source + " has " + channel.size() + " bytes, expected " + size);
      }
      Path lasting = target.startsWith(MEMFD) ? ownDescriptor(target) : source;
      Region opened = new Region(number, name, channel, lasting, size);
      opened.map();
      region = opened;
      return region;
    } finally {
      if (region == null) {
        channel.close();
      }
    }
  }

  private void map() throws IOException {
    boolean whole = false;
    try {
      for (long at = 0; at < size; at += WINDOW_BYTES) {
        long length = Math.min(WINDOW_BYTES, size - at);
        windows.add(channel.map(FileChannel.MapMode.READ_WRITE, at, length));
      }
      whole = true;
    } finally {
      if (!whole) {
        windows.forEach(StorageUtils::dispose);
      }
    }
  }

  /**
   * Whether a worker may hand this in: one of its memfds, by descriptor, or a file directly in the
   * bridge's own directory. Nothing else of the file system is ever opened.
   */
  static boolean isMemory(Path source, Path directory) {
    try {
      if (DESCRIPTOR.matcher(source.toString()).matches()) {
        return Files.readSymbolicLink(source).toString().startsWith(MEMFD);
      }
      return directory.equals(source.getParent()) && source.equals(source.normalize())
          && !Files.isSymbolicLink(source);
    } catch (IOException e) {
      return false;
    }
  }

  /** The path of this process' own descriptor for the memfd; its name carries a nonce. */
  private static Path ownDescriptor(String target) throws IOException {
    try (DirectoryStream<Path> all = Files.newDirectoryStream(Path.of("/proc/self/fd"))) {
      for (Path fd : all) {
        if (target.equals(linkOf(fd))) {
          return Path.of("/proc/" + ProcessHandle.current().pid() + "/fd/" + fd.getFileName());
        }
      }
    }
    throw new IOException("no descriptor for " + target);
  }

  /** Where a descriptor leads, or null when another thread has closed it meanwhile. */
  private static String linkOf(Path fd) throws IOException {
    try {
      return Files.readSymbolicLink(fd).toString();
    } catch (NoSuchFileException e) {
      return null;
    }
  }

  /** Buffers over [offset, offset + length), not copied; the caller holds a reference. */
  List<ByteBuffer> range(long offset, long length) throws BridgeException {
    if (offset < 0 || length < 0 || offset > size - length) {
      throw new BridgeException(BridgeException.Code.REFUSED, "range [" + offset + ", +" + length
          + ") is outside region " + name + " of " + size + " bytes");
    }
    List<ByteBuffer> parts = new ArrayList<>();
    long at = offset;
    while (at < offset + length) {
      ByteBuffer window = windows.get((int) (at / WINDOW_BYTES));
      int from = (int) (at % WINDOW_BYTES);
      int count = (int) Math.min(window.capacity() - from, offset + length - at);
      parts.add(window.slice(from, count));
      at += count;
    }
    return parts;
  }

  /** Writes a few bytes where a worker looks for them; not at all where they do not fit. */
  synchronized void write(int offset, byte[] bytes) {
    if (references > 0 && offset + bytes.length <= size) {
      windows.get(0).put(offset, bytes);
    }
  }

  synchronized void acquire() throws BridgeException {
    if (references == 0) {
      throw new BridgeException(BridgeException.Code.ARENA, "region " + name + " was closed");
    }
    references++;
  }

  /** One more use, by who knows that there is one already. */
  synchronized void retain() {
    references++;
  }

  /** Ends one use; the last one unmaps. Also called once to close the region itself. */
  synchronized void release() {
    references--;
    if (references == 0) {
      windows.forEach(StorageUtils::dispose);
      windows.clear();
      try {
        channel.close();
        if (!path.startsWith("/proc")) {
          Files.deleteIfExists(path);
        }
      } catch (IOException e) {
        // Whoever is done with the memory could do nothing about it.
        LOG.warn("mizzle left something behind of region {} at {}", name, path, e);
      }
    }
  }
}
