package org.mizzle.bridge;

import java.io.IOException;
import java.nio.file.Path;
import java.util.List;

/**
 * What one session holds: an arena, and in it a place in a group. One at a time of each, and the
 * same session may claim and join again after it has left. Used by the session's thread alone.
 */
final class Rank {
  private final Bridge bridge;
  private Arena arena;
  private Trade trade;

  Rank(Bridge bridge) {
    this.bridge = bridge;
  }

  /** Once before each group. */
  Frame.Builder claim(Frame frame) throws BridgeException {
    String run = frame.string();
    int preferred = frame.body.getInt();
    int boundary = frame.body.getInt();
    checkFree();
    releaseArena();
    arena = bridge.runs().claim(run, preferred, boundary, this);
    Frame.Builder out = new Frame.Builder().u32(arena.rank()).blob(arena.label());
    List<Region> regions = arena.regions();
    out.u16(regions.size());
    regions.forEach(region -> describe(out, region));
    return out;
  }

  private void checkFree() throws BridgeException {
    if (trade != null) {
      throw new BridgeException(BridgeException.Code.REFUSED, "leave the group first");
    }
  }

  private static void describe(Frame.Builder out, Region region) {
    out.u32(region.number).string(region.name).u64(region.size).string(region.path.toString());
  }

  private Arena arena() throws BridgeException {
    if (arena == null) {
      throw new BridgeException(BridgeException.Code.REFUSED, "claim an arena first");
    }
    return arena;
  }

  /** The trade of the group that was joined; legal between join and leave. */
  Trade trade() throws BridgeException {
    if (trade == null) {
      throw new BridgeException(BridgeException.Code.REFUSED, "join a group first");
    }
    return trade;
  }

  /** Memory that the worker made; from the answer on it may let go of its own descriptor. */
  Frame.Builder region(Frame frame) throws BridgeException {
    String name = frame.string();
    Path source = Path.of(frame.string());
    if (!Region.isMemory(source, bridge.directory())) {
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
  Frame.Builder join(Frame frame, Admission.Patience patience)
      throws BridgeException, IOException {
    checkFree();
    Admission admission = new Admission(bridge, arena(), frame);
    byte[] table = admission.await(patience);
    trade = new Trade(bridge, arena, admission.member());
    return new Frame.Builder().raw(table);
  }

  Frame.Builder fence(Frame frame) {
    String run = frame.string();
    int generation = frame.body.getInt();
    bridge.runs().fence(run, generation);
    bridge.residents().supersede(run, generation);
    return new Frame.Builder();
  }

  /** Tells every peer that this rank gives up. */
  void abort(String why) {
    if (trade != null) {
      new Farewell(bridge.peers(), trade.member()).abort(why);
    }
  }

  /** The group is over for this rank, and its arena free for the next one to claim it. */
  Frame.Builder leave() {
    if (trade != null) {
      trade.member().leave(
          new BridgeException(BridgeException.Code.FENCED, "the rank has left its group"));
      trade = null;
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
    abort("its Python worker ended within a group");
    leave();
  }
}
