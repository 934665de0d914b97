package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.util.List;
import org.apache.spark.SparkEnv;
import org.apache.spark.storage.BlockInfo;
import org.apache.spark.storage.BlockInfoManager;
import org.apache.spark.storage.BlockManager;
import org.apache.spark.storage.StorageLevel;
import org.apache.spark.storage.TestBlockId;
import org.apache.spark.util.io.ChunkedByteBuffer;
import scala.Option;
import scala.reflect.ClassTag;
import scala.reflect.ClassTag$;

/**
 * The only class that touches BlockManager (its signatures move between Spark's minor versions).
 * Blocks are put with tellMaster=false, so the driver never hears of them, and pinned with a read
 * lock, so that they are never evicted.
 */
final class Blocks {
  private static final ClassTag<Object> ANY = ClassTag$.MODULE$.Object();
  private final BlockManager manager;

  Blocks(SparkEnv env) {
    manager = env.blockManager();
  }

  String executorId() {
    return manager.blockManagerId().executorId();
  }

  String host() {
    return manager.blockManagerId().host();
  }

  int port() {
    return manager.blockManagerId().port();
  }

  /** This executor's private directories on local disk, removed by Spark when the executor ends. */
  java.io.File[] localDirectories() {
    return manager.diskBlockManager().localDirs();
  }

  /** Publishes bytes under a name never used before; they are not copied. */
  UnbookedBuffer put(String name, List<ByteBuffer> parts) throws BridgeException {
    return serve(name, new UnbookedBuffer(parts));
  }

  /** Publishes a letterbox. */
  UnbookedBuffer hang(String name, Letterbox box) throws BridgeException {
    return serve(name, new LetterboxBuffer(box));
  }

  private UnbookedBuffer serve(String name, UnbookedBuffer buffer) throws BridgeException {
    store(name, buffer);
    buffer.serve();
    return buffer;
  }

  /** Publishes a bell; {@code ring} runs on a network thread each time a peer reads it. */
  BellBuffer hang(String name, Runnable ring) throws BridgeException {
    BellBuffer bell = new BellBuffer(ring);
    store(name, bell);
    return bell;
  }

  private void store(String name, ChunkedByteBuffer buffer) throws BridgeException {
    TestBlockId id = id(name);
    if (manager.getStatus(id).isDefined()) {
      throw new BridgeException(BridgeException.Code.EXISTS, "block " + name + " exists");
    }
    boolean stored = manager.putBytes(
        id, buffer, StorageLevel.MEMORY_ONLY_SER(), false, Option.empty(), false, ANY);
    // The read lock is kept: it pins the block.
    if (!stored || manager.getLocalBytes(id).isEmpty()) {
      throw new BridgeException(BridgeException.Code.NOT_FOUND,
          "Spark's block manager did not keep block " + name);
    }
  }

  /**
   * Removes a block unless somebody reads it; returns false then, and it stays pinned. Spark's own
   * removeBlock waits for readers without limit, and one stuck peer would stop all removals.
   */
  boolean remove(String name, ChunkedByteBuffer buffer) {
    TestBlockId id = id(name);
    BlockInfoManager locks = manager.blockInfoManager();
    Option<BlockInfo> info = locks.get(id);
    if (info.isEmpty()) {
      return true;
    }
    if (info.get().readerCount() > 1) {
      return false;
    }
    account(buffer, false);
    manager.releaseLock(id, Option.empty());
    if (locks.lockForWriting(id, false).isEmpty()) {
      // A reader came between the look and the lock.
      if (locks.lockForReading(id, false).isEmpty()) {
        return locks.get(id).isEmpty();
      }
      account(buffer, true);
      return false;
    }
    manager.memoryStore().remove(id);
    locks.removeBlock(id);
    return true;
  }

  private static void account(ChunkedByteBuffer buffer, boolean served) {
    if (buffer instanceof UnbookedBuffer unbooked) {
      if (served) {
        unbooked.serve();
      } else {
        unbooked.retire();
      }
    }
  }

  private static TestBlockId id(String name) {
    return new TestBlockId(name.substring("test_".length()));
  }

  /** How many of mizzle's blocks this executor holds whose name begins so. */
  long count(String prefix) {
    return manager.getMatchingBlockIds(new scala.runtime.AbstractFunction1<>() {
      @Override
      public Object apply(org.apache.spark.storage.BlockId id) {
        return id.name().startsWith(prefix);
      }
    }).size();
  }

  /** In local mode plugins start before the block manager has its address. */
  boolean isReady() {
    return manager.blockManagerId() != null;
  }
}
