"""Whether a task of a sweep should start on a slow node, or wait for a faster one."""

from __future__ import annotations

from collections.abc import Sequence

from sshgrid.clock import Clock
from sshgrid.model import Job, JobId, is_task
from sshgrid.policy import placement
from sshgrid.policy.placement import NodeView
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.active_sweeps import ActiveSweeps
from sshgrid.scheduler.batch_attempts import BatchAttempts
from sshgrid.scheduler.batch_times import BatchTimes
from sshgrid.scheduler.step_views import StepViews
from sshgrid.scheduler.sweep_state import SweepState
from sshgrid.sweeps.estimates import Outlook, Slot, slot_in_use

# With more waiting tasks per slot than this, even a slow node gets one: the end of the sweep is far.
FAR_TASKS_PER_SLOT = 4


class SweepOutlooks:
    """The outlook of each sweep in one step of the scheduler, computed when it is first needed."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        batches: BatchAttempts,
        sweeps: ActiveSweeps,
        views: StepViews,
        times: BatchTimes,
        clock: Clock,
    ) -> None:
        self._active_jobs = active_jobs
        self._batches = batches
        self._sweeps = sweeps
        self._views = views
        self._times = times
        self._clock = clock
        self._outlooks: dict[JobId, Outlook] = {}

    def worthwhile(self, job: Job, views: Sequence[NodeView]) -> Sequence[NodeView]:
        """The nodes where a job may start: for a task of a sweep without those that would delay its end."""
        state = self._sweeps.state(job.id)
        if state is None or not is_task(job.id):
            return views
        if not state.may_start:
            return []
        if job.attempts:  # a node has failed this task: it is late already, wherever it runs
            return views
        return [view for view in views if self.is_worth(state, view.node.name)]

    def is_worth(self, state: SweepState, node: str, free_in_seconds: float = 0.0) -> bool:
        """Whether a task that starts on this node in `free_in_seconds` does not delay the end of its sweep."""
        takes = state.seconds_on(node)
        if takes is None or state.without_slot > FAR_TASKS_PER_SLOT * self._sweeps.slots:
            return True
        return self._outlook(state).worth(Slot(takes, free_in_seconds), state.without_slot)

    def _outlook(self, state: SweepState) -> Outlook:
        sweep = state.job.id
        if sweep not in self._outlooks:
            slots = [*self._free(state), *self._in_batches(state), *self._alone(state)]
            self._outlooks[sweep] = Outlook(slot for slot in slots if slot is not None)
        return self._outlooks[sweep]

    def _free(self, state: SweepState) -> list[Slot | None]:
        """The free slots of nodes that would take a task."""
        found: list[Slot | None] = []
        for view in self._views.eligible(state):
            takes = state.seconds_on(view.node.name)
            slot = None if takes is None else Slot(takes)
            found += [slot] * (placement.slots(view) - view.running)
        return found

    def _in_batches(self, state: SweepState) -> list[Slot | None]:
        """The slots of the sweep's batches; None for one whose end cannot be predicted."""
        found: list[Slot | None] = []
        for batch in self._batches.holding_slots:
            takes = state.seconds_on(batch.node)
            if not batch.state.rest and not self._views.is_up(batch.node):
                continue
            if self._times.sweep(batch) is state and takes is not None:
                slot = slot_in_use(takes, batch.state.ran_seconds) if batch.state.rest else Slot(takes)
                behind = takes * max(0, len(batch.state.rest) - 1)
                found.append(None if slot is None else Slot(takes, slot.free_in_seconds + behind))
        return found

    def _alone(self, state: SweepState) -> list[Slot | None]:
        """The slots of tasks that run without a batch."""
        found: list[Slot | None] = []
        for task in state.running.alone:
            attempt = self._active_jobs.current(task).current
            takes = None if attempt is None else state.seconds_on(attempt.node)
            if attempt is not None and takes is not None:
                found.append(slot_in_use(takes, self._clock.wall() - attempt.began))
        return found
