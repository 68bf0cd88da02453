"""How long the tasks of a sweep take, and whether a task should start on a slow node.

Users do not say how long a task runs, and nodes differ in speed: both are learnt from the tasks that have ended. There
is no estimate for a sweep of which no task has ended. Pure arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from sshgrid.model import AttemptRecord, Struct

START_COST_SECONDS = 0.2  # what the start of a run takes beside its program
SHORTEST_SECONDS = 0.002  # a node's uptime has two decimals
# The share of the newest duration in the expected one, when it is shorter and when it is longer than that.
SHORTER_SHARE = 0.2
LONGER_SHARE = 0.5
# The weight of a node counts like this many tasks that ran there: a few tasks do not yet show its speed.
PRIOR_SAMPLES = 2.0
# The newest task counts for at least this share of the mean.
NEWEST_SHARE = 0.02
# A task that has run for this many times what was expected may never end.
OVERDUE = 2.0


class _Mean:
    """The mean of all values at first, then one that follows the newest values."""

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(1 / self.count, NEWEST_SHARE)


class RuntimeEstimate:
    """The expected runtime of a task of one sweep on each node."""

    def __init__(self) -> None:
        self._work = _Mean()  # seconds on a node of weight 1
        self._nodes: dict[str, _Mean] = {}

    def learn(self, node: str, weight: float, seconds: float) -> None:
        """Add a task that ran for `seconds` on a node of this weight."""
        self._work.add(seconds * weight)
        self._nodes.setdefault(node, _Mean()).add(seconds)

    def seconds(self, node: str, weight: float) -> float | None:
        """The expected seconds of a task on this node; None before any has ended."""
        if not self._work.count:
            return None
        prior = self._work.value / weight
        own = self._nodes.get(node)
        if own is None:
            return prior
        return (own.value * own.count + prior * PRIOR_SAMPLES) / (own.count + PRIOR_SAMPLES)


class TaskRuntimes:
    """What the tasks of one sweep take, learnt from attempts that ended. `weights` has the weight of each node."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self.expected_seconds: float | None = None  # rather too long than too short
        self._weights = weights
        self._estimate = RuntimeEstimate()
        self._measured_by_node = False

    def learn(self, record: AttemptRecord) -> None:
        """Learn from an attempt whose program has exited."""
        if record.batch and not self._measured_by_node:
            # The node measures the tasks of a batch; what was learnt before includes the start of each run.
            self._estimate, self.expected_seconds, self._measured_by_node = RuntimeEstimate(), None, True
        measured_here = (record.ended or 0.0) - record.began - START_COST_SECONDS / 2
        usage = record.usage
        seconds = usage.ended - usage.started if usage.ended else measured_here
        if not record.batch:  # the node counts whole seconds then
            seconds = min(seconds, measured_here)
        seconds = max(seconds, SHORTEST_SECONDS)
        self._estimate.learn(record.node, self._weights.get(record.node, 1.0), seconds)
        old = seconds if self.expected_seconds is None else self.expected_seconds
        # A longer task counts at once: a batch that is too large costs more than one that is too small.
        self.expected_seconds = old + (seconds - old) * (SHORTER_SHARE if seconds < old else LONGER_SHARE)

    def seconds_on(self, node: str) -> float | None:
        """The expected seconds of a task on this node; None before any has ended."""
        return self._estimate.seconds(node, self._weights.get(node, 1.0))


class Slot(Struct, frozen=True):
    """A slot that a sweep has or could have: what a task takes there, and when it can start."""

    takes_seconds: float
    free_in_seconds: float = 0.0

    @property
    def ends_in_seconds(self) -> float:
        return self.free_in_seconds + self.takes_seconds


def rest_seconds(takes_seconds: float, ran_seconds: float) -> float:
    """The expected rest of a task that has run for `ran_seconds`; once it is late, as long again as it has run."""
    return takes_seconds - ran_seconds if ran_seconds <= takes_seconds else ran_seconds


def slot_in_use(takes_seconds: float, ran_seconds: float) -> Slot | None:
    """The slot of a running task; None when the task is overdue, as its end cannot be predicted."""
    if ran_seconds > OVERDUE * takes_seconds:
        return None
    return Slot(takes_seconds, max(0.0, takes_seconds - ran_seconds))


class Outlook:
    """All slots of a sweep at one moment."""

    def __init__(self, slots: Iterable[Slot]) -> None:
        self._soonest = math.inf
        self._rate = 0.0  # tasks a second
        for slot in slots:
            self._soonest = min(self._soonest, slot.ends_in_seconds)
            self._rate += 1 / slot.takes_seconds

    def worth(self, slot: Slot, waiting: int) -> bool:
        """Whether a task that starts in this slot ends before the other slots have run all `waiting` tasks.

        `slot` is one of the slots of this outlook. Near the end of a sweep a task on a slow node delays the whole sweep
        (list scheduling on related machines; Graham 1966, Gonzalez, Ibarra and Sahni 1977).
        """
        if slot.ends_in_seconds <= self._soonest:
            return True
        others = self._rate - 1 / slot.takes_seconds
        if others <= 0:
            return True
        return slot.ends_in_seconds <= self._soonest + (waiting - 1) / others
