package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;
import static org.mizzle.bridge.RunTests.equal;
import static org.mizzle.bridge.RunTests.fails;
import static org.mizzle.bridge.RunTests.golden;

import java.io.IOException;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.List;
import java.util.zip.CRC32C;

final class HeaderTest {
  private static final String RUN = "000102030405060708090a0b0c0d0e0f";

  private static Header header(byte[] block) {
    return Header.of(Arrays.copyOf(block, Header.BYTES));
  }

  void everyFieldOfTheGoldenBlockIsRead() throws IOException {
    byte[] block = golden("block_small");
    Header header = header(block);
    check(header.isIntact(), "intact");
    equal(RUN, header.run());
    equal(3, header.generation());
    equal(6, header.source());
    equal(4, header.metaBytes());
    equal(8L, header.payloadBytes());
    equal(new Moment(11, 4), header.moment());
    CRC32C crc = new CRC32C();
    crc.update(block, Header.BYTES, block.length - Header.BYTES);
    check(header.bodyMatches(crc), "body");
    crc.update(0);
    check(!header.bodyMatches(crc), "another body");
  }

  void namesAreSpeltAsInPython() throws IOException {
    equal("test_mizzle." + RUN + ".3.11.4.2.7.5.6.00000000000000ab",
        header(golden("block_small")).name(0xab));
    equal("test_mizzle." + RUN
        + ".4294967295.18446744073709551615.65535.2.7.5.6.ffffffffffffffff",
        header(golden("block_largest_numbers")).name(-1));
    equal("test_mizzle-bell.r.4294967295.ffffffffffffffff.3", new Group("r", -1, 0).bell(-1, 3));
  }

  void sealingGivesTheGoldenChecksums() throws IOException {
    byte[] block = golden("block_small");
    byte[] unsealed = Arrays.copyOf(block, Header.BYTES);
    Arrays.fill(unsealed, 52, Header.BYTES, (byte) 0);
    Header header = Header.of(unsealed);
    check(!header.isIntact(), "not sealed yet");
    header.seal(Arrays.copyOfRange(block, 64, 68), List.of(ByteBuffer.wrap(block, 68, 8)));
    equal(Arrays.copyOf(block, Header.BYTES), header.bytes());
  }

  void everyBitButTheTypeIsComparedWithWhatWasAskedFor() throws IOException {
    byte[] block = Arrays.copyOf(golden("block_small"), Header.BYTES);
    for (int bit = 0; bit < 8 * Header.BYTES; bit++) {
      byte[] other = block.clone();
      other[bit / 8] ^= (byte) (1 << bit % 8);
      check(!Header.of(other).isIntact(), "bit " + bit + " is covered by a checksum");
      boolean told = bit / 8 < 40 && bit / 8 != 38;
      equal(!told, Header.of(other).hasIdentity(block));
    }
  }

  void anotherLengthIsRefused() {
    fails(IllegalArgumentException.class, () -> Header.of(new byte[63]));
  }

  void momentsAreOrderedAsUnsignedNumbers() {
    check(new Moment(1, 9).compareTo(new Moment(2, 0)) < 0, "iteration first");
    check(new Moment(1, 1).compareTo(new Moment(1, 2)) < 0, "then op");
    check(new Moment(-1, 0).compareTo(new Moment(5, 0)) > 0, "unsigned");
  }
}
