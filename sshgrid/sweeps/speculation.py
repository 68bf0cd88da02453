"""Which running task of a sweep gets a speculative attempt, and on which node.

As the backup tasks of MapReduce (Dean and Ghemawat, "MapReduce: Simplified Data Processing on Large Clusters", OSDI
2004, section 3.6): when no task waits, the tasks that still run may run a second time elsewhere, and the first result
counts. The choice follows LATE (Zaharia et al., "Improving MapReduce Performance in Heterogeneous Environments", OSDI
2008): the task with the longest time to its end, on a node that is not slow itself. A program reports no progress, so
its expected runtime is what the other tasks took (sweeps.estimates).

Pure. A node that failed the task, or where it runs, is never chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

from sshgrid.model import JobId, Struct
from sshgrid.sweeps.estimates import rest_seconds

START_SECONDS = 0.5  # what an attempt takes beside its program
CLEARLY = 1.5  # a task must take this many times as long as its speculative attempt


class UnderWay(Struct, frozen=True):
    """A task that runs and has had no speculative attempt."""

    task: JobId
    node: str
    takes_seconds: float  # expected on its node
    ran_seconds: float
    barred: frozenset[str] = frozenset()  # nodes that failed it

    @property
    def rest_seconds(self) -> float:
        return rest_seconds(self.takes_seconds, self.ran_seconds)


class FreeSlot(Struct, frozen=True):
    """A node that can take one more run now."""

    node: str
    takes_seconds: float  # expected when the task has a core for itself
    crowding: float = 1.0  # a task takes this many times as long, because cores are busy

    @property
    def ends_in_seconds(self) -> float:
        return START_SECONDS + self.takes_seconds * self.crowding


class SpeculationChoice(Struct, frozen=True):
    """A speculative attempt that is worth its slot."""

    task: JobId
    node: str


def choose(running: Sequence[UnderWay], slots: Sequence[FreeSlot]) -> SpeculationChoice | None:
    """The speculative attempt to start next; None when none is worth a slot."""
    for task in sorted(running, key=lambda task: task.rest_seconds, reverse=True):
        others = [slot for slot in slots if slot.node != task.node and slot.node not in task.barred]
        best = min(others, key=lambda slot: slot.ends_in_seconds, default=None)
        if best and best.ends_in_seconds * CLEARLY < task.rest_seconds:
            return SpeculationChoice(task.task, best.node)
    return None
