package org.mizzle.bridge;

import java.util.EnumMap;
import java.util.Map;
import java.util.concurrent.atomic.LongAdder;

/** What this bridge has done so far; read by tests, metrics and {@code mizzle doctor}. */
final class Counters {
  enum Name {
    BLOCKS_PUT, BYTES_PUT, BLOCKS_FETCHED, BYTES_FETCHED, BELLS_RUNG, BELLS_HEARD, FENCED, CORRUPT,
    DRIVER_ASKS, LEASES, LEASES_LOST, REFUSED
  }

  private final Map<Name, LongAdder> values = new EnumMap<>(Name.class);

  Counters() {
    for (Name name : Name.values()) {
      values.put(name, new LongAdder());
    }
  }

  void add(Name name, long amount) {
    values.get(name).add(amount);
  }

  void increment(Name name) {
    add(name, 1);
  }

  long get(Name name) {
    return values.get(name).sum();
  }
}
