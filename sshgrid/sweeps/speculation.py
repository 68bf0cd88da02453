"""Which task at the end of a sweep gets a second attempt, where, and whether it is worth it.

As the backup tasks of MapReduce (Dean and Ghemawat, "MapReduce: Simplified Data Processing on Large Clusters", OSDI
2004, section 3.6): when nothing waits any more, what still runs may run once more elsewhere, and the first to end
counts. Whom to choose is the answer of LATE (Zaharia et al., "Improving MapReduce Performance in Heterogeneous
Environments", OSDI 2008): the task with the longest time to its end, and only on a node that is not slow itself. A
program shows no progress, so what is expected of it is what its siblings took (`pace`).

Pure. Refuses a node that failed the task, or where it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from sshgrid.model import JobId, Struct
from sshgrid.sweeps.estimates import rest_seconds

START_SECONDS = 0.5  # what an attempt takes beside its program
CLEARLY = 1.5  # times as long as there: only then a task is worth a second attempt


class UnderWay(Struct, frozen=True):
    """A task that runs, and has no backup."""

    task: JobId
    node: str
    takes_seconds: float  # what is expected of a task on its node
    ran_seconds: float
    barred: frozenset[str] = frozenset()  # nodes that failed it

    @property
    def rest_seconds(self) -> float:
        return rest_seconds(self.takes_seconds, self.ran_seconds)


class FreeSlot(Struct, frozen=True):
    """A node that would take one more run now."""

    node: str
    takes_seconds: float  # what is expected of a task that has a core for itself there
    crowding: float = 1.0  # times as long, as its cores are busy

    @property
    def ends_in_seconds(self) -> float:
        return START_SECONDS + self.takes_seconds * self.crowding


class SpeculationChoice(Struct, frozen=True):
    """A backup that is worth it."""

    task: JobId
    node: str


def choose(running: Sequence[UnderWay], places: Sequence[FreeSlot]) -> SpeculationChoice | None:
    """The next backup; None while none is worth it."""
    for task in sorted(running, key=lambda task: task.rest_seconds, reverse=True):
        others = [place for place in places if place.node != task.node and place.node not in task.barred]
        best = min(others, key=lambda place: place.ends_in_seconds, default=None)
        if best and best.ends_in_seconds * CLEARLY < task.rest_seconds:
            return SpeculationChoice(task.task, best.node)
    return None
