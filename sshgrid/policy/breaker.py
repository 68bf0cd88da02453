"""When a node may be dialled again after a failure, and when it may be given new runs again after losing some.

Two small circuit breakers as values: each event gives the next value, the time and the dice are passed in. Refuses to
forget a refused login for less than a minute, because sshd punishes those who insist (PerSourcePenalties).
"""

from __future__ import annotations

import enum
from random import Random

from sshgrid.errors import HostError, HostKeyChanged, HostKeyUnknown, LoginRefused, NodeUnfit
from sshgrid.model import Struct

DIAL_FIRST_SECONDS = 1.0
DIAL_MAX_SECONDS = 30.0
REFUSED_SECONDS = (60.0, 300.0)  # first refusal, every further one
CHANGED_KEY_SECONDS = 300.0  # only a person can mend it; looking seldom costs nothing
UNFIT_SECONDS = (15.0, 60.0, 300.0)  # no shell, disk full: it answers, so asking each second helps nobody

LOSSES = 3
LOSS_WINDOW_SECONDS = 600.0
SAME_LOSS_SECONDS = 5.0  # one crash ends many runs: what ends together was lost once
QUARANTINE_FIRST_SECONDS = 30.0
QUARANTINE_MAX_SECONDS = 1800.0


class BreakerState(enum.StrEnum):
    """What may be done with a node that failed."""

    CLOSED = "closed"  # it works, as far as we know
    OPEN = "open"  # leave it alone until next_try
    HALF_OPEN = "half-open"  # one dial will tell


class Breaker(Struct, frozen=True):
    """Dials of one node. Ask allows(), say dialling(), then succeeded() or failed()."""

    failures: int = 0  # in a row
    refusals: int = 0  # of those, by its login or its host key
    next_try: float = 0.0
    dial_pending: bool = False  # the one dial of half-open

    def state(self, now: float) -> BreakerState:
        if not self.failures:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.next_try else BreakerState.HALF_OPEN

    def allows(self, now: float) -> bool:
        """May it be dialled now?"""
        state = self.state(now)
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and not self.dial_pending)

    def dial_started(self) -> Breaker:
        return Breaker(self.failures, self.refusals, self.next_try, dial_pending=True)

    def failed(self, now: float, cause: HostError, rng: Random, max_pause_seconds: float = DIAL_MAX_SECONDS) -> Breaker:
        """`longest`: how long a silent node is left alone at most."""
        refused = isinstance(cause, LoginRefused | HostKeyUnknown | HostKeyChanged)
        failures, refusals = self.failures + 1, self.refusals + refused
        pause = _pause(cause, failures, refusals, rng, max_pause_seconds)
        return Breaker(failures, refusals, now + pause)

    def succeeded(self) -> Breaker:
        return Breaker()


def _pause(cause: HostError, failures: int, refusals: int, rng: Random, max_pause_seconds: float) -> float:
    match cause:
        case HostKeyChanged():
            return _longer(CHANGED_KEY_SECONDS, rng)
        case NodeUnfit():
            return _longer(UNFIT_SECONDS[min(failures, len(UNFIT_SECONDS)) - 1], rng)
        case _ if refusals:
            # Also when the failure itself is a closed port: that is how a penalised source sees sshd.
            return _longer(REFUSED_SECONDS[min(refusals, len(REFUSED_SECONDS)) - 1], rng)
        case _:
            ceiling = min(max_pause_seconds, DIAL_FIRST_SECONDS * 2.0 ** min(failures - 1, 30))
            return rng.uniform(0.0, ceiling)


def _longer(seconds: float, rng: Random) -> float:
    """Spread upwards only: the pause is a promise to sshd."""
    return seconds * rng.uniform(1.0, 1.1)


class Quarantine(Struct, frozen=True):
    """Runs lost by one node: after three losses in ten minutes no new run for a while, then one to prove itself."""

    losses: tuple[float, ...] = ()  # times, oldest first
    rounds: int = 0  # quarantines without a good run in between
    until: float = 0.0

    def run_lost(self, now: float) -> Quarantine:
        """A run was lost to this node while running. Not for a job that loses every node it touches."""
        if self.losses and now - self.losses[-1] < SAME_LOSS_SECONDS:
            return self
        losses = (*(at for at in self.losses if now - at <= LOSS_WINDOW_SECONDS), now)[-LOSSES:]
        if len(losses) < LOSSES and not self.rounds:
            return Quarantine(losses, self.rounds, self.until)
        pause = min(QUARANTINE_MAX_SECONDS, QUARANTINE_FIRST_SECONDS * 2.0 ** min(self.rounds, 30))
        return Quarantine(losses, self.rounds + 1, now + pause)

    def run_ended(self) -> Quarantine:
        """A run ended there as runs should, whatever its exit code."""
        return Quarantine() if self.rounds else self

    def slot_limit(self, now: float) -> int | None:
        """How many runs it may have at once: None = no limit of ours, 0 in quarantine, 1 until it has proved itself."""
        if not self.rounds:
            return None
        return 0 if now < self.until else 1
