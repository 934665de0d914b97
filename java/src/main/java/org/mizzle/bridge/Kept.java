package org.mizzle.bridge;

import org.apache.spark.util.io.ChunkedByteBuffer;

/** A block in the BlockManager. */
record Kept(String name, ChunkedByteBuffer buffer) {}
