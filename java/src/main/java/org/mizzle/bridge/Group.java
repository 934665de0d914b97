package org.mizzle.bridge;

/** A group's job: number {@code number} of a generation of a run. Both numbers are unsigned. */
record Group(String run, int generation, long number) {

  /** Whether it was started before the other one, of the same run. */
  boolean isOlder(Group than) {
    int byGeneration = Integer.compareUnsigned(generation, than.generation);
    return byGeneration != 0
        ? byGeneration < 0 : Long.compareUnsigned(number, than.number) < 0;
  }

  /** Name of the bell that the rank {@code from} rings at the member with that nonce. */
  String bell(long nonce, int from) {
    return name("bell", nonce) + '.' + from;
  }

  /** Name of the letterbox in which the member with that nonce leaves blocks for {@code reader}. */
  String letterbox(long nonce, int reader) {
    return name("letters", nonce) + '.' + reader;
  }

  /** Name of the bell by which the rank {@code from} says that it gives up. */
  String alarm(long nonce, int from) {
    return name("alarm", nonce) + '.' + from;
  }

  /** Name of the block in which the member with that nonce says why it gave up. */
  String reason(long nonce) {
    return name("reason", nonce);
  }

  private String name(String kind, long nonce) {
    return String.format("test_mizzle-%s.%s.%s.%016x",
        kind, run, Integer.toUnsignedString(generation), nonce);
  }
}
