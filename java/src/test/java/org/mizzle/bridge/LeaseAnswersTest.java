package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.Executor;
import java.util.concurrent.RejectedExecutionException;

final class LeaseAnswersTest {
  private static final String FIRST = "0".repeat(32);
  private static final String SECOND = "1".repeat(32);
  private long now = 50_000;
  private final Lease lease = new Lease(() -> now, 10_000);
  private final Runs runs = new Runs(new Counters(), lease);
  private final Residents residents =
      new Residents(Threads.scheduler("timer"), 3_600_000, 3_600_000, () -> { });
  private final Path directory = Files.createTempDirectory("shards");
  private final Queue<Runnable> later = new ArrayDeque<>();

  LeaseAnswersTest() throws IOException {
    lease.renewed(now);
    now += 10_001;
  }

  private Path folder(String run) throws IOException {
    Path made = Files.createDirectories(directory.resolve("mizzle-" + run));
    Files.writeString(made.resolve("shard"), "rows");
    return made;
  }

  private LeaseAnswers answers(Executor cleaner) {
    return new LeaseAnswers(
        runs, new ShardFolders(new File[] {directory.toFile()}), lease, cleaner);
  }

  private void take(LeaseAnswers answers, String... ended) {
    answers.take(new DriverLink.Leases(new TreeSet<>(Set.of(ended)), Map.of("r", 4)),
        now, residents);
  }

  void whatCannotBeRemovedEndsNoLeaseAndKeepsNoOtherFromIt() throws IOException {
    Path stuck = Files.createDirectories(folder(FIRST).resolve("directory"));
    Files.writeString(stuck.resolve("file"), "");
    Path other = folder(SECOND);
    take(answers(Runnable::run), FIRST, SECOND);
    check(!lease.isOver(), "it is renewed");
    check(!Files.exists(other), "the other one's folder is gone");
  }

  void aDiskThatIsSlowKeepsNobodyWaiting() throws IOException {
    Path folder = folder(FIRST);
    LeaseAnswers answers = answers(later::add);
    take(answers, FIRST);
    check(!lease.isOver(), "it is renewed");
    check(Files.exists(folder), "it is another's to remove");
    take(answers, FIRST);
    equal(1, later.size());
    later.remove().run();
    check(!Files.exists(folder), "it is gone");
    take(answers, FIRST);
    equal(1, later.size());
  }

  void whereNoThreadCanBeMadeItIsTriedAgain() {
    int[] asked = new int[1];
    LeaseAnswers answers = answers(task -> {
      asked[0]++;
      if (asked[0] == 1) {
        throw new RejectedExecutionException("no");
      }
      throw new OutOfMemoryError("no thread");
    });
    take(answers, FIRST);
    take(answers, FIRST);
    equal(2, asked[0]);
    check(!lease.isOver(), "it is renewed");
  }

  void theFencesAreRaisedBeforeItIsRenewed() throws BridgeException {
    take(answers(later::add));
    fails(BridgeException.class, () -> runs.check("r", 3));
    runs.check("r", 4);
  }
}
