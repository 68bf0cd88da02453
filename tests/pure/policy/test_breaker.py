"""The circuit breakers: when a node is dialled again after failures, and when it gets runs again after losses."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.errors import Dropped, HostError, HostKeyChanged, HostKeyUnknown, LoginRefused, NodeUnfit, Unreachable
from sshgrid.policy.breaker import Breaker, BreakerState, Quarantine

SILENT, REFUSED = Unreachable("h1", "connection refused"), LoginRefused("h1", "key not taken")
CAUSES = [
    SILENT,
    REFUSED,
    HostKeyUnknown("h1", "never seen"),
    HostKeyChanged("h1", "another key"),
    Dropped("h1", "reset"),
    NodeUnfit("h1", "disk full"),
]


class Slowest(Random):
    """A generator that always returns the longest pause."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Quickest(Random):
    """A generator that always returns the shortest pause."""

    def uniform(self, a: float, b: float) -> float:
        return a


def pauses(*causes: HostError, rng: Random) -> list[float]:
    """The pause after each failure, when each dial starts as soon as the breaker allows it."""
    breaker, now, found = Breaker(), 0.0, []
    for cause in causes:
        breaker = breaker.dial_started().failed(now, cause, rng)
        found.append(breaker.next_try - now)
        now = breaker.next_try
    return found


# --- dialling ---------------------------------------------------------------------------------------------------------


def test_a_new_node_may_be_dialled() -> None:
    assert Breaker().state(0.0) is BreakerState.CLOSED
    assert Breaker().allows(0.0)


def test_one_failure_opens_the_breaker_until_the_pause_is_over() -> None:
    breaker = Breaker().failed(100.0, SILENT, Slowest())
    assert breaker.next_try == 101.0
    assert [breaker.allows(at) for at in (100.0, 100.9, 101.0)] == [False, False, True]
    assert [breaker.state(at) for at in (100.9, 101.0)] == [BreakerState.OPEN, BreakerState.HALF_OPEN]


def test_a_maximum_pause_limits_the_pause_of_a_silent_node_but_not_of_a_refused_login() -> None:
    silent, refused = Breaker(), Breaker()
    for _ in range(8):
        silent = silent.failed(100.0, SILENT, Slowest(), 1.0)
        refused = refused.failed(100.0, REFUSED, Slowest(), 1.0)
    assert silent.next_try == 101.0
    assert refused.next_try >= 400.0


def test_a_half_open_breaker_allows_one_dial() -> None:
    breaker = Breaker().failed(100.0, SILENT, Slowest()).dial_started()
    assert not breaker.allows(101.0)
    assert breaker.failed(101.0, SILENT, Slowest()).allows(103.0)


def test_a_successful_dial_resets_the_breaker() -> None:
    breaker = Breaker().failed(100.0, REFUSED, Slowest()).dial_started().succeeded()
    assert breaker == Breaker()


def test_F32_the_pause_of_a_silent_node_doubles_up_to_thirty_seconds() -> None:
    assert pauses(*[SILENT] * 7, rng=Slowest()) == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_the_pause_of_a_silent_node_has_full_jitter() -> None:
    """Otherwise all nodes behind a switch would be dialled at the same moment when it works again."""
    assert pauses(*[SILENT] * 7, rng=Quickest()) == [0.0] * 7


def test_F31_the_pause_after_a_refused_login_is_one_minute_and_then_five() -> None:
    assert pauses(*[REFUSED] * 3, rng=Quickest()) == [60.0, 300.0, 300.0]


def test_F31_a_closed_port_after_a_refused_login_keeps_the_pause_of_one_minute() -> None:
    """sshd drops the connection of a source that it penalises before the banner, as an unreachable host would."""
    assert pauses(REFUSED, SILENT, SILENT, rng=Quickest()) == [60.0, 60.0, 60.0]


def test_A20_the_pause_after_an_unknown_host_key_is_that_of_a_refused_login() -> None:
    assert pauses(*[HostKeyUnknown("h1", "never seen")] * 2, rng=Quickest()) == [60.0, 300.0]


def test_A21_the_pause_after_a_changed_host_key_is_five_minutes() -> None:
    assert pauses(*[HostKeyChanged("h1", "another key")] * 2, rng=Quickest()) == [300.0, 300.0]


def test_A13_the_pause_of_an_unfit_node_grows_from_15_seconds_to_five_minutes() -> None:
    assert pauses(*[NodeUnfit("h1", "nologin")] * 4, rng=Quickest()) == [15.0, 60.0, 300.0, 300.0]


@given(causes=st.lists(st.sampled_from(CAUSES), min_size=1, max_size=200), seed=st.integers(), start=st.floats(0, 2e9))
def test_any_sequence_of_failures_gives_a_pause_of_at_most_six_minutes(
    causes: list[HostError], seed: int, start: float
) -> None:
    breaker, rng = Breaker(), Random(seed)
    for cause in causes:
        breaker = breaker.failed(start, cause, rng)
        assert start <= breaker.next_try <= start + 360.0
        assert breaker.allows(breaker.next_try)
        assert breaker.allows(start) is (breaker.next_try <= start)


# --- quarantine -------------------------------------------------------------------------------------------------------


BOOT = 1000.0  # the tests count from here, so that no result depends on a clock that starts at 0


def after(*losses: float) -> Quarantine:
    node = Quarantine()
    for at in losses:
        node = node.run_lost(BOOT + at)
    return node


@pytest.mark.parametrize(
    ("losses", "slot_limit"),
    [
        ((), None),
        ((0.0, 100.0), None),
        ((0.0, 100.0, 200.0), 0),
        ((0.0, 100.0, 700.0), None),  # spread over more than ten minutes
        ((0.0, 300.0, 601.0, 850.0), 0),  # the last three are within ten minutes
        ((0.0, 300.0, 600.0), 0),  # within ten minutes to the second
        ((0.0, 1.0, 2.0), None),  # one crash that ended three runs
        ((0.0, 1.0, 5.0, 6.0, 10.0), 0),  # three crashes
    ],
)
def test_F39_three_losses_in_ten_minutes_start_a_quarantine(losses: tuple[float, ...], slot_limit: int | None) -> None:
    last = losses[-1] if losses else 0.0
    assert after(*losses).slot_limit(BOOT + last) == slot_limit


def test_F39_after_the_quarantine_the_node_has_one_slot_until_a_run_ends() -> None:
    node = after(0.0, 10.0, 20.0)
    assert [node.slot_limit(BOOT + at) for at in (20.0, 49.9, 50.0)] == [0, 0, 1]
    assert node.run_ended().slot_limit(BOOT + 50.0) is None


def test_F39_a_loss_after_the_quarantine_doubles_its_length_up_to_half_an_hour() -> None:
    node, spans = after(0.0, 10.0, 20.0), [30.0]
    for _ in range(8):
        now = node.until
        node = node.run_lost(now)
        spans.append(node.until - now)
    assert spans == [30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1800.0, 1800.0, 1800.0]


def test_F39_runs_that_end_between_the_losses_do_not_prevent_the_quarantine() -> None:
    node = Quarantine()
    for at in (0.0, 100.0, 200.0):
        node = node.run_ended().run_lost(at)
    assert node.slot_limit(200.0) == 0


@given(losses=st.lists(st.floats(0, 10_000), max_size=50).map(sorted))
def test_F39_a_quarantine_never_lasts_longer_than_half_an_hour(losses: list[float]) -> None:
    node = after(*losses)
    assert node.slot_limit(BOOT + 10_000.0 + 1800.0) in (None, 1)
    assert len(node.losses) <= 3
