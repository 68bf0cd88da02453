"""Two circuit breakers of a node: `Breaker` decides when it is dialed again, `Quarantine` when it gets new runs again.

Both are values: each event returns the next value, and the time and the random numbers are arguments. After a refused
login the pause is at least a minute, because sshd punishes a source that retries sooner (PerSourcePenalties).
"""

from __future__ import annotations

import enum
from random import Random

from sshgrid.errors import HostError, HostKeyChanged, HostKeyUnknown, LoginRefused, NodeUnfit
from sshgrid.model import Struct

DIAL_FIRST_SECONDS = 1.0
DIAL_MAX_SECONDS = 30.0
REFUSED_SECONDS = (60.0, 300.0)  # after the first refusal, after each further one
CHANGED_KEY_SECONDS = 300.0  # only a user can solve it, so there is no hurry
UNFIT_SECONDS = (15.0, 60.0, 300.0)  # no shell, disk full: such a problem lasts for minutes

LOSSES = 3
LOSS_WINDOW_SECONDS = 600.0
SAME_LOSS_SECONDS = 5.0  # one crash ends many runs: losses this close together count once
QUARANTINE_FIRST_SECONDS = 30.0
QUARANTINE_MAX_SECONDS = 1800.0


class BreakerState(enum.StrEnum):
    """Whether a node may be dialed."""

    CLOSED = "closed"  # yes: it has not failed
    OPEN = "open"  # not before next_try
    HALF_OPEN = "half-open"  # once: the result closes or opens the breaker


class Breaker(Struct, frozen=True):
    """The dials of one node. Call allows(), then dial_started(), then succeeded() or failed()."""

    failures: int = 0  # in a row
    refusals: int = 0  # those of the failures that were a refused login or a wrong host key
    next_try: float = 0.0
    dial_pending: bool = False  # the one dial that half-open allows has started

    def state(self, now: float) -> BreakerState:
        if not self.failures:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.next_try else BreakerState.HALF_OPEN

    def allows(self, now: float) -> bool:
        """Whether the node may be dialed now."""
        state = self.state(now)
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and not self.dial_pending)

    def dial_started(self) -> Breaker:
        return Breaker(self.failures, self.refusals, self.next_try, dial_pending=True)

    def failed(self, now: float, cause: HostError, rng: Random, max_pause_seconds: float = DIAL_MAX_SECONDS) -> Breaker:
        """The breaker after a failed dial. `max_pause_seconds` limits the pause of an unreachable node."""
        refused = isinstance(cause, LoginRefused | HostKeyUnknown | HostKeyChanged)
        failures, refusals = self.failures + 1, self.refusals + refused
        pause = _pause(cause, failures, refusals, rng, max_pause_seconds)
        return Breaker(failures, refusals, now + pause)

    def succeeded(self) -> Breaker:
        return Breaker()


def _pause(cause: HostError, failures: int, refusals: int, rng: Random, max_pause_seconds: float) -> float:
    match cause:
        case HostKeyChanged():
            return _lengthen(CHANGED_KEY_SECONDS, rng)
        case NodeUnfit():
            return _lengthen(UNFIT_SECONDS[min(failures, len(UNFIT_SECONDS)) - 1], rng)
        case _ if refusals:
            # An unreachable port counts too: sshd drops connections of a source that it penalises.
            return _lengthen(REFUSED_SECONDS[min(refusals, len(REFUSED_SECONDS)) - 1], rng)
        case _:
            ceiling = min(max_pause_seconds, DIAL_FIRST_SECONDS * 2.0 ** min(failures - 1, 30))
            return rng.uniform(0.0, ceiling)


def _lengthen(seconds: float, rng: Random) -> float:
    """Add up to 10 percent: many masters must not dial in step, and none may dial too early."""
    return seconds * rng.uniform(1.0, 1.1)


class Quarantine(Struct, frozen=True):
    """The lost runs of one node: three losses in ten minutes stop new runs for a while; then it gets one as a probe."""

    losses: tuple[float, ...] = ()  # times, oldest first
    rounds: int = 0  # quarantines since the last run that ended normally
    until: float = 0.0

    def run_lost(self, now: float) -> Quarantine:
        """The value after the node lost a run. Do not call it for a job that has lost several nodes: see retry."""
        if self.losses and now - self.losses[-1] < SAME_LOSS_SECONDS:
            return self
        losses = (*(at for at in self.losses if now - at <= LOSS_WINDOW_SECONDS), now)[-LOSSES:]
        if len(losses) < LOSSES and not self.rounds:
            return Quarantine(losses, self.rounds, self.until)
        pause = min(QUARANTINE_MAX_SECONDS, QUARANTINE_FIRST_SECONDS * 2.0 ** min(self.rounds, 30))
        return Quarantine(losses, self.rounds + 1, now + pause)

    def run_ended(self) -> Quarantine:
        """The value after a run ended on the node, with any exit code."""
        return Quarantine() if self.rounds else self

    def slot_limit(self, now: float) -> int | None:
        """The most slots that may be in use: 0 in quarantine, 1 after it until a run ends, None = not limited."""
        if not self.rounds:
            return None
        return 0 if now < self.until else 1
