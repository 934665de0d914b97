package org.mizzle.bridge;

import org.apache.spark.util.io.ChunkedByteBuffer;

/** A block in the BlockManager, and the region its bytes lie in (null: none), with one reference. */
record Kept(String name, ChunkedByteBuffer buffer, Region region) {}
