package org.mizzle.bridge;

import java.util.concurrent.atomic.AtomicLong;
import java.util.function.LongSupplier;
import org.apache.spark.SparkConf;

/**
 * Until when this bridge may take part in runs: the driver may believe it dead once nothing was
 * heard of it for long, and have others go on in its place (a lease, after Gray and Cheriton, SOSP
 * 1989). It saves work and memory; safety comes from the generations, not from it: the driver's
 * verdict comes a little earlier, a Python process ends a lease and 3 s after the last answer at the
 * latest, and whoever is late is refused as of an older generation. Pure: time comes from outside;
 * any thread may call.
 */
final class Lease {
  /** How often a bridge renews it; tests have it do so more often. */
  private static final String PERIOD = "spark.mizzle.leasePeriod";
  /** How long a bridge goes on when the driver does not answer. */
  private static final String LIMIT = "spark.mizzle.lease";
  /** How long a bridge may be silent before its executor counts as hung. */
  private static final String VERDICT = "spark.mizzle.verdict";
  /** Who is to say something seldom may be silent for longer. */
  private static final int LEAST_PERIODS = 3;
  private static final long NEVER = Long.MIN_VALUE;

  private final LongSupplier clockMs;
  private final long limitMs;
  private final AtomicLong renewedMs = new AtomicLong(NEVER);

  /** Begins with the first answer: before the driver was asked its silence tells nothing. */
  Lease(LongSupplier clockMs, long limitMs) {
    this.clockMs = clockMs;
    this.limitMs = limitMs;
  }

  static long periodMs(SparkConf conf) {
    return conf.getTimeAsMs(PERIOD, "1s");
  }

  static long limitMs(SparkConf conf) {
    return Math.max(conf.getTimeAsMs(LIMIT, "10s"), LEAST_PERIODS * periodMs(conf));
  }

  static long verdictMs(SparkConf conf) {
    return Math.max(conf.getTimeAsMs(VERDICT, "9s"), LEAST_PERIODS * periodMs(conf));
  }

  /** When a question is asked: to be given to {@link #renewed} with its answer. */
  long now() {
    return clockMs.getAsLong();
  }

  /** The driver has answered what was asked at that moment; the answer may have taken long. */
  void renewed(long askedMs) {
    renewedMs.accumulateAndGet(askedMs, Math::max);
  }

  boolean isOver() {
    long renewed = renewedMs.get();
    return renewed != NEVER && clockMs.getAsLong() - renewed > limitMs;
  }

  /** Refuses once it is over. */
  void check() throws BridgeException {
    if (isOver()) {
      throw new BridgeException(BridgeException.Code.FENCED, "the driver was out of reach for "
          + limitMs + " ms, so this executor takes part in nothing until it answers again");
    }
  }
}
