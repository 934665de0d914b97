package org.mizzle.bridge;

import static org.mizzle.bridge.RunTests.check;

import java.io.IOException;
import java.nio.BufferUnderflowException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.util.Arrays;
import java.util.List;
import java.util.Random;

/** Bytes that no sender of ours would send: they are refused in the ways that are foreseen. */
final class FuzzTest {
  private static final int ROUNDS = 100_000;
  private final Random dice = new Random(27);

  /** A valid message, cut, with bytes changed, or with something behind it. */
  private byte[] mutated(byte[] valid) {
    byte[] out = Arrays.copyOf(valid, dice.nextInt(3) > 0
        ? valid.length : dice.nextInt(valid.length + 20));
    for (int change = dice.nextInt(4); change > 0 && out.length > 0; change--) {
      out[dice.nextInt(out.length)] = (byte) (dice.nextBoolean() ? dice.nextInt(256) : -1);
    }
    return out;
  }

  private List<byte[]> questions() {
    Join join = new Join(new Group("r", 3, 4), 2, -1, List.of(1, 0), 6, "7", "h", 1, "id", "/c");
    return List.of(
        new Frame.Builder().u8(DriverSide.HELLO).string("7").string("host=h").body(),
        new Frame.Builder().u8(DriverSide.JOIN).raw(join.encode()).body(),
        new Frame.Builder().u8(DriverSide.WITHDRAW).raw(join.encode()).body(),
        new Frame.Builder().u8(DriverSide.LEASE).string("7").u32(2).string("r").string("s").body(),
        new Frame.Builder().u8(DriverSide.SUPERFLUOUS).string("r").u32(3).u64(9).body());
  }

  void theDriverRefusesWhatItDoesNotUnderstandAndGoesOn() {
    DriverSide driver = new DriverSide();
    driver.begin("r");
    List<byte[]> valid = questions();
    int understood = 0;
    for (int round = 0; round < ROUNDS; round++) {
      try {
        driver.receive(mutated(valid.get(dice.nextInt(valid.size()))));
        understood++;
      } catch (BufferUnderflowException | IllegalArgumentException e) {
        // Spark's RPC tells the sender.
        continue;
      }
    }
    check(understood > ROUNDS / 10 && understood < ROUNDS, understood + " were understood");
    valid.forEach(driver::receive);
  }

  void frameBordersAreFoundOrRefusedWhateverTheBytes() {
    byte[] valid = new Frame.Builder().raw(new byte[40]).frame(Session.PUT, 7).array();
    int frames = 0;
    for (int round = 0; round < ROUNDS; round++) {
      byte[] bytes = mutated(valid);
      ByteBuffer in = ByteBuffer.allocate(256).order(ByteOrder.LITTLE_ENDIAN).put(bytes);
      try {
        Frame frame = Frame.take(in);
        frames += frame == null ? 0 : 1;
        check(frame == null || frame.body.capacity() < bytes.length, "no more than was there");
      } catch (IOException e) {
        continue;
      }
    }
    check(frames > ROUNDS / 10, frames + " were whole");
  }
}
