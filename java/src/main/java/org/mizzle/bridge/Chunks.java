package org.mizzle.bridge;

import java.util.ArrayDeque;
import java.util.Collections;
import java.util.Deque;
import java.util.function.Consumer;

/**
 * Readings of one block of a peer, again and again. A block must be opened before it is read, which
 * is a round trip; so it is opened for many readings at once, and again before they are used up.
 * Used by the event loop of the connection alone.
 */
final class Chunks {
  /** Each one opened holds a read lock at the peer, until it is read or the connection closes. */
  private static final int AT_ONCE = 64;

  /** Opens a block for as many readings as its name is listed; one of the two is called later. */
  interface Opener {
    void open(String[] names, StreamOpened opened, Consumer<Throwable> failed);
  }

  /** A stream of the peer's, with one chunk for each name, to be read in order. */
  interface StreamOpened {
    void accept(long stream);
  }

  /** One reading; exactly one of the two is called, in the order of the calls of {@link #read}. */
  interface Reading {
    void start(long stream, int chunk);

    void failed(Throwable error);
  }

  private final Opener opener;
  private final String[] names;
  private final Deque<Long> streams = new ArrayDeque<>();
  private final Deque<Reading> waiting = new ArrayDeque<>();
  /** The next chunk of the first stream. */
  private int chunk;
  private boolean opening;
  private Throwable broken;

  Chunks(Opener opener, String name) {
    this.opener = opener;
    names = Collections.nCopies(AT_ONCE, name).toArray(new String[0]);
  }

  void read(Reading reading) {
    if (broken != null) {
      reading.failed(broken);
      return;
    }
    waiting.add(reading);
    startWhatCan();
  }

  /** Opens the block if it soon must be. */
  void openAhead() {
    boolean plenty = streams.size() > 1 || !streams.isEmpty() && chunk < AT_ONCE / 2;
    if (plenty || opening || broken != null) {
      return;
    }
    opening = true;
    try {
      opener.open(names, this::opened, this::failed);
    } catch (RuntimeException e) {
      // Thrown on an event loop it would only be logged, and readings would wait for ever.
      failed(e);
    }
  }

  private void opened(long stream) {
    opening = false;
    streams.add(stream);
    startWhatCan();
  }

  private void failed(Throwable error) {
    opening = false;
    broken = error;
    while (!waiting.isEmpty()) {
      waiting.poll().failed(error);
    }
  }

  private static void start(Reading reading, long stream, int chunk) {
    try {
      reading.start(stream, chunk);
    } catch (RuntimeException e) {
      reading.failed(e);
    }
  }

  private void startWhatCan() {
    while (!waiting.isEmpty() && !streams.isEmpty()) {
      start(waiting.poll(), streams.peek(), chunk++);
      if (chunk == AT_ONCE) {
        streams.poll();
        chunk = 0;
      }
    }
    openAhead();
  }
}
