"""Runtime estimates of the tasks of a sweep, and which slots are worth a task."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.model import AttemptRecord, Usage
from sshgrid.sweeps.estimates import (
    SHORTEST_SECONDS,
    START_COST_SECONDS,
    Outlook,
    RuntimeEstimate,
    Slot,
    TaskRuntimes,
    rest_seconds,
    slot_in_use,
)

seconds = st.floats(0.001, 1000)
weights = st.floats(0.1, 10)
slots = st.builds(Slot, seconds, st.floats(0, 1000))


def test_there_is_no_estimate_before_a_task_has_ended() -> None:
    assert RuntimeEstimate().seconds("h1", 1.0) is None


def test_a_node_without_ended_tasks_is_estimated_by_its_weight() -> None:
    estimate = RuntimeEstimate()
    estimate.learn("h1", 1.0, 2.0)
    assert estimate.seconds("h2", 0.5) == pytest.approx(4.0)
    assert estimate.seconds("h3", 2.0) == pytest.approx(1.0)


def test_measured_runtimes_outweigh_the_weight_of_a_node() -> None:
    estimate = RuntimeEstimate()
    for _ in range(50):
        estimate.learn("h1", 1.0, 1.0)
        estimate.learn("slow", 1.0, 9.0)
    slow = estimate.seconds("slow", 1.0)
    assert slow is not None
    assert 8.5 < slow < 9.0


@given(st.lists(st.tuples(st.sampled_from("abc"), weights, seconds), min_size=1), st.sampled_from("abcd"), weights)
def test_an_estimate_lies_between_the_measured_runtimes(
    tasks: list[tuple[str, float, float]], node: str, weight: float
) -> None:
    estimate = RuntimeEstimate()
    for task in tasks:
        estimate.learn(*task)
    expected = estimate.seconds(node, weight)
    assert expected is not None
    bounds = [took * own / weight for _, own, took in tasks] + [took for name, _, took in tasks if name == node]
    assert min(bounds) * 0.999 <= expected <= max(bounds) * 1.001


def test_a_late_task_is_expected_to_take_as_long_again() -> None:
    assert [rest_seconds(10, ran) for ran in (0, 4, 10, 25)] == [10, 6, 0, 25]
    assert slot_in_use(10, 4) == Slot(10, 6)
    assert slot_in_use(10, 15) == Slot(10, 0)
    assert slot_in_use(10, 21) is None


def test_a_slow_node_gets_only_tasks_that_the_others_would_end_later() -> None:
    fast, slow = Slot(1.0), Slot(4.0)
    outlook = Outlook([fast, fast, slow])
    assert [outlook.worth(slow, waiting) for waiting in (1, 2, 7, 8, 100)] == [False, False, True, True, True]
    assert all(outlook.worth(fast, waiting) for waiting in (1, 2, 7))


def test_a_free_slow_node_beats_a_busy_fast_one() -> None:
    slow = Slot(4.0)
    assert Outlook([Slot(1.0, 10.0), slow]).worth(slow, 1)
    assert not Outlook([Slot(1.0, 2.0), slow]).worth(slow, 1)


@given(st.lists(slots, min_size=1), st.integers(1, 10_000))
def test_at_least_one_slot_is_worth_a_task(found: list[Slot], waiting: int) -> None:
    outlook = Outlook(found)
    assert any(outlook.worth(slot, waiting) for slot in found)


@given(st.lists(slots, min_size=1), st.integers(1, 1000))
def test_a_slot_stays_worth_it_when_more_tasks_wait(found: list[Slot], waiting: int) -> None:
    outlook = Outlook(found)
    for slot in found:
        assert outlook.worth(slot, waiting + 1) >= outlook.worth(slot, waiting)


def ended(seconds: float, batch: str = "", measured: float | None = None) -> AttemptRecord:
    """An attempt on h1 that took `seconds` by the master's clock, and `measured` by the node's."""
    usage = Usage() if measured is None else Usage(started=100.0, ended=100.0 + measured)
    return AttemptRecord(1, "h1", 50.0, batch=batch, ended=50.0 + seconds, usage=usage)


def test_the_start_of_a_run_is_not_part_of_its_runtime() -> None:
    runtimes = TaskRuntimes({})
    runtimes.learn(ended(2.0))
    assert runtimes.expected_seconds == pytest.approx(2.0 - START_COST_SECONDS / 2)
    runtimes.learn(ended(0.0))
    assert (runtimes.seconds_on("h1") or 0.0) > SHORTEST_SECONDS


def test_runtimes_measured_by_a_node_replace_those_of_single_runs() -> None:
    runtimes = TaskRuntimes({})
    for _ in range(10):
        runtimes.learn(ended(5.0))
    runtimes.learn(ended(9.0, batch="b", measured=0.5))
    assert runtimes.expected_seconds == pytest.approx(0.5)
    assert runtimes.seconds_on("h1") == pytest.approx(0.5)


def test_a_longer_task_raises_the_expectation_faster_than_a_shorter_one_lowers_it() -> None:
    runtimes = TaskRuntimes({})
    runtimes.learn(ended(0.0, batch="b", measured=2.0))
    runtimes.learn(ended(0.0, batch="b", measured=4.0))
    assert runtimes.expected_seconds == pytest.approx(3.0)
    runtimes.learn(ended(0.0, batch="b", measured=1.0))
    assert runtimes.expected_seconds == pytest.approx(2.6)


def test_the_runtime_on_another_node_follows_its_weight() -> None:
    runtimes = TaskRuntimes({"h1": 1.0, "h2": 2.0})
    runtimes.learn(ended(0.0, batch="b", measured=2.0))
    assert runtimes.seconds_on("h2") == pytest.approx(1.0)
