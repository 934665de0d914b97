"""Run in the namespace of a switch: hands frames from a port to another interface and back, each a little later.

The kernel's own delay (`tc ... netem`) is not in every kernel. Frames keep their order, as in a network of long cables
with queues.

Usage: late_link.py PORT OTHER DELAY_MS JITTER_MS
"""

from __future__ import annotations

import random
import select
import socket
import sys
import time
from collections import deque

ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR = 263, 15
"""From linux/if_packet.h. Between two veth devices frames are up to 64 KB long, and their checksums are to be filled in
later: only with this header in front does the kernel know, of a frame that comes back, what is left to do."""
LARGEST = 1 << 17


class Way:
    """Frames from one interface to another."""

    def __init__(self, source: socket.socket, sink: socket.socket, delay_s: float, jitter_s: float) -> None:
        """None is under way."""
        self.source, self._sink = source, sink
        self._delay_s, self._jitter_s = delay_s, jitter_s
        self._chance = random.Random(source.fileno())  # noqa: S311 - nobody has to guess it
        self._due: deque[tuple[float, bytes]] = deque()

    def take(self) -> None:
        """The next frame that has come."""
        frame, (_, _, kind, *_) = self.source.recvfrom(LARGEST)
        if kind == socket.PACKET_OUTGOING:
            return  # our own
        at = time.monotonic() + self._delay_s + self._chance.uniform(-1, 1) * self._jitter_s
        self._due.append((max(at, self._due[-1][0]) if self._due else at, frame))

    def pass_on(self) -> float | None:
        """What is due; seconds until the next is, None: nothing is under way."""
        while self._due:
            left = self._due[0][0] - time.monotonic()
            if left > 0:
                return left
            self._sink.send(self._due.popleft()[1])
        return None


def interface(name: str) -> socket.socket:
    """All frames that come in there, and the way out."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    opened.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 24)
    opened.bind((name, 0))
    return opened


def main(port: str, other: str, delay_ms: float, jitter_ms: float) -> None:
    """Until it is killed."""
    ends = interface(port), interface(other)
    ways = [Way(*pair, delay_ms / 1e3, jitter_ms / 1e3) for pair in (ends, ends[::-1])]
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        waits = [left for way in ways if (left := way.pass_on()) is not None]
        ready, _, _ = select.select(ends, [], [], min(waits, default=1.0))
        for way in ways:
            if way.source in ready:
                way.take()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
