package org.mizzle.bridge;

import java.io.IOException;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/**
 * The shared memory of one rank of one run in this executor. It outlives the Python worker that
 * made it; one session at a time holds it.
 */
final class Arena {
  final String run;
  /** The rank it served last, or -1; guarded by this, as is everything below. */
  private int rank = -1;
  /** What Python last committed here: opaque, small. */
  private byte[] label = new byte[0];
  private Object holder;
  private int nextId;
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

  synchronized void assign(int newRank) {
    rank = newRank;
  }

  synchronized byte[] label() {
    return label.clone();
  }

  synchronized void label(byte[] newLabel) {
    label = newLabel.clone();
  }

  synchronized List<Region> regions() {
    return new ArrayList<>(regions.values());
  }

  /** Takes over memory that a worker made; a region of the same name is replaced. */
  synchronized Region add(String name, Path source, long size) throws BridgeException {
    Region region;
    try {
      region = new Region(nextId, name, source, size);
    } catch (IOException e) {
      throw new BridgeException(BridgeException.Code.ARENA,
          "region " + name + " of " + size + " bytes: " + e.getMessage());
    }
    nextId++;
    Region old = regions.put(name, region);
    if (old != null) {
      old.release();
    }
    return region;
  }

  /** The region of that id, with a reference for the caller. */
  synchronized Region acquire(int id) throws BridgeException {
    for (Region region : regions.values()) {
      if (region.id == id) {
        region.acquire();
        return region;
      }
    }
    throw new BridgeException(BridgeException.Code.ARENA, "no region number " + id);
  }

  synchronized void close() {
    regions.values().forEach(Region::release);
    regions.clear();
  }
}
