package org.mizzle.bridge;

import java.io.IOException;
import java.net.InetAddress;
import java.net.UnknownHostException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Collection;
import java.util.HexFormat;
import java.util.TreeSet;

/**
 * Where a port of this machine can be reached, as the kernel has it: what a setting says is not
 * always what was bound.
 */
final class Listening {
  private static final String LISTEN = "0A";
  private static final int WORD_BYTES = 4;

  private Listening() {}

  /** Addresses that a port is listened on; none where the system does not tell. */
  static Collection<String> on(int port) {
    StringBuilder table = new StringBuilder();
    for (String name : new String[] {"/proc/self/net/tcp", "/proc/self/net/tcp6"}) {
      try {
        table.append(Files.readString(Path.of(name), StandardCharsets.US_ASCII));
      } catch (IOException e) {
        // No such table here: then it has no line either.
        continue;
      }
    }
    return in(table.toString(), port);
  }

  /** The same, from lines of these tables. */
  static Collection<String> in(String table, int port) {
    TreeSet<String> found = new TreeSet<>();
    for (String line : table.lines().toList()) {
      String[] fields = line.trim().split("\\s+");
      int colon = fields.length > 3 ? fields[1].indexOf(':') : -1;
      if (colon > 0 && fields[3].equals(LISTEN)
          && Integer.parseInt(fields[1].substring(colon + 1), 16) == port) {
        found.add(decode(fields[1].substring(0, colon)));
      }
    }
    return found;
  }

  /** An address as the kernel prints it: words of four bytes, each in little-endian order. */
  private static String decode(String hex) {
    byte[] raw = HexFormat.of().parseHex(hex);
    for (int word = 0; word < raw.length; word += WORD_BYTES) {
      for (int i = 0; i < WORD_BYTES / 2; i++) {
        byte swapped = raw[word + i];
        raw[word + i] = raw[word + WORD_BYTES - 1 - i];
        raw[word + WORD_BYTES - 1 - i] = swapped;
      }
    }
    try {
      return InetAddress.getByAddress(raw).getHostAddress();
    } catch (UnknownHostException e) {
      throw new IllegalStateException("neither 4 nor 16 bytes: " + hex, e);
    }
  }
}
