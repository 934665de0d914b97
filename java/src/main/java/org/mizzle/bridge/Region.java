package org.mizzle.bridge;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.FileChannel;
import java.nio.file.DirectoryStream;
import java.nio.file.Files;
import java.nio.file.Path;
import java.nio.file.StandardOpenOption;
import java.util.ArrayList;
import java.util.List;
import org.apache.spark.storage.StorageUtils;

/**
 * A named piece of an arena: memory made by a Python worker (a memfd, or a file where there is
 * none), kept alive and mapped here. It is unmapped when it was closed and the last user has
 * released it, never earlier: a network thread may still be reading.
 */
final class Region {
  /** ByteBuffers end at 2 GiB, so a region is mapped in windows. */
  private static final long WINDOW_BYTES = 1L << 30;

  final int id;
  final String name;
  final long size;
  /** Under which other processes of this user can open the same memory. */
  final Path path;
  private final FileChannel channel;
  private final List<ByteBuffer> windows = new ArrayList<>();
  /** Users plus one for being open; guarded by this. */
  private int references = 1;

  Region(int id, String name, Path source, long size) throws IOException {
    this.id = id;
    this.name = name;
    this.size = size;
    String target = Files.isSymbolicLink(source) ? Files.readSymbolicLink(source).toString() : "";
    channel = FileChannel.open(source, StandardOpenOption.READ, StandardOpenOption.WRITE);
    if (channel.size() < size) {
      long actual = channel.size();
      channel.close();
      throw new IOException(source + " has " + actual + " bytes, expected " + size);
    }
    path = target.startsWith("/memfd:") ? ownDescriptor(target) : source;
    for (long at = 0; at < size; at += WINDOW_BYTES) {
      long length = Math.min(WINDOW_BYTES, size - at);
      windows.add(channel.map(FileChannel.MapMode.READ_WRITE, at, length));
    }
  }

  /** The path of this process' own descriptor for the memfd; its name carries a nonce. */
  private static Path ownDescriptor(String target) throws IOException {
    Path descriptors = Path.of("/proc/self/fd");
    try (DirectoryStream<Path> all = Files.newDirectoryStream(descriptors)) {
      for (Path fd : all) {
        if (Files.isSymbolicLink(fd) && target.equals(Files.readSymbolicLink(fd).toString())) {
          return Path.of("/proc/" + ProcessHandle.current().pid() + "/fd/" + fd.getFileName());
        }
      }
    }
    throw new IOException("no descriptor for " + target);
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

  /** Writes one little-endian number where a worker watches for it. */
  synchronized void write(int offset, int value) {
    if (references > 0) {
      windows.get(0).putInt(offset, Integer.reverseBytes(value));
    }
  }

  synchronized void acquire() throws BridgeException {
    if (references == 0) {
      throw new BridgeException(BridgeException.Code.ARENA, "region " + name + " was closed");
    }
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
      } catch (IOException e) {
        throw new java.io.UncheckedIOException(e);
      }
    }
  }
}
