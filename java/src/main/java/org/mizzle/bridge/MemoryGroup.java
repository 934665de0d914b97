package org.mizzle.bridge;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.function.LongUnaryOperator;

/**
 * What the kernel tells of a process's memory: the limits of its control group and of those above
 * it, and how often it killed there because memory had run out. Control groups of version 1 or 2,
 * hierarchical as both are today. What cannot be read is not known, and never an error.
 */
final class MemoryGroup {
  /** No count, or no number. */
  private static final long UNKNOWN = -1;
  /** A limit above this is none: version 1 writes a huge number. */
  private static final long UNLIMITED = 1L << 60;
  private static final long MIB = 1L << 20;

  private final Path proc;
  /** Where the groups of this controller are mounted; null: the process is in none. */
  private final Path top;
  private final Path group;
  private final boolean isSecond;

  private MemoryGroup(Path proc, Path top, Path group, boolean isSecond) {
    this.proc = proc;
    this.top = top;
    this.group = group;
    this.isSecond = isSecond;
  }

  /** The group that a living process is in. */
  static MemoryGroup of(long pid) {
    return of(pid, Path.of("/proc"), Path.of("/sys/fs/cgroup"));
  }

  /** {@code proc}, {@code groups}: where these file systems are. */
  static MemoryGroup of(long pid, Path proc, Path groups) {
    Path second = null;
    for (String line : lines(proc.resolve(Long.toString(pid)).resolve("cgroup"))) {
      String[] parts = line.split(":", 3);
      if (parts.length == 3 && List.of(parts[1].split(",")).contains("memory")) {
        return in(proc, groups.resolve("memory"), parts[2], false);
      }
      second = parts.length == 3 && parts[1].isEmpty() ? Path.of(parts[2]) : second;
    }
    return second == null ? new MemoryGroup(proc, null, null, true)
        : in(proc, groups, second.toString(), true);
  }

  private static MemoryGroup in(Path proc, Path top, String name, boolean isSecond) {
    Path named = top.resolve(name.substring(Math.min(1, name.length()))).normalize();
    // In a container the own group may be mounted as the topmost one, under its outer name.
    boolean isThere = named.startsWith(top) && Files.isDirectory(named);
    return new MemoryGroup(proc, top, isThere ? named : top, isSecond);
  }

  /** How often the kernel has killed a process of the group for want of memory; -1: unknown. */
  long kills() {
    return group == null ? UNKNOWN : counted(
        group.resolve(isSecond ? "memory.events" : "memory.oom_control"));
  }

  /** The same of the whole machine. */
  long killsOfMachine() {
    return counted(proc.resolve("vmstat"));
  }

  /** "limit 512 MiB, peak 512 MiB, in control group /x", or of the machine. */
  String describe() {
    Path tightest = null;
    long limit = UNLIMITED;
    for (Path at = group; at != null && at.startsWith(top); at = at.getParent()) {
      long found = number(at.resolve(isSecond ? "memory.max" : "memory.limit_in_bytes"));
      if (found != UNKNOWN && found < limit) {
        tightest = at;
        limit = found;
      }
    }
    if (tightest == null) {
      return "no limit but the " + size(machineBytes()) + " of the machine";
    }
    long peak = number(tightest.resolve(isSecond ? "memory.peak" : "memory.max_usage_in_bytes"));
    return "limit " + size(limit) + ", peak " + size(peak) + ", in control group /"
        + top.relativize(tightest);
  }

  private long machineBytes() {
    for (String line : lines(proc.resolve("meminfo"))) {
      if (line.startsWith("MemTotal:")) {
        return parsed(line.replaceAll("\\D", ""), kib -> kib * 1024);
      }
    }
    return UNKNOWN;
  }

  private static String size(long bytes) {
    return bytes == UNKNOWN ? "unknown" : Math.round((double) bytes / MIB) + " MiB";
  }

  private static long counted(Path file) {
    for (String line : lines(file)) {
      if (line.startsWith("oom_kill ")) {
        return parsed(line.substring("oom_kill ".length()), n -> n);
      }
    }
    return UNKNOWN;
  }

  private static long number(Path file) {
    List<String> lines = lines(file);
    return lines.isEmpty() ? UNKNOWN : parsed(lines.get(0), n -> n);
  }

  private static long parsed(String text, LongUnaryOperator made) {
    try {
      return made.applyAsLong(Long.parseLong(text.strip()));
    } catch (NumberFormatException e) {
      return UNKNOWN; // "max", say
    }
  }

  private static List<String> lines(Path file) {
    try {
      return Files.readAllLines(file, StandardCharsets.UTF_8);
    } catch (IOException e) {
      return List.of();
    }
  }
}
