"""Second attempts at the last tasks of a sweep, with slots that nobody waits for.

Only asks and acts: whether a backup is worth it is decided in stragglers, which of two attempts counts in lifecycle.
Refuses a second backup of the same task.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from sshgrid.model import Job, job_text
from sshgrid.nodes import NodePool
from sshgrid.policy import placement
from sshgrid.policy.placement import NodeView
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.active_sweeps import ActiveSweeps
from sshgrid.scheduler.attempts import Attempts
from sshgrid.scheduler.sweep_state import SweepState
from sshgrid.sweeps.speculation import FreeSlot, UnderWay, choose

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25  # nothing wakes whoever waits for a task to take too long

Views: TypeAlias = Sequence[NodeView]


class SpeculativeAttempts:
    """`may_start`: whether this user may have one more run; `seen_by`: the nodes as this user finds them."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        pool: NodePool,
        attempts: Attempts,
        sweeps: ActiveSweeps,
        may_start: Callable[[str], bool],
        seen_by: Callable[[Views, str], Views],
    ) -> None:
        self._active_jobs = active_jobs
        self._pool = pool
        self._attempts = attempts
        self._sweeps = sweeps
        self._may_start = may_start
        self._seen_by = seen_by
        self._look_at = 0.0

    def begin(self, views: Views, now: float) -> float:
        """Begin what is worth it on what is free; seconds until another look that nothing else would cause."""
        sweeps = self._sweeps.with_stragglers()
        if not sweeps:
            return math.inf
        # While the last of many short tasks end, somebody looks for free slots hundreds of times a second.
        if (rest := self._look_at - time.monotonic()) > 0:
            return rest
        for state in sweeps:
            while node := self._begin_one(state, views, now):
                views = self._pool.renewed(views, node)
        self._look_at = time.monotonic() + LOOK_SECONDS
        return LOOK_SECONDS

    def _begin_one(self, state: SweepState, views: Views, now: float) -> str:
        """The node of a new backup; "" when there is none."""
        owner = state.job.owner
        if not state.may_begin or not self._may_start(owner):
            return ""
        free = placement.eligible(self._seen_by(views, owner), state.job.submission)
        choice = choose(self._under_way(state, now), list(_places(state, free)))
        if choice is None:
            return ""
        view = next(view for view in free if view.node.name == choice.node)
        return self._launch(self._active_jobs.current(choice.task), view, now)

    def _launch(self, task: Job, view: NodeView, now: float) -> str:
        gpus = tuple(placement.free_gpus(view)[: task.submission.gpus])
        begun = self._active_jobs.claims.begin_speculative(task, view.node.name, now, gpus)
        if begun is None:
            return ""
        log.info("task %s runs long on %s: a backup on %s", job_text(task.id), task.live[0].node, view.node.name)
        self._attempts.start(*begun)
        return view.node.name

    def _under_way(self, state: SweepState, now: float) -> list[UnderWay]:
        """Its tasks that really run, and never had a backup."""
        found = []
        for task in map(self._active_jobs.current, state.running):
            node = task.live[0].node
            takes, ran = state.seconds_on(node), self._attempts.ran_seconds(task, now)
            if takes is not None and ran is not None and not _had_backup(task) and not task.cancel_requested:
                found.append(UnderWay(task.id, node, takes, ran, task.excluded))
        return found


def _had_backup(task: Job) -> bool:
    return any(record.speculative and record.number > task.forgiven for record in task.attempts)


def _places(state: SweepState, free: Views) -> Iterator[FreeSlot]:
    """Nodes with what a run would take there. One whose load nobody knows is no place."""
    for view in free:
        takes, busy = state.seconds_on(view.node.name), placement.busy_cores(view)
        if takes is not None and busy is not None:
            yield FreeSlot(view.node.name, takes, max(1.0, (busy + 1) / placement.cores(view)))
