package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;

import java.util.List;
import java.util.Set;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

final class RemovalsTest {
  /** Blocks that are being read, and those whose removal breaks. */
  private final Set<String> read = ConcurrentHashMap.newKeySet();
  private final Set<String> broken = ConcurrentHashMap.newKeySet();
  private final BlockingQueue<String> removed = new LinkedBlockingQueue<>();
  private final CountDownLatch failed = new CountDownLatch(2);

  private boolean remove(String name) {
    if (read.contains(name)) {
      return false;
    }
    if (broken.contains(name)) {
      failed.countDown();
      throw new IllegalStateException("not locked");
    }
    return removed.add(name);
  }

  void oneThatCannotBeRemovedDoesNotStopTheOthers() throws Exception {
    var janitor = Threads.scheduler("janitor");
    Removals removals = new Removals((name, buffer) -> remove(name), janitor);
    broken.add("at once");
    removals.add(new Kept("at once", null));
    read.addAll(Set.of("later", "first", "last"));
    broken.add("later");
    for (String name : new String[] {"first", "later", "last"}) {
      removals.add(new Kept(name, null));
    }
    janitor.submit(() -> null).get(10, TimeUnit.SECONDS);
    read.remove("later");
    check(failed.await(10, TimeUnit.SECONDS), "both failures came");
    read.clear();
    List<String> both =
        List.of(removed.poll(10, TimeUnit.SECONDS), removed.poll(10, TimeUnit.SECONDS));
    equal(List.of("first", "last"), both.stream().sorted().toList());
    janitor.shutdown();
    check(janitor.awaitTermination(10, TimeUnit.SECONDS), "nothing is tried again");
    check(removed.isEmpty(), "each is removed once");
  }
}
