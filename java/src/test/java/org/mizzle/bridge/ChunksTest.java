package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;

import java.io.IOException;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Deque;
import java.util.List;
import java.util.function.Consumer;

final class ChunksTest implements Chunks.Opener {
  private final Deque<Chunks.StreamOpened> opened = new ArrayDeque<>();
  private final Deque<Consumer<Throwable>> failed = new ArrayDeque<>();
  private final List<String> readings = new ArrayList<>();
  private final Chunks chunks = new Chunks(this, "block");
  private int atOnce;

  @Override
  public void open(String[] names, Chunks.StreamOpened whenOpened, Consumer<Throwable> whenNot) {
    atOnce = names.length;
    opened.add(whenOpened);
    failed.add(whenNot);
  }

  private void read(int times) {
    for (int i = 0; i < times; i++) {
      chunks.read(new Chunks.Reading() {
        @Override
        public void start(long stream, int chunk) {
          readings.add(stream + ":" + chunk);
        }

        @Override
        public void failed(Throwable error) {
          readings.add(error.getMessage());
        }
      });
    }
  }

  void readingsWaitForTheStreamAndKeepTheirOrder() {
    read(2);
    equal(List.of(), readings);
    opened.poll().accept(7);
    read(1);
    equal(List.of("7:0", "7:1", "7:2"), readings);
  }

  void theNextStreamIsOpenedBeforeTheFirstIsUsedUp() {
    chunks.openAhead();
    chunks.openAhead();
    equal(1, opened.size());
    opened.poll().accept(1);
    read(atOnce / 2);
    equal(1, opened.size());
    opened.poll().accept(2);
    read(atOnce / 2 + 1);
    equal("1:" + (atOnce - 1), readings.get(atOnce - 1));
    equal("2:0", readings.get(atOnce));
    equal(0, opened.size());
  }

  void moreReadingsThanOneStreamHasAreNotLost() {
    chunks.openAhead();
    read(2 * atOnce + 1);
    for (long stream = 1; stream <= 3; stream++) {
      opened.poll().accept(stream);
    }
    equal(2 * atOnce + 1, readings.size());
    equal("3:0", readings.get(2 * atOnce));
  }

  void whenTheBlockCannotBeOpenedAllReadingsFailNowAndLater() {
    read(2);
    failed.poll().accept(new IOException("gone"));
    read(1);
    equal(List.of("gone", "gone", "gone"), readings);
    check(opened.size() == 1, "it is not tried again");
  }
}
