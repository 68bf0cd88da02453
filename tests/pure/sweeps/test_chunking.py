"""How many tasks of a sweep share a start, and which tasks start next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.sweeps.chunking import BATCH_SECONDS, GROWTH, LONG_SECONDS, MAX_BATCH_TASKS, UnstartedTasks, batch_size


@pytest.mark.parametrize(
    ("expected_seconds", "unstarted", "ended", "slots", "size"),
    [
        (None, 1000, 0, 4, 1),  # the first tasks start alone
        (LONG_SECONDS + 1, 1000, 100, 4, 0),  # a long task needs no batch
        (0.1, 10_000, 1000, 4, 30),  # as many as run for BATCH_SECONDS
        (0.001, 100_000, 10_000, 4, MAX_BATCH_TASKS),
        (0.001, 100_000, 1, 4, GROWTH),  # after one task the estimate is not reliable
        (0.1, 40, 1000, 4, 5),  # each slot gets half of its share of what is left
        (0.1, 4, 1000, 4, 2),  # fewer are not worth a start each
        (5.0, 1000, 100, 4, 1),
    ],
)
def test_a_batch_runs_for_some_seconds_and_leaves_tasks_for_other_slots(
    expected_seconds: float | None, unstarted: int, ended: int, slots: int, size: int
) -> None:
    assert batch_size(expected_seconds, unstarted, ended, slots) == size


@given(st.floats(0.002, LONG_SECONDS), st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 1000))
def test_a_batch_has_at_least_one_task_and_keeps_all_limits(seconds: float, left: int, ended: int, slots: int) -> None:
    size = batch_size(seconds, left, ended, slots)
    assert 1 <= size <= min(MAX_BATCH_TASKS, GROWTH * ended)
    assert size == 1 or size * seconds <= BATCH_SECONDS


def test_tasks_start_in_the_order_of_their_numbers_and_returned_ones_first() -> None:
    tasks = UnstartedTasks(range(1, 11), 10)
    assert tasks.first(3) == [1, 2, 3]
    for number in (1, 2, 3):
        tasks.remove(number)
    tasks.add_first([3, 2])
    assert (tasks.first(3), len(tasks)) == ([2, 3, 4], 9)


def test_removing_a_task_twice_counts_once() -> None:
    tasks = UnstartedTasks(range(1, 4), 3)
    tasks.first(3)
    tasks.remove(2)
    tasks.remove(2)
    assert (tasks.first(10), len(tasks)) == ([1, 3], 2)


def test_numbers_are_read_only_when_they_are_needed() -> None:
    read: list[int] = []
    tasks = UnstartedTasks((read.append(number) or number for number in range(1, 1000)), 999)  # type: ignore[func-returns-value]
    tasks.first(2)
    assert read == [1, 2]
