"""Which task at the end of a sweep gets a speculative attempt, and where."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.model import JobId
from sshgrid.sweeps.speculation import CLEARLY, START_SECONDS, FreeSlot, SpeculationChoice, UnderWay, choose

H1, H2, H3 = FreeSlot("h1", 10.0), FreeSlot("h2", 10.0), FreeSlot("h3", 10.0)
LATE = CLEARLY * (10.0 + START_SECONDS)


def task(number: int, ran: float, node: str = "h1", takes: float = 10.0, **rest: object) -> UnderWay:
    return msgspec.structs.replace(UnderWay(JobId(number), node, takes, ran), **rest)


def test_a_task_that_runs_much_longer_than_expected_gets_a_speculative_attempt() -> None:
    assert choose([task(1, LATE + 0.1)], [H2]) == SpeculationChoice(JobId(1), "h2")


def test_a_task_that_is_not_clearly_late_gets_none() -> None:
    assert choose([task(1, 9.9), task(2, 12.0), task(3, LATE - 0.1)], [H2]) is None


def test_a_task_gets_none_without_a_free_slot_on_another_node() -> None:
    assert choose([task(1, 1e6)], []) is None
    assert choose([task(1, 1e6)], [H1]) is None
    assert choose([task(1, 1e6, barred=frozenset({"h2"}))], [H1, H2]) is None


def test_the_task_with_the_longest_time_to_its_end_comes_first() -> None:
    assert choose([task(1, 40.0), task(2, 90.0), task(3, 60.0)], [H2]) == SpeculationChoice(JobId(2), "h2")
    assert choose([task(1, 40.0), task(2, 90.0, node="h2")], [H2]) == SpeculationChoice(JobId(1), "h2")


def test_a_task_on_a_slow_node_gets_one_before_it_is_late() -> None:
    assert choose([task(1, 5.0, takes=100.0)], [H2]) == SpeculationChoice(JobId(1), "h2")
    assert choose([task(1, 95.0, takes=100.0)], [H2]) is None  # it is about to end
    assert choose([task(1, 30.0, node="h2")], [FreeSlot("h1", 100.0)]) is None


def test_the_faster_of_two_free_nodes_is_chosen_and_a_crowded_one_counts_as_slow() -> None:
    slower, faster = FreeSlot("h2", 12.0), FreeSlot("h3", 8.0)
    crowded = msgspec.structs.replace(faster, crowding=3.0)
    assert choose([task(1, 60.0)], [slower, faster]) == SpeculationChoice(JobId(1), "h3")
    assert choose([task(1, 60.0)], [slower, crowded]) == SpeculationChoice(JobId(1), "h2")
    assert choose([task(1, 20.0)], [crowded]) is None


def test_a_short_task_that_is_a_moment_late_gets_none() -> None:
    assert choose([task(1, CLEARLY * START_SECONDS, takes=0.01)], [FreeSlot("h2", 0.01)]) is None


nodes = st.sampled_from(["h1", "h2", "h3"])
seconds = st.floats(0.001, 1e6)
tasks = st.lists(
    st.builds(
        UnderWay,
        task=st.integers(1, 9).map(JobId),
        node=nodes,
        takes_seconds=seconds,
        ran_seconds=st.floats(0, 1e6),
        barred=st.frozensets(nodes),
    ),
    unique_by=lambda each: each.task,
)
free = st.lists(
    st.builds(FreeSlot, node=nodes, takes_seconds=seconds, crowding=st.floats(1, 9)), unique_by=lambda slot: slot.node
)


@given(tasks, free)
def test_a_speculative_attempt_ends_clearly_earlier_on_another_node(
    running: list[UnderWay], slots: list[FreeSlot]
) -> None:
    choice = choose(running, slots)
    if choice is None:
        return
    (chosen,) = [each for each in running if each.task == choice.task]
    (slot,) = [each for each in slots if each.node == choice.node]
    assert choice.node not in chosen.barred | {chosen.node}
    assert slot.ends_in_seconds * CLEARLY < chosen.rest_seconds


@given(tasks, free, st.floats(1, 1e6))
def test_a_late_task_that_is_worth_one_stays_worth_it(
    running: list[UnderWay], slots: list[FreeSlot], more: float
) -> None:
    late = [each for each in running if each.ran_seconds > each.takes_seconds]
    if choose(late, slots):
        later = [msgspec.structs.replace(each, ran_seconds=each.ran_seconds + more) for each in late]
        assert choose(later, slots)


@given(tasks, free, st.data())
def test_a_less_crowded_node_prevents_no_speculative_attempt(
    running: list[UnderWay], slots: list[FreeSlot], data: st.DataObject
) -> None:
    if choose(running, slots):
        empty = [msgspec.structs.replace(slot, crowding=data.draw(st.floats(1.0, slot.crowding))) for slot in slots]
        assert choose(running, empty)
