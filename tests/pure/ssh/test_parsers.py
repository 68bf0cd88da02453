"""A node may say anything: what is no load sample is passed over."""

from __future__ import annotations

import pytest

from sshgrid.ssh.parsers import LoadMeter, parse_sizes


@pytest.mark.parametrize(
    "line", [b"", b"1 2 3", b"a b c d e", b"1 1 1 1 nan", b"1 1 1 1 inf", b"1 1 1 1 1 1", b"\xff\xfe", b"1 1 1 1 1e999"]
)
def test_a_line_that_is_no_sample_is_passed_over(line: bytes) -> None:
    assert LoadMeter(2).read(line, 0.0) is None


def test_the_second_sample_says_how_many_cores_were_busy() -> None:
    meter = LoadMeter(4)
    first, second = meter.read(b"10.5 0.25 100 300 2048", 1.0), meter.read(b"11.5 0.5 200 600 1024", 2.0)
    assert first is not None
    assert second is not None
    assert (first.busy_cores, second.busy_cores) == (None, 1.0)
    assert (second.load, second.uptime_seconds, second.memory_free_bytes) == (0.5, 11.5, 1 << 20)


def test_sizes_are_read_whatever_the_date_looks_like() -> None:
    output = b"""-rw------- 1 0 0 3000000000 Nov 26 16:32 1_7.1.out
-rw-r--r-- 1 1000 1000 0 2026-11-26 16:32 1_7.1.err
ls: cannot access '1_8.1.out': No such file or directory
"""
    assert parse_sizes(output) == {"1_7.1.out": 3_000_000_000, "1_7.1.err": 0}
