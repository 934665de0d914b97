package org.mizzle.bridge;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;

/** What this process can know of the machine it runs on. */
final class Host {
  private Host() {}

  /** Same for processes that can open each other's memory: one boot, process namespace and user. */
  static String id() throws IOException {
    Path boot = Path.of("/proc/sys/kernel/random/boot_id");
    Path namespace = Path.of("/proc/self/ns/pid");
    if (!Files.exists(boot) || !Files.exists(namespace)) {
      return "no-proc-" + ProcessHandle.current().pid();
    }
    return Files.readString(boot).trim() + "/" + Files.readSymbolicLink(namespace) + "/"
        + Files.getAttribute(Path.of("/proc/self"), "unix:uid");
  }
}
