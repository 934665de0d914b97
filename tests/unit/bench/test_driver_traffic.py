"""What the kernel says of the driver's connections, without a driver."""

from __future__ import annotations

import pytest

from mizzle.bench.driver_traffic import DriverTraffic, grown, outward_segments, parse_connections

SEEN = """\
0      0               127.0.0.1:50868          127.0.0.1:42839 users:(("java",pid=20,fd=4)) bbr data_segs_out:5 data_segs_in:3 bbr:(bw:1bps)
0      0      [::ffff:127.0.0.1]:42839 [::ffff:127.0.0.1]:50868 users:(("java",pid=31,fd=5),("x y",pid=32,fd=5)) data_segs_in:5
0      0      [::ffff:127.0.0.1]:7077 [::ffff:127.0.0.1]:60000 users:(("java",pid=20,fd=9)) cubic data_segs_out:7
0      0      127.0.0.1:60000 127.0.0.1:7077 users:(("java",pid=20,fd=8)) cubic data_segs_in:7
0      0      [::ffff:127.0.0.1]:25333 [::ffff:127.0.0.1]:60001 users:(("java",pid=20,fd=7)) cubic data_segs_in:900 data_segs_out:900
0      0      127.0.0.1:60001 127.0.0.1:25333 users:(("python",pid=10,fd=3)) cubic data_segs_in:900 data_segs_out:900
0      0      [2001:db8::1]:7078 [2001:db8::2]:60002 users:(("java",pid=20,fd=11)) cubic segs_out:99
0      0      127.0.0.1:22 127.0.0.1:60003 cubic data_segs_in:1
"""  # noqa: E501 - as ss prints it


def test_both_ends_of_a_connection_are_recognised_and_segments_with_data_counted() -> None:
    found = parse_connections(SEEN)
    assert len(found) == 8
    assert (found[0].local, found[0].peer, found[0].segments) == ("127.0.0.1:50868", "127.0.0.1:42839", 8)
    assert (found[1].local, found[1].peer) == (found[0].peer, found[0].local)
    assert found[1].pids == {31, 32}
    assert (found[6].segments, found[7].pids) == (0, frozenset())


def test_what_stays_on_the_drivers_side_is_not_counted() -> None:
    assert outward_segments(parse_connections(SEEN), 20, [20, 10]) == {
        ("127.0.0.1:50868", "127.0.0.1:42839"): 8,
        ("[2001:db8::1]:7078", "[2001:db8::2]:60002"): 0,
    }


def test_new_connections_count_in_full_and_closed_ones_not_at_all() -> None:
    assert grown({("a", "b"): 5, ("a", "c"): 100}, {("a", "b"): 7, ("a", "d"): 3}) == 5


def test_without_ss_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    traffic = DriverTraffic(1, frozenset((1,)))
    assert [traffic.since_last(), traffic.since_last()] == [None, None]
