"""Sizes and lengths of time as people write them."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vecdb.core.units import parse_bytes, parse_seconds


@pytest.mark.parametrize(("text", "value"), [
    ("0", 0), ("4GiB", 4 << 30), ("512MB", 512_000_000), ("1_000", 1000), ("12.5k", 12_500), (" 7 gib ", 7 << 30),
    ("1TiB", 1 << 40), ("64b", 64), ("999999999999999999", 999_999_999_999_999_999),
])
def test_sizes(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["", "x", "4 GB B", "-1", "1e9", "4XB", "inf", "1" + "0" * 18, "1..5k"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no size|above the largest"):
        parse_bytes(text)


@pytest.mark.parametrize(("text", "value"), [
    ("0", 0), ("30", 30), ("2.5", 2.5), ("30s", 30), ("500ms", 0.5), ("1h30m", 5400), ("90d", 7_776_000),
    ("5 min", 300), ("1h 30m", 5400), ("2w", 1_209_600),
])
def test_lengths_of_time(text: str, value: float) -> None:
    assert parse_seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "x", "1x", "-1", "nan", "inf", "1h30", "h", "s30"])
def test_no_lengths_of_time(text: str) -> None:
    with pytest.raises(ValueError, match="length of time"):
        parse_seconds(text)


@given(st.text(max_size=30))
def test_whatever_is_written_ends_in_a_value_or_a_value_error(text: str) -> None:
    for parse in (parse_bytes, parse_seconds):
        with suppress(ValueError):
            assert parse(text) >= 0
