"""The order in which waiting jobs of several users are started."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence

from sshgrid.model import Job


def start_order(jobs: Sequence[Job], running_by_owner: Mapping[str, float]) -> list[Job]:
    """Priority, then fair share (fewest running first, counting the turns handed out here), then age."""
    shares = dict(running_by_owner)
    levels: dict[int, list[Job]] = {}
    for job in jobs:
        levels.setdefault(job.submission.priority, []).append(job)
    return [job for priority in sorted(levels, reverse=True) for job in _fair(levels[priority], shares)]


def shares(running: Mapping[str, int], served: Mapping[str, int], owners: Collection[str]) -> dict[str, float]:
    """What each owner runs; among equals, whose last turn (the number in `served`) is longest ago comes first.

    Without that, the owner of the oldest jobs would take every turn of a grid with a single slot.
    """
    recent = sorted(served, key=served.__getitem__)
    rank = {owner: place / (len(recent) + 1) for place, owner in enumerate(recent, 1)}
    return {owner: running.get(owner, 0) + rank.get(owner, 0.0) for owner in owners}


def _fair(jobs: Sequence[Job], shares: dict[str, float]) -> list[Job]:
    """Each turn goes to the owner with the fewest; a heap of owners makes 10,000 jobs a matter of milliseconds."""
    queues: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=_age, reverse=True):  # newest first: pop() then takes the oldest
        queues.setdefault(job.owner, []).append(job)
    heap = [(shares.get(owner, 0), _age(queue[-1]), owner) for owner, queue in queues.items()]
    heapq.heapify(heap)
    ordered = []
    while heap:
        count, _, owner = heap[0]
        queue = queues[owner]
        ordered.append(queue.pop())
        shares[owner] = count + 1
        if queue:
            heapq.heapreplace(heap, (count + 1, _age(queue[-1]), owner))
        else:
            heapq.heappop(heap)
    return ordered


def _age(job: Job) -> tuple[float, int]:
    return job.submitted, abs(job.id)  # ids of tasks are negative
