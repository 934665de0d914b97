package org.mizzle.bridge;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.TreeSet;

/**
 * The folders "mizzle-RUN" that Python tasks made in this executor's local directories for shards of
 * training data. Files that a reader still maps stay readable after their removal.
 */
final class ShardFolders {
  private static final String PREFIX = "mizzle-";
  private final List<File> directories;

  ShardFolders(File[] directories) {
    this.directories = List.of(directories);
  }

  /** The runs that have a folder here. */
  Set<String> runs() {
    Set<String> runs = new TreeSet<>();
    for (File folder : folders()) {
      runs.add(folder.getName().substring(PREFIX.length()));
    }
    return runs;
  }

  /** Removes a run's folders; called once when the run has ended. */
  void remove(String run) throws IOException {
    for (File folder : folders()) {
      if (folder.getName().equals(PREFIX + run)) {
        for (File file : listed(folder)) {
          Files.deleteIfExists(file.toPath());
        }
        Files.deleteIfExists(folder.toPath());
      }
    }
  }

  private List<File> folders() {
    List<File> found = new ArrayList<>();
    for (File directory : directories) {
      for (File file : listed(directory)) {
        Path path = file.toPath();
        if (file.getName().matches(PREFIX + "[0-9a-f]{32}") && Files.isDirectory(path)) {
          found.add(file);
        }
      }
    }
    return found;
  }

  private static List<File> listed(File directory) {
    File[] files = directory.listFiles();
    return files == null ? List.of() : List.of(files);
  }
}
