"""Revokes tasks that wait in a batch and would end earlier in a slot that is free, or that should not start at all."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sshgrid.scheduler.batch_attempts import BatchAttempts
from sshgrid.scheduler.batch_times import AHEAD_SECONDS, BatchTimes
from sshgrid.scheduler.running_batch import RunningBatch
from sshgrid.scheduler.step_views import StepViews
from sshgrid.scheduler.sweep_state import SweepState
from sshgrid.sweeps.estimates import slot_in_use

GAIN_SECONDS = 0.5  # a revoked task must end at least this much earlier elsewhere
INTERVAL_SECONDS = 0.5


class Rebalancing:
    """Revokes misplaced tasks of batches, in one step of the scheduler."""

    def __init__(self, batches: BatchAttempts, views: StepViews, times: BatchTimes) -> None:
        self._batches = batches
        self._views = views
        self._times = times

    def run(self, promised: Mapping[RunningBatch, bool]) -> float:
        """Revoke misplaced tasks; return the seconds until the next check.

        `promised` has the batches whose slot another job gets next, and whether that job should start before theirs.
        """
        pause = math.inf
        for batch in self._batches.all:  # also released ones: their last task may take longer than expected
            state = self._times.sweep(batch)
            if state is None or len(batch.state.rest) < 2:
                continue
            pause = INTERVAL_SECONDS
            if runs := self._misplaced(state, batch, promised):
                self._batches.revoke(batch, runs)
        return pause

    def _misplaced(self, state: SweepState, batch: RunningBatch, promised: Mapping[RunningBatch, bool]) -> list[str]:
        """The runs that wait in this batch and should not."""
        if state.stopped or self._is_longer_than_expected(batch):
            return batch.state.behind()
        if promised.get(batch) and (takes := self._times.task_seconds(batch)):
            return batch.state.behind()[int(AHEAD_SECONDS / takes) :]
        elsewhere = None if state.without_slot else self._seconds_elsewhere(state, batch)
        if elsewhere is None or self._times.left_seconds(batch) - elsewhere < GAIN_SECONDS:
            return []
        behind = batch.state.behind()
        return behind if self._is_overdue(batch) else behind[len(behind) // 2 :]

    def _is_longer_than_expected(self, batch: RunningBatch) -> bool:
        """Whether the first task of a sweep has run so long that none should wait behind it."""
        return (
            self._times.task_seconds(batch) is None and batch.state.has_begun and batch.state.ran_seconds > GAIN_SECONDS
        )

    def _is_overdue(self, batch: RunningBatch) -> bool:
        takes = self._times.task_seconds(batch)
        return takes is not None and slot_in_use(takes, batch.state.ran_seconds) is None

    def _seconds_elsewhere(self, state: SweepState, batch: RunningBatch) -> float | None:
        """Seconds until a task that starts now in a free slot ends there; None when there is no such slot."""
        if not state.may_start:
            return None
        # A free slot of the batch's own node counts only when the slot of the batch was released.
        ends = self._views.end_seconds(state)
        return next((seconds for seconds, node in ends if batch.released or node != batch.node), None)
