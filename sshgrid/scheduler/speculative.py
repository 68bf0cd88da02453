"""Second attempts at the last tasks of a sweep, in slots that no other job waits for.

Whether one is worth it is decided in sweeps.speculation, and which of the two attempts counts in policy.retry. A task
gets at most one speculative attempt.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from sshgrid.clock import Clock
from sshgrid.model import Job, job_text
from sshgrid.nodes import NodePool
from sshgrid.policy import placement
from sshgrid.policy.placement import NodeView
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.active_sweeps import ActiveSweeps
from sshgrid.scheduler.attempts import Attempts
from sshgrid.scheduler.sweep_state import SweepState
from sshgrid.scheduler.user_limits import UserLimits
from sshgrid.sweeps.speculation import FreeSlot, UnderWay, choose

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 0.25  # no event tells that a task takes too long

Views: TypeAlias = Sequence[NodeView]


class SpeculativeAttempts:
    """Starts speculative attempts for all sweeps that want them."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        pool: NodePool,
        attempts: Attempts,
        sweeps: ActiveSweeps,
        limits: UserLimits,
        clock: Clock,
    ) -> None:
        self._active_jobs = active_jobs
        self._pool = pool
        self._attempts = attempts
        self._sweeps = sweeps
        self._limits = limits
        self._clock = clock
        self._next_check = 0.0

    def start(self, views: Views, now: float) -> float:
        """Start the speculative attempts that are worth a free slot; return the seconds until the next check."""
        sweeps = self._sweeps.may_speculate()
        if not sweeps:
            return math.inf
        # The ends of many short tasks cause hundreds of steps a second: not each of them checks.
        if (rest := self._next_check - self._clock.monotonic()) > 0:
            return rest
        for state in sweeps:
            while node := self._start_one(state, views, now):
                views = self._pool.renewed(views, node)
        self._next_check = self._clock.monotonic() + INTERVAL_SECONDS
        return INTERVAL_SECONDS

    def _start_one(self, state: SweepState, views: Views, now: float) -> str:
        """Start one speculative attempt; return its node, or "" when none is worth it."""
        owner = state.job.owner
        if not state.may_start or not self._limits.may_start(owner):
            return ""
        free = placement.eligible(self._limits.views_of(views, owner), state.job.submission)
        choice = choose(self._candidates(state, now), list(_free_slots(state, free)))
        if choice is None:
            return ""
        view = next(view for view in free if view.node.name == choice.node)
        return self._launch(self._active_jobs.current(choice.task), view, now)

    def _launch(self, task: Job, view: NodeView, now: float) -> str:
        gpus = tuple(placement.free_gpus(view)[: task.submission.gpus])
        begun = self._active_jobs.claims.begin_speculative(task, view.node.name, now, gpus)
        if begun is None:
            return ""
        first = task.live[0].node
        log.info("task %s runs long on %s: a speculative attempt on %s", job_text(task.id), first, view.node.name)
        self._attempts.start(*begun)
        return view.node.name

    def _candidates(self, state: SweepState, now: float) -> list[UnderWay]:
        """The tasks whose program runs and that have had no speculative attempt."""
        found = []
        for task in map(self._active_jobs.current, state.running):
            node = task.live[0].node
            takes, ran = state.seconds_on(node), self._attempts.ran_seconds(task, now)
            if takes is not None and ran is not None and not _had_second_attempt(task) and not task.cancel_requested:
                found.append(UnderWay(task.id, node, takes, ran, task.excluded))
        return found


def _had_second_attempt(task: Job) -> bool:
    return any(record.speculative and record.number > task.forgiven for record in task.attempts)


def _free_slots(state: SweepState, free: Views) -> Iterator[FreeSlot]:
    """The nodes with what a task would take there, without those whose load is not known."""
    for view in free:
        takes, busy = state.seconds_on(view.node.name), placement.busy_cores(view)
        if takes is not None and busy is not None:
            yield FreeSlot(view.node.name, takes, max(1.0, (busy + 1) / placement.cores(view)))
