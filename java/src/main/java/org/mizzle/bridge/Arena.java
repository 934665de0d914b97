package org.mizzle.bridge;

import java.io.IOException;
import java.lang.invoke.VarHandle;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.NavigableSet;
import java.util.TreeSet;

/**
 * The shared memory of one rank of one run in this executor. It outlives the Python worker that
 * made it; one session at a time holds it.
 */
final class Arena {
  /** Name of the region in which a rank's peers look for notes (protocol/frames.md). */
  private static final String CONTROL = "control";
  /** Words of it that the bridge writes: the lowest generation served; rank + 1 of a lost peer. */
  private static final int FENCED_AT = 4;
  private static final int LOST_AT = 8;
  /** Why that peer was lost: u32 length, UTF-8. */
  private static final int LOST_REASON_AT = 1088;
  private static final int LOST_REASON_BYTES = 1024;

  final String run;
  /** The rank it served last, or -1; guarded by this, as is everything below. */
  private int rank = -1;
  /** What Python last committed here: opaque, small. */
  private byte[] label = new byte[0];
  /** The generation that it serves, -1: none yet; and those in which it was labelled. */
  private long generation = -1;
  private final NavigableSet<Long> labelledIn = new TreeSet<>();
  private Object holder;
  private int nextNumber;
  private boolean closed;
  private final Map<String, Region> regions = new LinkedHashMap<>();

  Arena(String run) {
    this.run = run;
  }

  synchronized boolean claim(Object session) {
    if (holder != null) {
      return false;
    }
    holder = session;
    return true;
  }

  synchronized void unclaim(Object session) {
    if (holder == session) {
      holder = null;
    }
  }

  synchronized int rank() {
    return rank;
  }

  synchronized void assign(int newRank, int newGeneration) {
    rank = newRank;
    generation = Integer.toUnsignedLong(newGeneration);
  }

  /** In which generation a rank last noted something here, or -1: what lies here is as old. */
  synchronized long labelledIn() {
    return labelledIn.isEmpty() ? -1 : labelledIn.last();
  }

  /** Whether a rank of that generation has noted something here: it may be here still. */
  synchronized boolean wasLabelledIn(int ofGeneration) {
    return labelledIn.contains(Integer.toUnsignedLong(ofGeneration));
  }

  synchronized byte[] label() {
    return label.clone();
  }

  synchronized void label(byte[] newLabel) {
    label = newLabel.clone();
    labelledIn.add(generation);
  }

  synchronized List<Region> regions() {
    return new ArrayList<>(regions.values());
  }

  /** Takes over memory that a worker made; a region of the same name is replaced. */
  synchronized Region add(String name, Path source, long size) throws BridgeException {
    if (closed) {
      throw new BridgeException(BridgeException.Code.FENCED, "the run has ended");
    }
    Region region;
    try {
      region = Region.open(nextNumber, name, source, size);
    } catch (IOException e) {
      throw new BridgeException(BridgeException.Code.ARENA,
          "region " + name + " of " + size + " bytes: " + e.getMessage());
    }
    nextNumber++;
    Region old = regions.put(name, region);
    if (old != null) {
      old.release();
    }
    return region;
  }

  /** The region of that number, with a reference for the caller. */
  synchronized Region acquire(int number) throws BridgeException {
    for (Region region : regions.values()) {
      if (region.number == number) {
        region.acquire();
        return region;
      }
    }
    throw new BridgeException(BridgeException.Code.ARENA, "no region number " + number);
  }

  /** Tells the worker that lower generations are not served, where it watches for that. */
  synchronized void noteFence(int generation) {
    Region control = regions.get(CONTROL);
    if (control != null) {
      control.write(FENCED_AT, Frame.bytesOf(generation));
    }
  }

  /** Tells the worker of a lost peer; the reason is cut to what fits. */
  synchronized void noteLoss(int peer, String why) {
    Region control = regions.get(CONTROL);
    if (control != null) {
      byte[] text = why.getBytes(StandardCharsets.UTF_8);
      int length = Math.min(text.length, LOST_REASON_BYTES - Integer.BYTES);
      control.write(LOST_REASON_AT + Integer.BYTES, Arrays.copyOf(text, length));
      control.write(LOST_REASON_AT, Frame.bytesOf(length));
      VarHandle.releaseFence();
      control.write(LOST_AT, Frame.bytesOf(peer + 1));
    }
  }

  /** Lets go of all memory; what is being read stays until it was read. */
  synchronized void close() {
    closed = true;
    regions.values().forEach(Region::release);
    regions.clear();
  }
}
