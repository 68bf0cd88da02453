"""Durations and sizes: what is accepted, what is an error, and that formatted values can be parsed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.errors import UsageError
from sshgrid.notation.quantities import format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("10s", 10.0),
        ("5m", 300.0),
        ("2h", 7200.0),
        ("1d", 86400.0),
        ("0", 0.0),
        ("90", 90.0),
        ("1.5h", 5400.0),
        ("1h30m", 5400.0),
    ],
)
def test_parse_duration_accepts_each_unit_and_sums(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "s", "10 s", "-5s", "+5s", "1:30", "5min", "1e9s", "inf", "nan", "5S", "٣s", "10s\n", "1,5s", "9" * 400],
)
def test_an_invalid_duration_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_duration(text)
    assert "10s" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1k", 1024),
        ("512M", 512 * 1024**2),
        ("4G", 4 * 1024**3),
        ("4GiB", 4 * 1024**3),
        ("4GB", 4 * 1000**3),
        ("1.5K", 1536),
        ("2T", 2 * 1024**4),
    ],
)
def test_parse_size_follows_coreutils(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "4 G", "-1", "4X", "4iB", "0x10", "1e3", "4Gi", "4G\n"])
def test_an_invalid_size_is_an_error_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_size(text)
    assert "512M" in caught.value.hint


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.35, "350ms"),
        (0.9999, "1s"),
        (1.5, "1.5s"),
        (9.97, "10s"),
        (42, "42s"),
        (59.6, "1m"),
        (125, "2m5s"),
        (3600, "1h"),
        (11400, "3h10m"),
        (187200, "2d4h"),
        (-5, "-5s"),
    ],
)
def test_format_duration_uses_at_most_two_units(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0B"),
        (512, "512B"),
        (999, "999B"),
        (1000, "1K"),
        (1536, "1.5K"),
        (640 * 1024**2, "640M"),
        (31 * 1024**3, "31G"),
    ],
)
def test_format_size_uses_at_most_three_digits(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.floats(min_value=0, max_value=1e9))
def test_a_formatted_duration_parses_to_the_rounded_value(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=0.06, abs=0.001)


@given(st.integers(min_value=0, max_value=2**59))
def test_a_formatted_size_parses_to_the_rounded_value(size: int) -> None:
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.06, abs=1)
