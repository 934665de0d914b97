package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Queue;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.Executor;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;

final class LeaseAnswersTest {
  private static final String FIRST = "0".repeat(32);
  private static final String SECOND = "1".repeat(32);
  private long now = 50_000;
  private final Lease lease = new Lease(() -> now, 10_000);
  private final Runs runs = new Runs(new Counters(), lease);
  private final ScheduledExecutorService timer = Threads.scheduler("timer");
  private final Residents residents =
      new Residents(timer, 3_600_000, 3_600_000, () -> { });
  private final Path directory = passing(Files.createTempDirectory("shards"));
  private final Queue<Runnable> later = new ArrayDeque<>();

  LeaseAnswersTest() throws IOException {
    lease.renewed(now);
    now += 10_001;
  }

  private Path folder(String run) throws IOException {
    Path made = passing(Files.createDirectory(directory.resolve("mizzle-" + run)));
    passing(Files.writeString(made.resolve("shard"), "rows"));
    return made;
  }

  /** Gone when the tests are over. */
  private static Path passing(Path path) {
    path.toFile().deleteOnExit();
    return path;
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
    Path stuck = passing(Files.createDirectory(folder(FIRST).resolve("directory")));
    passing(Files.writeString(stuck.resolve("file"), ""));
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
    lease.renewed(now);
    Shelf shelf = new Shelf(null, new Removals((name, buffer) -> true, timer));
    Member member = new Member(
        new Group("r", 3, 1), 2, 7, runs.claim("r", 0, -1, this), shelf, timer);
    runs.register(member);
    List<Boolean> wasOver = new ArrayList<>();
    member.turns.await(1, new Turns.Waiter() {
      @Override
      public void ready() { }

      @Override
      public void failed(BridgeException error) {
        wasOver.add(lease.isOver());
      }
    });
    now += 10_001;
    take(answers(later::add));
    equal(List.of(true), wasOver);
    fails(BridgeException.class, () -> runs.check("r", 3));
    runs.check("r", 4);
  }
}
