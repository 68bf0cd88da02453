"""How long the tasks of a sweep take, and whether a slow node is worth another one.

Nobody says beforehand how long a task runs, and nodes differ: what ended tells what to expect. Pure arithmetic; refuses
to expect anything of a sweep of which nothing has ended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sshgrid.model import Struct

# As if each node had shown twice what its weight promises: two samples of one node are not yet its speed.
PRIOR_SAMPLES = 2.0
# Of the last tasks each counts like this, however many there were.
NEWEST_SHARE = 0.02
# A task that runs for so many times what was expected may run for ever.
OVERDUE = 2.0


class _Mean:
    """Of all at first, then leaning towards the newest."""

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, value: float) -> None:
        self.count += 1
        self.value += (value - self.value) * max(1 / self.count, NEWEST_SHARE)


class RuntimeEstimate:
    """Of one sweep."""

    def __init__(self) -> None:
        self._work = _Mean()  # seconds on a node of weight 1
        self._nodes: dict[str, _Mean] = {}

    def learn(self, node: str, weight: float, seconds: float) -> None:
        """A task has run for so long there."""
        self._work.add(seconds * weight)
        self._nodes.setdefault(node, _Mean()).add(seconds)

    def seconds(self, node: str, weight: float) -> float | None:
        """What a task is expected to take there; None when nobody knows."""
        if not self._work.count:
            return None
        prior = self._work.value / weight
        own = self._nodes.get(node)
        if own is None:
            return prior
        return (own.value * own.count + prior * PRIOR_SAMPLES) / (own.count + PRIOR_SAMPLES)


class Slot(Struct, frozen=True):
    """A slot that a sweep has or might have: what a task takes there, and when it can begin."""

    takes_seconds: float
    free_in_seconds: float = 0.0

    @property
    def ends_in_seconds(self) -> float:
        return self.free_in_seconds + self.takes_seconds


def rest_seconds(takes_seconds: float, ran_seconds: float) -> float:
    """What a task that has run for so long may still take: once it is late, as long again as it has run."""
    return takes_seconds - ran_seconds if ran_seconds <= takes_seconds else ran_seconds


def slot_in_use(takes_seconds: float, ran_seconds: float) -> Slot | None:
    """The slot of a task under way; None when it is overdue, as nobody can count on it then."""
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
        """Whether a task that begins in this slot (one of them) ends before the others are done with all that wait.

        Near the end of a sweep a task on a slow node is what everybody waits for (list scheduling on related machines;
        Graham 1966, Gonzalez, Ibarra and Sahni 1977).
        """
        if slot.ends_in_seconds <= self._soonest:
            return True
        others = self._rate - 1 / slot.takes_seconds
        if others <= 0:
            return True
        return slot.ends_in_seconds <= self._soonest + (waiting - 1) / others
