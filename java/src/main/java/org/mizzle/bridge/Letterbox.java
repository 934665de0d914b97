package org.mizzle.bridge;

import java.util.ArrayDeque;
import java.util.Deque;

/**
 * What a rank has put for one reader, in order. The reader takes out one block at a time, and each
 * says how many are behind it; so the bell is rung only when the reader believes the box is empty.
 * Any thread may call; guarded by this.
 */
final class Letterbox {
  private final Deque<Letter> waiting = new ArrayDeque<>();
  private long handedOut;
  /** How many, from the first on, the reader knows of. */
  private long known;

  /** Whether the reader's bell must be rung, once: it then knows of one more. */
  synchronized boolean add(Letter letter) {
    waiting.add(letter);
    boolean unaware = known == handedOut;
    if (unaware) {
      known++;
    }
    return unaware;
  }

  /** The next one. A reader that knows of none has no business here and is handed nothing. */
  synchronized Handout next() {
    Letter letter = waiting.poll();
    if (letter == null) {
      return Handout.ofNothing(0);
    }
    handedOut++;
    known = handedOut + waiting.size();
    return letter.handOut(waiting.size());
  }
}
