"""The slots of a node that are in use, and its last sign of life, with a clock that the test moves."""

from __future__ import annotations

from sshgrid.model import Sample
from sshgrid.node.liveness import Liveness, LoadHistory
from sshgrid.node.slots import Share, SlotUse
from tests.service.node.manual_clock import ManualClock


def test_share_of_a_run_is_in_use_until_the_run_has_ended() -> None:
    slots = SlotUse(ManualClock().clock)
    slots.begin("a", Share(2, (0, 3)))
    slots.begin("b")
    assert (slots.in_use, sorted(slots.gpus_in_use)) == (3, [0, 3])
    slots.end("a")
    slots.end("a")
    assert (slots.in_use, slots.gpus_in_use, list(slots.running)) == (1, frozenset(), ["b"])


def test_released_run_stays_without_slots() -> None:
    slots = SlotUse(ManualClock().clock)
    slots.begin("a")
    slots.release("a")
    assert (slots.in_use, list(slots.running)) == (0, ["a"])


def test_slots_taken_and_freed_after_a_moment_are_counted() -> None:
    clock = ManualClock()
    slots = SlotUse(clock.clock)
    slots.begin("a", Share(3))
    clock.now += 1
    moment = clock.now
    clock.now += 1
    slots.begin("b", Share(2))
    slots.end("a")
    assert (slots.taken_since(moment), slots.freed_since(moment)) == (2, 3)
    assert slots.taken_since(0.0) == 5


def test_uptime_continues_from_the_last_sign_of_life() -> None:
    clock = ManualClock()
    liveness = Liveness(clock.clock)
    liveness.seen(50.0)
    clock.now += 7
    assert (liveness.silent_seconds(), liveness.uptime_now(), liveness.last_seen) == (7.0, 57.0, clock.now - 7)


def test_cpu_use_is_known_from_the_second_sample_on() -> None:
    load = LoadHistory()
    assert load.add(Sample(1.0, 10.0, None, 0.0, 1))
    assert load.add(Sample(2.0, 11.0, 0.5, 0.0, 1))
    assert not load.add(Sample(3.0, 12.0, 0.25, 0.0, 1))
    assert list(load.busy_minute) == [0.5, 0.25]
    load.clear()
    assert (load.sample, list(load.busy_minute)) == (None, [])
