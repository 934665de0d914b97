package org.mizzle.bridge;

import java.util.concurrent.atomic.AtomicBoolean;
import org.apache.spark.SparkEnv;

/** Where this application's driver can be reached, and whether its user was told what that means. */
public final class Exposure {
  private final AtomicBoolean told = new AtomicBoolean();

  /** Addresses that the driver's own block manager listens on; none where the system does not tell. */
  public String[] addresses() {
    int port = SparkEnv.get().blockManager().blockManagerId().port();
    return Listening.on(port).toArray(new String[0]);
  }

  /** Whether nobody has asked this before. */
  public boolean isFirst() {
    return told.compareAndSet(false, true);
  }
}
