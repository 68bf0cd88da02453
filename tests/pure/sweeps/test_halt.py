"""When a sweep stops early."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.errors import UsageError
from sshgrid.model import Halt
from sshgrid.sweeps.halt import halts, max_fails, parse_halt


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("never", Halt()),
        ("now,fail=1", Halt("now", "fail", 1)),
        ("soon,fail=10%", Halt("soon", "fail", None, 10.0)),
        ("soon,fail=0.5%", Halt("soon", "fail", None, 0.5)),
        ("now,success=3", Halt("now", "success", 3)),
        ("soon,done=100%", Halt("soon", "done", None, 100.0)),
        ("0", Halt()),
        ("1", Halt("soon", "fail", 1)),
        ("2", Halt("now", "fail", 1)),
        ("-1", Halt("soon", "success", 1)),
        ("-2", Halt("now", "success", 1)),
        ("30%", Halt("soon", "fail", None, 30.0)),
    ],
)
def test_halt_conditions_are_parsed_as_in_gnu_parallel(text: str, expected: Halt) -> None:
    assert parse_halt(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "now", "soon,", "now,fail", "now,fail=", "now,fail=x", "now,fail=-1", "later,fail=1", "never,fail=1"),
        *(
            "now,fail=1.5",
            "now,fail=0",
            "now,fail=0%",
            "now,fail=101%",
            "0%",
            "3",
            "now,fails=1",
            " never",
            "now,fail=٣",
        ),
    ],
)
def test_an_invalid_halt_condition_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_halt(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "failed", "done", "total", "expected"),
    [
        ("never", 9, 9, 10, ""),
        ("now,fail=1", 0, 5, 10, ""),
        ("now,fail=1", 1, 1, 10, "now"),
        ("soon,fail=3", 2, 9, 10, ""),
        ("soon,fail=3", 3, 9, 10, "soon"),
        ("soon,fail=50%", 1, 1, 4, ""),  # of all tasks, not of those done
        ("soon,fail=50%", 2, 2, 4, "soon"),
        ("soon,fail=10%", 1, 1, 5, "soon"),
        ("soon,fail=0.07%", 6, 6, 10_000, ""),
        ("soon,fail=0.07%", 7, 7, 10_000, "soon"),
        ("now,success=2", 3, 4, 10, ""),
        ("now,success=2", 3, 5, 10, "now"),
        ("now,done=5", 5, 5, 10, "now"),
        ("now,done=100%", 0, 9, 10, ""),
        ("now,done=100%", 0, 10, 10, "now"),
        ("now,fail=1%", 0, 0, 0, ""),
    ],
)
def test_a_sweep_halts_when_its_condition_is_reached(
    text: str, failed: int, done: int, total: int, expected: str
) -> None:
    assert halts(parse_halt(text), failed, done, total) == expected


def test_one_failure_more_than_the_maximum_cancels_the_rest() -> None:
    assert halts(max_fails(2), 2, 9, 10) == ""
    assert halts(max_fails(2), 3, 9, 10) == "now"
    assert halts(max_fails(0), 1, 1, 10) == "now"
    with pytest.raises(UsageError):
        max_fails(-1)


@given(st.integers(1, 1000), st.floats(0.01, 100), st.data())
def test_a_met_condition_stays_met_with_more_failures(total: int, percent: float, data: st.DataObject) -> None:
    halt = Halt("soon", "fail", None, percent)
    failed = data.draw(st.integers(0, total - 1))
    assert not halts(halt, failed, failed, total) or halts(halt, failed + 1, failed + 1, total) == "soon"
