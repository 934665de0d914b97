package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.golden;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;

final class SinkTest implements Sink.Outcome {
  private final byte[] block;
  private final List<String> outcomes = new ArrayList<>();
  private final byte[] arena = new byte[16];

  SinkTest() throws IOException {
    block = golden("block_small");
  }

  @Override
  public void arrived(Header header, byte[] meta) {
    outcomes.add("arrived " + new String(meta, StandardCharsets.US_ASCII) + " "
        + header.payloadBytes());
  }

  @Override
  public void failed(BridgeException error) {
    outcomes.add(error.code + " of " + error.rank);
  }

  private Sink sink(int... windows) {
    List<ByteBuffer> target = new ArrayList<>();
    int at = 0;
    for (int window : windows) {
      target.add(ByteBuffer.wrap(arena, at, window).slice());
      at += window;
    }
    return new Sink(Arrays.copyOf(block, Header.BYTES), 6, target, this);
  }

  private static void feed(Sink sink, byte[] bytes, int step) {
    for (int at = 0; at < bytes.length; at += step) {
      ByteBuffer part = ByteBuffer.wrap(bytes, at, Math.min(step, bytes.length - at));
      sink.onData("s", part);
      check(!part.hasRemaining(), "all is taken");
    }
  }

  private String arenaText(int length) {
    return new String(arena, 0, length, StandardCharsets.US_ASCII);
  }

  void aBlockArrivesHoweverItIsCutAndWhateverTheWindows() {
    for (int step = 1; step <= block.length; step++) {
      Arrays.fill(arena, (byte) 0);
      outcomes.clear();
      Sink sink = sink(3, 1, 4, 2);
      feed(sink, block, step);
      sink.onComplete("s");
      sink.onComplete("s");
      equal(List.of("arrived meta 8"), outcomes);
      equal("payload!", arenaText(8));
      equal(0, (int) arena[8]);
    }
  }

  void aBlockThatIsNotTheOneAskedForIsRefusedAndNothingWritten() {
    byte[] wanted = Arrays.copyOf(block, Header.BYTES);
    wanted[24]++;
    Sink sink = new Sink(wanted, 6, List.of(ByteBuffer.wrap(arena)), this);
    feed(sink, block, 50);
    sink.onComplete("s");
    equal(List.of("CORRUPT of 6"), outcomes);
    equal(new byte[16], arena);
  }

  void anyChangedBitOfTheBodyIsFound() {
    for (int bit = 0; bit < 8 * 12; bit++) {
      outcomes.clear();
      byte[] changed = block.clone();
      changed[Header.BYTES + bit / 8] ^= (byte) (1 << bit % 8);
      Sink sink = sink(8);
      feed(sink, changed, 17);
      sink.onComplete("s");
      equal(List.of("CORRUPT of 6"), outcomes);
    }
  }

  void aPayloadThatIsTooLongIsToldAndNotWritten() {
    Sink sink = sink(7);
    feed(sink, block, 10);
    sink.onComplete("s");
    equal(List.of("arrived meta 8"), outcomes);
    equal(new byte[16], arena);
  }

  void aBlockThatIsCutShortOrTooLongIsRefused() {
    for (int length : new int[] {0, 10, 64, 66, 70, block.length - 1, block.length + 1}) {
      outcomes.clear();
      Sink sink = sink(8);
      feed(sink, Arrays.copyOf(block, length), 1000);
      sink.onComplete("s");
      equal(List.of("CORRUPT of 6"), outcomes);
    }
  }

  void aBrokenConnectionIsALostPeer() {
    Sink sink = sink(8);
    feed(sink, Arrays.copyOf(block, 66), 66);
    sink.onFailure("s", new IOException("reset"));
    sink.onFailure("s", new IOException("reset"));
    equal(List.of("PEER_LOST of 6"), outcomes);
  }

  void afterCancelNothingIsWrittenOrTold() {
    Sink sink = sink(8);
    feed(sink, Arrays.copyOf(block, 70), 70);
    check(sink.cancel(), "it was under way");
    byte[] before = arena.clone();
    feed(sink, Arrays.copyOfRange(block, 70, block.length), 3);
    sink.onComplete("s");
    sink.onFailure("s", new IOException("late"));
    equal(before, arena);
    equal(List.of(), outcomes);
    check(!sink.cancel(), "it had ended");
  }
}
