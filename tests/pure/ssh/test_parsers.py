"""Load samples and file sizes, as nodes print them."""

from __future__ import annotations

import pytest

from sshgrid.ssh.parsers import LoadMeter, parse_sizes


@pytest.mark.parametrize(
    "line", [b"", b"1 2 3", b"a b c d e", b"1 1 1 1 nan", b"1 1 1 1 inf", b"1 1 1 1 1 1", b"\xff\xfe", b"1 1 1 1 1e999"]
)
def test_line_that_is_not_a_sample_is_ignored(line: bytes) -> None:
    assert LoadMeter(2).read(line, 0.0) is None


def test_second_sample_has_the_number_of_busy_cores() -> None:
    meter = LoadMeter(4)
    first, second = meter.read(b"10.5 0.25 100 300 2048", 1.0), meter.read(b"11.5 0.5 200 600 1024", 2.0)
    assert first is not None
    assert second is not None
    assert (first.busy_cores, second.busy_cores) == (None, 1.0)
    assert (second.load, second.uptime_seconds, second.memory_free_bytes) == (0.5, 11.5, 1 << 20)


def test_sizes_are_parsed_with_any_date_format() -> None:
    output = b"""-rw------- 1 0 0 3000000000 Nov 26 16:32 1_7.1.out
-rw-r--r-- 1 1000 1000 0 2026-11-26 16:32 1_7.1.err
ls: cannot access '1_8.1.out': No such file or directory
"""
    assert parse_sizes(output) == {"1_7.1.out": 3_000_000_000, "1_7.1.err": 0}
