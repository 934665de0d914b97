package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.golden;

import io.netty.channel.embedded.EmbeddedChannel;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

/** What a sink does with bytes that the network has read straight to their place. */
final class SinkPlaceTest implements Sink.Outcome {
  private static final int META_AT = Handout.FRONT_BYTES + Header.BYTES;
  private static final int PAYLOAD_AT = META_AT + 4;
  private final EmbeddedChannel channel = new EmbeddedChannel();
  private final byte[] block;
  private final List<String> outcomes = new ArrayList<>();
  private final byte[] arena = new byte[16];

  SinkPlaceTest() throws IOException {
    block = golden("letter");
  }

  @Override
  public void announced(int behind) {
    equal(2, behind);
  }

  @Override
  public void arrived(Header header, byte[] meta) {
    outcomes.add("arrived " + header.payloadBytes());
  }

  @Override
  public void failed(BridgeException error) {
    outcomes.add(error.code.name());
  }

  private Sink sink(int... windows) {
    List<ByteBuffer> target = new ArrayList<>();
    int at = 0;
    for (int window : windows) {
      target.add(ByteBuffer.wrap(arena, at, window).slice());
      at += window;
    }
    byte[] wanted = Arrays.copyOfRange(block, Handout.FRONT_BYTES, META_AT);
    return new Sink(wanted, 6, target, new Intake(channel), this);
  }

  private void feed(Sink sink, int from, int to) {
    sink.onData("s", ByteBuffer.wrap(block, from, to - from));
  }

  private String arenaText() {
    return new String(arena, 0, 8, StandardCharsets.US_ASCII);
  }

  /** Reads the payload as the network does: into what the sink lends, so many bytes at a time. */
  private void readInPlace(Sink sink, int step) {
    int at = PAYLOAD_AT;
    while (at < block.length) {
      ByteBuffer lent = sink.lend(step);
      int count = lent.remaining();
      lent.put(block, at, count).flip();
      sink.lent(count);
      sink.onData("s", lent);
      at += count;
    }
  }

  void aPayloadThatWasReadIntoItsPlaceIsOnlyChecked() {
    for (int step = 1; step <= 9; step++) {
      Arrays.fill(arena, (byte) 0);
      outcomes.clear();
      Sink sink = sink(3, 1, 4, 2);
      check(sink.lend(step) == null, "no place before the header");
      feed(sink, 0, PAYLOAD_AT - 1);
      check(sink.lend(step) == null, "no place before the payload");
      feed(sink, PAYLOAD_AT - 1, PAYLOAD_AT);
      readInPlace(sink, step);
      check(sink.lend(step) == null, "no place after the payload");
      sink.onComplete("s");
      equal(List.of("arrived 8"), outcomes);
      equal("payload!", arenaText());
    }
  }

  void aReadThatGotNothingLeavesThePlaceAsItWas() {
    Sink sink = sink(8);
    feed(sink, 0, PAYLOAD_AT);
    sink.lend(8);
    sink.lent(0);
    feed(sink, PAYLOAD_AT, block.length);
    sink.onComplete("s");
    equal(List.of("arrived 8"), outcomes);
    equal("payload!", arenaText());
  }

  void aChangedBitIsFoundInPlaceToo() {
    block[block.length - 1] ^= 1;
    Sink sink = sink(8);
    feed(sink, 0, PAYLOAD_AT);
    readInPlace(sink, 3);
    sink.onComplete("s");
    equal(List.of("CORRUPT"), outcomes);
  }

  void aPayloadThatIsTooLongHasNoPlace() {
    Sink sink = sink(7);
    feed(sink, 0, PAYLOAD_AT);
    check(sink.lend(100) == null, "it is not written");
  }

  void cancelWaitsForTheReadThatIsUnderWay() throws InterruptedException {
    Sink sink = sink(8);
    feed(sink, 0, PAYLOAD_AT);
    sink.lend(8);
    Thread other = new Thread(sink::cancel);
    other.start();
    while (other.getState() != Thread.State.TIMED_WAITING) {
      Thread.onSpinWait();
    }
    sink.lent(8);
    other.join();
    check(sink.lend(8) == null, "no more places");
  }

  void whoseReadDoesNotEndLosesItsConnection() {
    Sink sink = sink(8);
    feed(sink, 0, PAYLOAD_AT);
    sink.lend(8);
    sink.cancel(Deadline.afterMs(20));
    check(!channel.isOpen(), "nothing more is read");
  }
}
