from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mizzle.cli.sizes import format_size, parse_size
from mizzle.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("100B", 100), ("1KB", 1024), ("1.5kb", 1536), ("28MB", 28_000_000), (" 102.4 MB ", 102_400_000),
     ("1GB", 1_000_000_000)],
)  # fmt: skip
def test_a_kilobyte_is_1024_bytes_and_the_larger_units_are_powers_of_ten(text: str, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize("text", ["", "28", "MB", "-1MB", "1e3KB", "28MiB", "twenty MB", "1KB 2KB"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is no size") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["0MB", "1.5B", "0.0001KB"])
def test_a_size_of_no_whole_number_of_bytes_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="whole number of bytes"):
        parse_size(text)


@given(st.integers(min_value=1, max_value=10**11))
@example(12_345_678 * 1024)
@example(987_654_300_000)
def test_a_size_that_is_shown_reads_back_as_itself(num_bytes: int) -> None:
    assert parse_size(format_size(num_bytes)) == num_bytes


def test_usual_sizes_are_shown_as_they_are_written() -> None:
    assert [format_size(parse_size(text)) for text in ("1KB", "1MB", "28MB", "102.4MB", "100B")] == [
        "1KB", "1MB", "28MB", "102.4MB", "100B",
    ]  # fmt: skip
