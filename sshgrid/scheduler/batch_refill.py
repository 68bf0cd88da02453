"""Which tasks or jobs get the slots of batches that are nearly over.

A batch that is nearly over is extended with the next tasks of its sweep, so that its node need not wait for the master,
unless fair share gives the slot to another job: then the slot is released for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from sshgrid.model import AttemptRecord, Job, JobId
from sshgrid.policy import placement
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.active_sweeps import ActiveSweeps
from sshgrid.scheduler.batch_attempts import BatchAttempts
from sshgrid.scheduler.batch_times import AHEAD_SECONDS, BatchTimes
from sshgrid.scheduler.running_batch import RunningBatch
from sshgrid.scheduler.step_views import StepViews
from sshgrid.scheduler.sweep_outlooks import SweepOutlooks
from sshgrid.sweeps.chunking import LONG_SECONDS

# Release the slot this long before the batch ends: the next start takes about as long.
RELEASE_SECONDS = 0.15


class BatchRefill:
    """Extends batches or promises their slots, in one step of the scheduler. `running`: the slots in use by user."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        batches: BatchAttempts,
        sweeps: ActiveSweeps,
        views: StepViews,
        times: BatchTimes,
        outlooks: SweepOutlooks,
        running: Mapping[str, int],
    ) -> None:
        self._active_jobs = active_jobs
        self._batches = batches
        self._sweeps = sweeps
        self._views = views
        self._times = times
        self._outlooks = outlooks
        self._running = Counter(running)
        # The batches whose slot a job of others gets next, and whether fair share puts that job before their tasks.
        self.promised: dict[RunningBatch, bool] = {}
        self._nearly_over = [batch for batch in batches.holding_slots if self._is_nearly_over(batch)]

    def _is_nearly_over(self, batch: RunningBatch) -> bool:
        if not batch.state.takes_more or batch.state.joining:
            return False
        if not batch.state.rest:
            return batch.state.keep_warm
        takes = self._times.task_seconds(batch)
        if takes is None or takes > LONG_SECONDS:
            return False
        return len(batch.state.rest) == 1 or len(batch.state.rest) * takes < AHEAD_SECONDS

    def __len__(self) -> int:
        """How many batches are nearly over."""
        return len(self._nearly_over)

    def nearly_free(self) -> Mapping[JobId, int]:
        """For each sweep the number of its slots whose batches are nearly over."""
        counts: Counter[JobId] = Counter()
        for batch in self._nearly_over:
            if batch.sweep is not None and not batch.state.idle:
                counts[batch.sweep] += 1
        return counts

    def start_in_idle(self, job: Job, now: float) -> bool:
        """Start a task in an idle batch of its sweep; False when there is no such batch."""
        state = self._sweeps.state(job.id)
        if state is None or job.attempts or not state.may_start:
            return False
        idle = [batch for batch in self._nearly_over if batch.state.idle and self._times.sweep(batch) is state]
        if not idle:
            return False
        # An idle batch counts as no run of its user: the limit of a group may have been reached meanwhile.
        views = self._views.of_owner(job.owner)
        nodes = placement.eligible_after_release(views, job.submission, job.excluded)
        return any(self._extend(batch, job, now) for batch in idle if batch.node in nodes)

    def extend_own(self, job: Job, now: float) -> bool:
        """Append a task to a batch of its sweep that is nearly over; False when there is no such batch."""
        state = self._sweeps.state(job.id)
        if state is None or job.attempts or not self._nearly_over:
            return False
        nodes = self._views.eligible_after_release(job)
        for batch in list(self._nearly_over):
            is_own = self._times.sweep(batch) is state and not batch.state.idle
            if is_own and batch.node in nodes and self._extend(batch, job, now):
                return True
        return False

    def promise(self, job: Job) -> None:
        """Promise a job that found no free slot the slot of another sweep's batch: the one that becomes free first."""
        batches = self._batches.holding_slots
        if not batches:
            return
        state, nodes = self._sweeps.state(job.id), self._views.eligible_after_release(job)
        others = [batch for batch in batches if state is None or self._times.sweep(batch) is not state]
        able = [batch for batch in others if batch not in self.promised and batch.node in nodes]
        if able:
            soonest = min(able, key=self._times.left_seconds)
            self.promised[soonest] = self._comes_before(job, soonest)
            if soonest in self._nearly_over:
                self._nearly_over.remove(soonest)

    def _comes_before(self, job: Job, batch: RunningBatch) -> bool:
        """Whether the job should start before the tasks that wait in this batch, by priority and fair share."""
        state = self._times.sweep(batch)
        if state is None:
            return False
        other = state.job
        if job.submission.priority != other.submission.priority:
            return job.submission.priority > other.submission.priority
        if job.owner == other.owner:
            return job.submitted < other.submitted
        return self._running[job.owner] + 1 < self._running[other.owner]

    def _extend(self, batch: RunningBatch, job: Job, now: float) -> bool:
        state = self._times.sweep(batch)
        assert state is not None
        tasks = state.batch(job, self._sweeps.slots)
        if not tasks or not self._outlooks.is_worth(state, batch.node, self._times.left_seconds(batch)):
            return False
        self._nearly_over.remove(batch)
        record = AttemptRecord(1, batch.node, now, batch=batch.name)
        begun = self._active_jobs.claims.begin_tasks(tasks, record)
        self._batches.extend(batch, begun, keep_warm=state.has_unstarted)
        return True

    def release(self) -> None:
        """Release the slots that other jobs get next, and those of idle batches whose sweep has no more tasks."""
        for batch in self._batches.holding_slots:
            if batch.state.idle and not (batch.sweep and self._sweeps.has_unstarted(batch.sweep)):
                self._batches.release(batch)
        for batch in self.promised:
            takes = self._times.task_seconds(batch)
            if not batch.state.rest or (takes is not None and len(batch.state.rest) * takes < RELEASE_SECONDS):
                self._batches.release(batch)
