"""What to expect of the tasks of a sweep, and which slots are worth another one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.sweeps.estimates import Outlook, RuntimeEstimate, Slot, rest_seconds, slot_in_use

seconds = st.floats(0.001, 1000)
weights = st.floats(0.1, 10)
slots = st.builds(Slot, seconds, st.floats(0, 1000))


def test_nothing_is_expected_of_a_sweep_of_which_nothing_has_ended() -> None:
    assert RuntimeEstimate().seconds("h1", 1.0) is None


def test_a_node_that_has_run_nothing_is_as_fast_as_its_weight_says() -> None:
    pace = RuntimeEstimate()
    pace.learn("h1", 1.0, 2.0)
    assert pace.seconds("h2", 0.5) == pytest.approx(4.0)
    assert pace.seconds("h3", 2.0) == pytest.approx(1.0)


def test_what_a_node_shows_counts_more_than_its_weight() -> None:
    pace = RuntimeEstimate()
    for _ in range(50):
        pace.learn("h1", 1.0, 1.0)
        pace.learn("slow", 1.0, 9.0)
    slow = pace.seconds("slow", 1.0)
    assert slow is not None
    assert 8.5 < slow < 9.0


@given(st.lists(st.tuples(st.sampled_from("abc"), weights, seconds), min_size=1), st.sampled_from("abcd"), weights)
def test_what_is_expected_lies_between_what_was_seen(
    tasks: list[tuple[str, float, float]], node: str, weight: float
) -> None:
    pace = RuntimeEstimate()
    for task in tasks:
        pace.learn(*task)
    expected = pace.seconds(node, weight)
    assert expected is not None
    bounds = [took * own / weight for _, own, took in tasks] + [took for name, _, took in tasks if name == node]
    assert min(bounds) * 0.999 <= expected <= max(bounds) * 1.001


def test_a_task_that_is_late_may_take_as_long_again() -> None:
    assert [rest_seconds(10, ran) for ran in (0, 4, 10, 25)] == [10, 6, 0, 25]
    assert slot_in_use(10, 4) == Slot(10, 6)
    assert slot_in_use(10, 15) == Slot(10, 0)
    assert slot_in_use(10, 21) is None


def test_a_slow_node_gets_the_tasks_that_the_others_would_end_later() -> None:
    fast, slow = Slot(1.0), Slot(4.0)
    outlook = Outlook([fast, fast, slow])
    assert [outlook.worth(slow, waiting) for waiting in (1, 2, 7, 8, 100)] == [False, False, True, True, True]
    assert all(outlook.worth(fast, waiting) for waiting in (1, 2, 7))


def test_a_slow_node_that_is_free_beats_a_fast_one_that_is_busy() -> None:
    slow = Slot(4.0)
    assert Outlook([Slot(1.0, 10.0), slow]).worth(slow, 1)
    assert not Outlook([Slot(1.0, 2.0), slow]).worth(slow, 1)


@given(st.lists(slots, min_size=1), st.integers(1, 10_000))
def test_some_slot_is_always_worth_it(found: list[Slot], waiting: int) -> None:
    outlook = Outlook(found)
    assert any(outlook.worth(slot, waiting) for slot in found)


@given(st.lists(slots, min_size=1), st.integers(1, 1000))
def test_what_is_worth_it_stays_so_with_more_tasks_waiting(found: list[Slot], waiting: int) -> None:
    outlook = Outlook(found)
    for slot in found:
        assert outlook.worth(slot, waiting + 1) >= outlook.worth(slot, waiting)
