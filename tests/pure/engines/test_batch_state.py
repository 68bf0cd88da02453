"""The state of a batch: what its owner and its engine note, and what follows from it."""

from __future__ import annotations

import pytest

from sshgrid.clock import Clock
from sshgrid.engines.batch_state import BatchState


class Time:
    def __init__(self) -> None:
        self.now = 100.0
        self.clock = Clock(lambda: self.now, lambda: self.now)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def state(time: Time) -> BatchState[int]:
    return BatchState({"a": 1, "b": 2, "c": 3}, keep_warm=True, clock=time.clock)


def test_a_resumed_batch_takes_no_more() -> None:
    assert BatchState({"a": 1}).takes_more
    assert not BatchState({"a": 1}, resumed=True).takes_more


def test_runs_behind_the_first_are_those_that_neither_join_nor_leave(state: BatchState[int]) -> None:
    state.join({"d": 4, "e": 5})
    state.leaving.add("b")
    assert (state.is_first("a"), state.is_first("b"), state.behind()) == (True, False, ["c"])
    assert state.settled() == ["a", "b", "c"]
    state.joined(["d"])
    assert (state.behind(), state.settled()) == (["c", "d"], ["a", "b", "c", "d"])


def test_a_removed_run_is_nowhere(state: BatchState[int]) -> None:
    state.join({"d": 4})
    state.leaving.add("d")
    state.begin(["d"])
    state.remove(["d", "unknown"])
    assert (state.rest, state.joining, state.leaving, state.begun_at) == ({"a": 1, "b": 2, "c": 3}, set(), set(), {})


def test_a_start_is_news_once(state: BatchState[int], time: Time) -> None:
    assert not state.has_begun
    time.now = 105.0
    assert state.begin(["a", "unknown"]) == ["a"]
    time.now = 107.0
    assert state.begin(["a"]) == []
    assert (state.has_begun, state.ran_seconds) == (True, 2.0)
    assert (state.begun_before(104.9), state.begun_before(105.0)) == ([], ["a"])


def test_a_batch_is_idle_when_all_runs_have_ended_and_it_is_kept_warm(state: BatchState[int]) -> None:
    assert (state.all_ended, state.idle) == (False, False)
    state.remove(["a", "b", "c"])
    assert (state.all_ended, state.idle) == (True, True)
    state.close()
    assert (state.all_ended, state.idle, state.takes_more) == (True, False, False)
