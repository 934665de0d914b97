package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;

import io.netty.buffer.ByteBuf;
import io.netty.buffer.UnpooledByteBufAllocator;
import io.netty.channel.ChannelInboundHandlerAdapter;
import io.netty.channel.DefaultMaxMessagesRecvByteBufAllocator;
import io.netty.channel.embedded.EmbeddedChannel;
import java.nio.ByteBuffer;
import java.util.ArrayList;
import java.util.List;
import org.apache.spark.network.protocol.MessageEncoder;

final class IntakeTest implements Intake.Place {
  private final EmbeddedChannel channel = new EmbeddedChannel(MessageEncoder.INSTANCE);
  private final ByteBuffer memory = ByteBuffer.allocateDirect(8);
  private final List<Integer> lengths = new ArrayList<>();
  private final DefaultMaxMessagesRecvByteBufAllocator.MaxMessageHandle reads;

  IntakeTest() {
    Intake.install(channel);
    reads = Intake.of(channel).newHandle();
    reads.reset(channel.config());
  }

  @Override
  public ByteBuffer lend(int bytes) {
    return memory.hasRemaining() ? memory.slice() : null;
  }

  @Override
  public void lent(int bytes) {
    lengths.add(bytes);
  }

  private ByteBuf allocate() {
    return reads.allocate(UnpooledByteBufAllocator.DEFAULT);
  }

  void thePayloadUnderWayIsReadToItsPlace() {
    Intake.of(channel).expect(this);
    ByteBuf buffer = allocate();
    equal(8, buffer.writableBytes());
    buffer.writeByte(42);
    reads.lastBytesRead(1);
    buffer.release();
    equal((byte) 42, memory.get(0));
    equal(List.of(1), lengths);
    reads.readComplete();
    equal(List.of(1), lengths);
  }

  void aReadThatBreaksGivesThePlaceBackToo() {
    Intake.of(channel).expect(this);
    allocate().release();
    reads.readComplete();
    equal(List.of(0), lengths);
    allocate().release();
    reads.lastBytesRead(-1);
    equal(List.of(0, 0), lengths);
  }

  void whatBelongsToNoPayloadIsReadToABuffer() {
    allocate().release();
    Intake.of(channel).expect(this);
    memory.position(8);
    allocate().release();
    Intake.of(channel).expect(null);
    memory.position(0);
    allocate().release();
    reads.lastBytesRead(1);
    reads.readComplete();
    equal(List.of(), lengths);
  }

  void whereBytesAreDecryptedFirstNothingIsLent() {
    Intake.of(channel).expect(this);
    channel.pipeline().addFirst(new ChannelInboundHandlerAdapter());
    ByteBuf buffer = allocate();
    check(buffer.capacity() > 64 * 1024, "reads are large instead");
    buffer.release();
    reads.lastBytesRead(1);
    equal(List.of(), lengths);
  }
}
