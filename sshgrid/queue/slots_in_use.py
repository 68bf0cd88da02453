"""The slots that running jobs use, with their owners and nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from sshgrid.model import Job


class SlotsInUse:
    """Computed from running jobs. The tasks of a batch share a slot; a speculative attempt has its own."""

    def __init__(self, running: Iterable[Job]) -> None:
        slots: dict[object, tuple[str, str]] = {}
        for job in running:
            newest = job.attempts[-1]
            for record in job.live if newest.speculative else (newest,):
                slots[record.batch or (job.id, record.number)] = (job.owner, record.node)
        self._owners_and_nodes = slots.values()

    def by_owner(self) -> Mapping[str, int]:
        """The number of slots of each user."""
        return Counter(owner for owner, _ in self._owners_and_nodes)

    def nodes_of(self, owner: str) -> list[str]:
        """The node of each slot of this user."""
        return [node for user, node in self._owners_and_nodes if user == owner]


def slot_of(job: Job) -> object:
    """A key for the slot of a job's current attempt. Tasks with the same key run one after the other in that slot."""
    return (job.current.batch if job.current else "") or job.id
