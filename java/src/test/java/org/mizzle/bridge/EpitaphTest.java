package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;

final class EpitaphTest {
  private static final String OOM = "the kernel killed it because it was out of memory (OOM): ";
  private final Path proc = Files.createTempDirectory("proc");
  private final Path groups = Files.createTempDirectory("cgroup");

  EpitaphTest() throws IOException {
    // A class of tests is made anew for each of them.
  }

  private static void write(Path file, String text) throws IOException {
    Files.createDirectories(file.getParent());
    Files.writeString(file, text);
  }

  private Epitaph epitaph() {
    return new Epitaph(7, pid -> MemoryGroup.of(pid, proc, groups));
  }

  void aKillInAGroupOfVersionTwoIsCalledOomWithTheTightestLimitAndItsPeak() throws Exception {
    write(proc.resolve("7/cgroup"), "0::/pod/ranks\n");
    write(groups.resolve("pod/ranks/memory.events"), "low 0\noom 1\noom_kill 3\noom_group_kill 0\n");
    write(groups.resolve("pod/ranks/memory.max"), "max\n");
    write(groups.resolve("pod/memory.max"), "536870912\n");
    write(groups.resolve("pod/memory.peak"), "536866816\n");
    Epitaph epitaph = epitaph();
    check(epitaph.write().startsWith("process 7 ended: it crashed or was killed, and not for want"),
        epitaph.write());
    write(groups.resolve("pod/ranks/memory.events"), "oom_kill 4\n");
    String told = epitaph.write();
    check(told.startsWith("process 7 ended: " + OOM
        + "limit 512 MiB, peak 512 MiB, in control group /pod. Give executors more memory"), told);
    epitaph.look();
    check(!epitaph.write().contains("OOM"), "that was another process");
  }

  void aKillInAGroupOfVersionOneIsCalledOom() throws Exception {
    write(proc.resolve("7/cgroup"), "5:cpu:/\n4:memory:/yarn/c1\n0::/other\n");
    Path group = groups.resolve("memory/yarn/c1");
    write(group.resolve("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n");
    write(group.resolve("memory.limit_in_bytes"), "104857600\n");
    write(group.resolve("memory.max_usage_in_bytes"), "104857600\n");
    write(groups.resolve("memory/memory.limit_in_bytes"), "9223372036854771712\n");
    Epitaph epitaph = epitaph();
    write(group.resolve("memory.oom_control"), "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n");
    String told = epitaph.write();
    check(told.contains(OOM + "limit 100 MiB, peak 100 MiB, in control group /yarn/c1"), told);
  }

  void aContainersOwnGroupMayBeTheTopmostOneUnderItsOuterName() throws Exception {
    write(proc.resolve("7/cgroup"), "4:memory:/docker/0123\n");
    write(groups.resolve("memory/memory.oom_control"), "oom_kill 0\n");
    write(groups.resolve("memory/memory.limit_in_bytes"), "1048576\n");
    Epitaph epitaph = epitaph();
    write(groups.resolve("memory/memory.oom_control"), "oom_kill 1\n");
    check(epitaph.write().contains("limit 1 MiB, peak unknown, in control group /"),
        epitaph.write());
  }

  void withoutGroupsTheMachinesCounterIsAHint() throws Exception {
    write(proc.resolve("vmstat"), "pgfault 12\noom_kill 1\n");
    write(proc.resolve("meminfo"), "MemTotal:        2097152 kB\nMemFree: 1 kB\n");
    Epitaph epitaph = epitaph();
    equal("process 7 ended: it crashed or was killed. Its standard error is that of its executor",
        epitaph.write());
    write(proc.resolve("vmstat"), "pgfault 12\noom_kill 2\n");
    String told = epitaph.write();
    check(told.contains("(OOM), so probably this one: no limit but the 2048 MiB of the machine."),
        told);
  }

  void aNameThatLeadsOutOfTheGroupsIsNotFollowed() throws Exception {
    write(proc.resolve("7/cgroup"), "0::/../..\n");
    write(groups.resolve("memory.events"), "oom_kill 0\n");
    equal(0L, MemoryGroup.of(7, proc, groups).kills());
  }
}
