package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;
import static org.mizzle.bridge.RunTests.golden;

import java.io.IOException;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;

final class FrameTest {
  private static ByteBuffer received(byte[]... parts) {
    ByteBuffer in = ByteBuffer.allocate(4096).order(ByteOrder.LITTLE_ENDIAN);
    for (byte[] part : parts) {
      in.put(part);
    }
    return in;
  }

  private static Frame frame(String name) throws IOException {
    return Frame.take(received(golden(name)));
  }

  private static byte[] bytes(ByteBuffer frame) {
    byte[] out = new byte[frame.remaining()];
    frame.get(out);
    return out;
  }

  void requestsAreReadAsTheGoldenFilesHaveThem() throws IOException {
    Frame hello = frame("hello");
    equal(Session.HELLO, hello.type);
    equal(Bridge.PROTOCOL_VERSION, (int) hello.body.getShort());
    equal(31, (int) hello.bytes(32)[31]);
    Frame region = frame("region");
    equal(Session.REGION, region.type);
    equal("weights", region.string());
    equal("/proc/1/fd/2", region.string());
    equal(1L << 33, region.body.getLong());
    Frame join = frame("join");
    equal(Session.JOIN, join.type);
    equal(3, join.body.getInt());
    equal(12L, join.body.getLong());
    equal(4, (int) join.body.getShort());
    equal(-1, join.body.getInt());
    equal(60000, join.body.getInt());
    equal("/proc/1/fd/3", join.string());
    equal(List.of(1, 65535), Join.ranks(join));
    equal(0, join.body.remaining());
  }

  void residentsRequestsAreReadAsTheGoldenFilesHaveThem() throws IOException {
    Frame serve = frame("serve");
    equal(Session.SERVE, serve.type);
    equal(4711, serve.body.getInt());
    equal(3L, serve.body.getLong());
    equal(-1, serve.body.getInt());
    equal("outcome", serve.string());
    Frame hire = frame("hire");
    equal(Session.HIRE, hire.type);
    equal(32, hire.string().length());
    equal(3, hire.body.getInt());
    equal(1, (int) hire.body.get());
    equal(60000, hire.body.getInt());
    equal("how", hire.string());
  }

  void ordersAndHiresAreAnsweredAsTheGoldenFiles() throws IOException {
    equal(golden("serve_answer"), bytes(Staffing.answer(
        new Order(-1, Order.GROUP, "r", 3, "do".getBytes(StandardCharsets.UTF_8), 0, 0), 9)));
    equal(golden("hire_answer"),
        bytes(Staffing.answer("ready".getBytes(StandardCharsets.UTF_8), 10)));
    equal(golden("hire_answer_nobody"), bytes(Staffing.answer((byte[]) null, 10)));
  }

  void aPutIsReadAsTheGoldenFileHasIt() throws IOException {
    Frame put = frame("put");
    equal(Session.PUT, put.type);
    equal(1 << 31 | 5, put.tag);
    equal(Arrays.copyOf(golden("block_small"), 64), put.bytes(64));
    equal("meta", new String(put.blob(), StandardCharsets.US_ASCII));
    equal(1, (int) put.body.get());
    equal(9, put.body.getInt());
    equal(128L, put.body.getLong());
    equal(8L, put.body.getLong());
    equal(List.of(0, 3), Join.ranks(put));
    Frame cancel = frame("cancel");
    equal(Session.CANCEL, cancel.type);
    equal(6, cancel.body.getInt());
  }

  void answersAreWrittenAsTheGoldenFiles() throws IOException {
    equal(golden("hello_answer"), bytes(new Frame.Builder().string("7").string("host").u16(40404)
        .string("id").string("/d").string("0.1.0").frame(Session.HELLO | Session.ANSWER, 1)));
    byte[] header = Arrays.copyOf(golden("block_small"), 64);
    equal(golden("fetch_answer"), bytes(new Frame.Builder().raw(header)
        .string("meta").frame(Session.FETCH | Session.ANSWER, 6)));
    equal(golden("error_peer_lost"), bytes(new Frame.Builder()
        .u8(BridgeException.Code.PEER_LOST.wire).u32(3).string("gone: \u00e9")
        .frame(Session.ERROR, 6)));
  }

  void aFrameIsTakenOnlyWhenItIsWhole() throws IOException {
    byte[] put = golden("put");
    for (int cut = 0; cut < put.length; cut++) {
      check(Frame.take(received(Arrays.copyOf(put, cut))) == null, cut + " bytes");
    }
    ByteBuffer in = received(put, golden("drop"), new byte[] {1, 2});
    equal(Session.PUT, Frame.take(in).type);
    equal(Session.DROP, Frame.take(in).type);
    equal(2, in.position());
  }

  void anyChangedBitIsFoundOrLeavesTheFrameUnfinished() throws IOException {
    byte[] put = golden("put");
    for (int bit = 0; bit < 8 * put.length; bit++) {
      byte[] changed = put.clone();
      changed[bit / 8] ^= (byte) (1 << bit % 8);
      ByteBuffer in = received(changed);
      boolean longer = in.getInt(0) > put.length - 4 && in.getInt(0) <= Frame.MAX_BYTES;
      if (longer) {
        check(Frame.take(in) == null, "more is awaited");
      } else {
        fails(IOException.class, () -> Frame.take(in));
      }
    }
  }

  void impossibleLengthsAreRefusedBeforeAnythingIsAllocated() {
    for (int size : new int[] {0, 8, Frame.MAX_BYTES + 1, -1, Integer.MIN_VALUE}) {
      ByteBuffer in = ByteBuffer.allocate(16).order(ByteOrder.LITTLE_ENDIAN).putInt(size);
      fails(IOException.class, () -> Frame.take(in));
    }
  }

  void whatIsTooShortIsRefused() {
    Frame blob = new Frame(0, 0, ByteBuffer.wrap(new byte[] {9, 0, 0, 0, 1}));
    fails(IllegalArgumentException.class, blob::blob);
    Frame negative = new Frame(0, 0, ByteBuffer.wrap(new byte[] {-1, -1, -1, -1, 1}));
    fails(IllegalArgumentException.class, negative::blob);
    Frame ranks = new Frame(0, 0, ByteBuffer.wrap(new byte[] {2, 0, 1, 0}));
    fails(BufferUnderflowException.class, () -> Join.ranks(ranks));
  }

  void aJoinSurvivesItsTravel() {
    Join join = new Join(new Group("r", 3, 4), 5, -1, List.of(2, 0), 6, "7", "h", 65535, "id", "/c");
    equal(join, Join.decode(ByteBuffer.wrap(join.encode())));
  }
}
