package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.golden;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.channels.Channels;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;

final class LetterboxTest {
  private final Letterbox box = new Letterbox();
  private final LetterboxBuffer buffer = new LetterboxBuffer(box);

  LetterboxTest() {
    buffer.serve();
  }

  private static Letter letter(String payload) throws IOException {
    Header header = Header.of(Arrays.copyOf(golden("block_small"), Header.BYTES));
    byte[] bytes = payload.getBytes(StandardCharsets.US_ASCII);
    return new Letter(header, "meta".getBytes(StandardCharsets.US_ASCII),
        List.of(ByteBuffer.wrap(bytes)), null);
  }

  /** What the network would send: the size is asked for first, and twice for a stream. */
  private byte[] read() throws IOException {
    equal(buffer.size(), buffer.size());
    long size = buffer.size();
    ByteArrayOutputStream out = new ByteArrayOutputStream();
    buffer.toNetty().transferTo(Channels.newChannel(out), 0);
    equal(size, (long) out.size());
    return out.toByteArray();
  }

  private static String payload(byte[] read) {
    return new String(read, read.length - 8, 8, StandardCharsets.US_ASCII);
  }

  void theNthReadingHandsOutTheNthLetterWithHowManyAreBehind() throws IOException {
    box.add(letter("payload1"));
    box.add(letter("payload2"));
    box.add(letter("payload!"));
    byte[] first = read();
    equal("payload1", payload(first));
    equal(2, (int) first[0]);
    equal("payload2", payload(read()));
    byte[] last = read();
    last[0] = 2;
    equal(golden("letter"), last);
  }

  void theBellIsRungOnlyForAReaderThatKnowsOfNoLetter() throws IOException {
    check(box.add(letter("payload1")), "it knows of none");
    check(!box.add(letter("payload2")), "it will read the first, and be told then");
    equal(1, (int) read()[0]);
    check(!box.add(letter("payload3")), "it knows of the second");
    equal(1, (int) read()[0]);
    equal(0, (int) read()[0]);
    check(box.add(letter("payload4")), "it has read all that it knew of");
    check(!box.add(letter("payload5")), "one ring is enough");
  }

  void aDroppedLetterKeepsItsTurn() throws IOException {
    Letter dropped = letter("payload1");
    box.add(dropped);
    box.add(letter("payload2"));
    dropped.drop();
    byte[] first = read();
    equal(Handout.FRONT_BYTES, first.length);
    equal(1, (int) first[0]);
    check(!Handout.isPresent(ByteBuffer.wrap(first)), "it is not there");
    equal("payload2", payload(read()));
  }

  void whoReadsWithoutBeingToldIsHandedNothingAndHarmsNobody() throws IOException {
    equal(new byte[Handout.FRONT_BYTES], read());
    check(box.add(letter("payload1")), "still rung");
    equal("payload1", payload(read()));
  }

  void sparksBooksSeeNoSizeAndTakeNothingOut() throws IOException {
    box.add(letter("payload1"));
    buffer.retire();
    equal(0L, buffer.size());
    buffer.serve();
    equal("payload1", payload(read()));
  }
}
