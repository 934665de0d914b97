package org.mizzle.bridge;

import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.TimeUnit;
import org.slf4j.Logger;
import org.slf4j.LoggerFactory;

/** What one session does as a rank: holds an arena, joins a group, puts and fetches blocks. */
final class Rank {
  /** Where in a rank's "control" region the bridge notes a lost peer (rank + 1, little endian). */
  private static final int LOST_AT = 8;
  private static final long GRACE_MS = 500;
  private static final Logger LOG = LoggerFactory.getLogger(Rank.class);

  private final Bridge bridge;
  private volatile Arena arena;
  private volatile Member member;

  Rank(Bridge bridge) {
    this.bridge = bridge;
  }

  Frame.Builder claim(Frame frame) {
    String run = frame.string();
    int preferred = frame.body.getInt();
    releaseArena();
    arena = bridge.runs().claim(run, preferred, this);
    Frame.Builder out = new Frame.Builder().u32(arena.rank()).blob(arena.label());
    List<Region> regions = arena.regions();
    out.u16(regions.size());
    regions.forEach(region -> describe(out, region));
    return out;
  }

  private static void describe(Frame.Builder out, Region region) {
    out.u32(region.id).string(region.name).u64(region.size).string(region.path.toString());
  }

  private Arena arena() throws BridgeException {
    if (arena == null) {
      throw new BridgeException(BridgeException.Code.REFUSED, "claim an arena first");
    }
    return arena;
  }

  private Member member() throws BridgeException {
    Member joined = member;
    if (joined == null) {
      throw new BridgeException(BridgeException.Code.REFUSED, "join a group first");
    }
    bridge.runs().check(joined.run, joined.generation);
    return joined;
  }

  Frame.Builder region(Frame frame) throws BridgeException {
    String name = frame.string();
    Path source = Path.of(frame.string());
    boolean ours = source.startsWith("/proc") || source.startsWith(bridge.directory());
    if (!ours) {
      throw new BridgeException(BridgeException.Code.REFUSED, "no memory of a worker: " + source);
    }
    Frame.Builder out = new Frame.Builder();
    describe(out, arena().add(name, source, frame.body.getLong()));
    return out;
  }

  Frame.Builder label(Frame frame) throws BridgeException {
    arena().label(frame.blob());
    return new Frame.Builder();
  }

  /** Takes part in a group. Blocks this session only, until all ranks are there. */
  Frame.Builder join(Frame frame) throws BridgeException {
    Admission admission = new Admission(bridge, arena(), frame, this::noteLoss);
    member = admission.member();
    return new Frame.Builder().raw(admission.await());
  }

  void put(Frame frame) throws BridgeException {
    Member joined = member();
    Header header = Header.of(frame.bytes(Header.BYTES));
    bridge.runs().check(joined.run, header.generation());
    byte[] meta = frame.blob();
    List<Region> regions = new ArrayList<>();
    List<ByteBuffer> body = new ArrayList<>();
    if (meta.length > 0) {
      body.add(ByteBuffer.wrap(meta));
    }
    if (frame.body.get() != 0) {
      Region region = arena().acquire(frame.body.getInt());
      regions.add(region);
      body.addAll(region.range(frame.body.getLong(), frame.body.getLong()));
    }
    header.seal(body);
    body.add(0, ByteBuffer.wrap(header.bytes()));
    String name = header.name(joined.nonce);
    ArenaBuffer buffer = bridge.blocks().put(name, body);
    joined.stored(header.moment(), name, buffer, regions);
    bridge.counters().increment(Counters.Name.BLOCKS_PUT);
    bridge.counters().add(Counters.Name.BYTES_PUT, header.payloadBytes());
    int readers = Short.toUnsignedInt(frame.body.getShort());
    for (int i = 0; i < readers; i++) {
      ring(joined, Short.toUnsignedInt(frame.body.getShort()));
    }
  }

  private void ring(Member joined, int to) throws BridgeException {
    Member.Peer peer = joined.peer(to);
    bridge.counters().increment(Counters.Name.BELLS_RUNG);
    bridge.peers().ring(joined.client(to), peer.executorId(),
        Member.bell(joined.run, joined.generation, peer.nonce(), joined.rank()),
        error -> joined.lost(to, "it cannot be told of a block: " + error));
  }

  void fetch(Frame frame, Fetch.Asker asker) throws BridgeException {
    Member joined = member();
    long deadlineMs = Integer.toUnsignedLong(frame.body.getInt());
    Header wanted = Header.of(frame.bytes(Header.BYTES));
    bridge.runs().check(joined.run, wanted.generation());
    Region region = null;
    List<ByteBuffer> target = List.of();
    if (frame.body.get() != 0) {
      region = arena().acquire(frame.body.getInt());
      target = region.range(frame.body.getLong(), frame.body.getLong());
    }
    new Fetch(bridge, joined, wanted, region, target, asker).start(deadlineMs);
  }

  void drop(Frame frame) throws BridgeException {
    Moment before = new Moment(
        frame.body.getLong(), Short.toUnsignedInt(frame.body.getShort()));
    bridge.runs().remove(member().drop(before, bridge.blocks()));
  }

  Frame.Builder fence(Frame frame) {
    bridge.runs().fence(frame.string(), frame.body.getInt());
    return new Frame.Builder();
  }

  /** Tells every peer that this rank gives up. */
  void abort(String why) {
    Member joined = member;
    if (joined == null || joined.hasEnded()) {
      return;
    }
    leaveReason(joined, why);
    for (Member.Peer peer : joined.peers()) {
      if (peer.rank() != joined.rank()) {
        try {
          bridge.peers().ring(joined.client(peer.rank()), peer.executorId(), Member.alarm(
              joined.run, joined.generation, peer.nonce(), joined.rank()), error -> { });
        } catch (BridgeException e) {
          // Already known to be lost: it needs no telling.
          continue;
        }
      }
    }
    joined.end(new BridgeException(BridgeException.Code.PEER_LOST, why, joined.rank()));
  }

  private void leaveReason(Member joined, String why) {
    try {
      byte[] text = why.getBytes(StandardCharsets.UTF_8);
      bridge.blocks().put(Member.reason(joined.run, joined.generation, joined.nonce),
          List.of(ByteBuffer.wrap(text)));
    } catch (BridgeException e) {
      // The peers learn of the loss all the same, only not why.
      LOG.debug("no reason left behind", e);
    }
  }

  Frame.Builder leave() {
    if (member != null) {
      member.leave();
      member = null;
    }
    releaseArena();
    return new Frame.Builder();
  }

  private void releaseArena() {
    if (arena != null) {
      arena.unclaim(this);
      arena = null;
    }
  }

  /** The connection ended: a rank that did not leave first has died. */
  void gone() {
    if (member != null) {
      abort("its Python worker ended within a group");
      member.leave();
    }
    releaseArena();
  }

  /** A peer is lost: the worker is told where it watches, and soon all its waits end. */
  private void noteLoss(int peer, BridgeException error) {
    Member joined = member;
    Arena held = arena;
    if (joined == null || held == null || joined.hasLeft()) {
      return;
    }
    for (Region region : held.regions()) {
      if (region.name.equals("control")) {
        region.write(LOST_AT, peer + 1);
      }
    }
    bridge.timer().schedule(() -> joined.giveUpOn(error), GRACE_MS, TimeUnit.MILLISECONDS);
  }
}
