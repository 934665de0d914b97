from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mizzle.errors import ConfigError
from mizzle.training.loss_log import LossLog
from mizzle.training.state import pack_state, unpack_state

ENTRIES = st.lists(st.tuples(st.floats(), st.booleans(), st.integers(0, 2)), max_size=40)


def log_of(entries: list[tuple[float, bool, int]], first: int = 0) -> LossLog:
    log = LossLog()
    for number, (loss, skipped, dropped) in enumerate(entries, start=first):
        log.append(number, loss, skipped=skipped, dropped_shards=dropped, dropped_rows=7 * dropped)
    return log


def same(one: LossLog, other: LossLog) -> bool:
    alike = one.skipped == other.skipped and one.dropped == other.dropped and len(one) == len(other)
    return alike and one.losses.tobytes() == other.losses.tobytes()


@settings(deadline=None)
@given(ENTRIES, st.integers(0, 2**40))
def test_a_log_travels_bit_for_bit_and_goes_on(entries: list[tuple[float, bool, int]], first: int) -> None:
    log = log_of(entries, first)
    raw = log.pack()
    assert len(raw) <= 16 + 9 * len(entries) + 16 * len(log.dropped)
    back = LossLog.unpack(raw)
    assert same(back, log)
    kept = LossLog()
    kept.load_state(*unpack_state(bytearray(pack_state(*log.state()))))
    assert same(kept, log)
    for one in (log, back):
        one.append(first + len(entries), 0.5, skipped=True)
    assert same(back, log)
    assert back.skipped[-1] == first + len(entries)


def test_a_log_of_any_length_survives_in_a_state_whose_length_seldom_changes() -> None:
    lengths = set()
    log = LossLog()
    for iteration in range(1500):
        log.append(iteration, math.sin(iteration), skipped=iteration % 7 == 0)
        tensors, scalars = log.state()
        lengths.add(sum(tensor.nbytes for tensor in tensors.values()))
    assert lengths == {9 * 512, 9 * 1024, 9 * 2048}
    assert log.losses.tolist() == [math.sin(iteration) for iteration in range(1500)]
    raw = pack_state(*log.state())

    log.append(1500, 1.0, skipped=True)  # what is lost when a group is run again
    again = LossLog()
    for one in (again, log):
        tensors, scalars = unpack_state(bytearray(raw))
        one.load_state(tensors, scalars)
        tensors["log.losses"].zero_()
        assert len(one) == 1500
        assert one.losses[1499] == math.sin(1499)
        assert one.skipped == list(range(0, 1500, 7))


def test_a_gap_is_a_fault() -> None:
    log = log_of([(1.0, False, 0)], first=5)
    assert log.first == 5
    with pytest.raises(AssertionError, match="iteration 7 after 5"):
        log.append(7, 1.0, skipped=False)


@pytest.mark.parametrize("raw", [b"", b"abc", log_of([(1.0, False, 0)] * 9).pack()[:-1], LossLog().pack() + b"0"])
def test_bytes_that_are_no_log_are_refused(raw: bytes) -> None:
    with pytest.raises(ConfigError, match=f"{len(raw)} bytes given as a log of losses are not one"):
        LossLog.unpack(raw)


def test_the_state_of_a_log_holds_no_copy() -> None:
    log = log_of([(1.0, False, 0)])
    tensors, _ = log.state()
    assert torch.equal(tensors["log.losses"][:1], torch.ones(1, dtype=torch.float64))
    assert tensors["log.losses"].data_ptr() == log.losses.ctypes.data
