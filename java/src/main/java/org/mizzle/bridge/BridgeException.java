package org.mizzle.bridge;

/** A refusal or fault that crosses the border to Python as one of a closed set of codes. */
final class BridgeException extends Exception {
  private static final long serialVersionUID = 1L;

  /** Codes on the wire; the Python client maps each to one exception class. */
  enum Code {
    TIMEOUT(1), PEER_LOST(2), CORRUPT(3), FENCED(4), EXISTS(5), NOT_FOUND(6), REFUSED(7), ARENA(8),
    /** A resident process has died. */
    GONE(9),
    /** No connection to a peer comes about, whose executor the driver takes to be there. */
    UNREACHABLE(10);

    final int wire;

    Code(int wire) {
      this.wire = wire;
    }
  }

  final Code code;
  /** The rank at fault, or -1. */
  final int rank;

  BridgeException(Code code, String message) {
    this(code, message, -1);
  }

  BridgeException(Code code, String message, int rank) {
    super(message);
    this.code = code;
    this.rank = rank;
  }
}
