"""The sweeps that have not ended: which of their tasks start next, and what the end of a task means for its sweep.

A task has no row in the store before it starts; until then it is only a number, so 100,000 waiting tasks cost nothing.
Everything kept here can be rebuilt from the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from sshgrid.clock import Clock
from sshgrid.errors import UsageError
from sshgrid.model import Cancelled, GaveUp, Job, JobId, Phase, job_text, sweep_of, task_id, task_number
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.sweep_state import SweepState, sweep_verdict
from sshgrid.spool.blobs import Blobs
from sshgrid.sweeps.halt import halts

log = logging.getLogger(__name__)

LEARN_FROM_TASKS = 200  # how many of the last ended tasks teach a new master the runtimes
EndTask = Callable[[Job], None]


class ActiveSweeps:
    """All sweeps of a master that have not ended. `end_task` ends a task that runs."""

    def __init__(self, active_jobs: ActiveJobs, blobs: Blobs, end_task: EndTask, clock: Clock) -> None:
        self._active_jobs = active_jobs
        self._blobs = blobs
        self._end_task = end_task
        self._clock = clock
        self._states: dict[JobId, SweepState] = {}
        self.slots = 1  # of all nodes that are up
        self._weights: dict[str, float] = {}
        active_jobs.on_task_changed = self._on_task
        active_jobs.on_begin_undone = self._on_begin_undone

    # --- which sweeps there are

    def resume(self) -> None:
        """Add the sweeps that an earlier master left; called before any task starts."""
        for job in self._active_jobs.active():
            if (plan := job.submission.sweep) and all(self._blobs.has(file.sha256) for file in plan.uploads):
                self.add(job)
            elif plan:  # the queue was restored without its spool: only this sweep cannot continue
                gone = GaveUp("its parameters or inputs are no longer in the spool beside the queue")
                self._active_jobs.store.finish(job.id, gone, self._clock.wall())
                self._active_jobs.reread(job.id)
        for state in list(self._states.values()):
            self._check(state)

    def add(self, job: Job) -> None:
        """Add a sweep, with what the store has of its tasks."""
        self._states[job.id] = self._read(job)

    def remove(self, sweep: JobId) -> None:
        """Forget a sweep that ended before any task started."""
        self._states.pop(sweep, None)

    def read(self, job: Job) -> SweepState:
        """The state of a sweep, read from the store when it has ended. Raises UsageError for any other job."""
        if job.submission.sweep is None:
            raise UsageError(f"job {job_text(job.id)} is not a sweep", "sshgrid info ID")
        return self._states.get(job.id) or self._read(job)

    def _read(self, job: Job) -> SweepState:
        task_verdicts = self._active_jobs.store.jobs.task_verdicts(job.id)
        started = frozenset(task_number(task) for task, _, _ in task_verdicts)
        state = SweepState(job, started, self._blobs.read, self._weights, self._clock)
        for task, phase, verdict in task_verdicts:
            if phase is Phase.DONE:
                state.outcomes.add(task_number(task), verdict)
            elif phase is Phase.RUNNING:
                state.running.add(self._active_jobs.current(task))
            else:
                state.retrying[task] = self._active_jobs.current(task)
        if state.plan.backup and job.phase is not Phase.DONE:
            newest = [task_id(job.id, number) for number in state.ended[-LEARN_FROM_TASKS:]]
            for ended in self._active_jobs.store.jobs.select(newest):
                state.learn_runtime(ended)
        state.stopped = job.cancel_requested or job.phase is Phase.DONE
        return state

    def state(self, job_id: JobId) -> SweepState | None:
        """The sweep of this task, or this sweep; None when it has ended, and for any other job."""
        return self._states.get(sweep_of(job_id) or job_id)

    # --- what the scheduler asks

    def note_capacity(self, slots: int, weights: Mapping[str, float]) -> None:
        """Note the number of slots of all nodes that are up, and the weight of each node."""
        self.slots = slots
        self._weights.update(weights)

    def upcoming(self, free: int, nearly_free: Mapping[JobId, int], now: float) -> list[Job]:
        """The tasks that may start now: of each sweep as many as all nodes together could take.

        `nearly_free` has for each sweep how many of its slots can take more tasks soon.
        """
        return [
            task
            for sweep, state in self._states.items()
            for task in state.upcoming(free, nearly_free.get(sweep, 0), now)
        ]

    def has_unstarted(self, job_id: JobId) -> bool:
        """Whether the sweep (or the sweep of this task) has tasks that may still start for the first time."""
        state = self.state(job_id)
        return state is not None and state.has_unstarted

    def may_speculate(self) -> list[SweepState]:
        """The sweeps whose running tasks may get a second attempt."""
        return [state for state in self._states.values() if state.may_speculate]

    def unstarted(self, owner: str) -> int:
        """How many tasks of this owner have never started and still may."""
        states = self._states.values()
        return sum(len(state.unstarted) for state in states if state.job.owner == owner and not state.stopped)

    # --- what has happened

    def update(self, job: Job, end_task: EndTask | None = None) -> None:
        """Take over a sweep that was held, released or cancelled. For a cancel, `end_task` ends each task that runs."""
        if state := self._states.get(job.id):
            state.job = job
            state.stopped = state.stopped or job.cancel_requested
            if end_task:
                self._end_tasks(list(state.running), end_task)
            self._check(state)

    def _on_task(self, task: Job) -> None:
        sweep = sweep_of(task.id)
        state = None if sweep is None else self._states.get(sweep)
        if state is None:
            return
        state.update(task)
        if task.phase is not Phase.RUNNING:
            self._check(state)
        self._active_jobs.notifications.notify(state.job.id)

    def _on_begin_undone(self, tasks: Sequence[JobId]) -> None:
        state = self.state(tasks[0])
        if state is not None:
            state.undo_begin(tasks)
            self._check(state)
            self._active_jobs.notifications.notify(state.job.id)

    # --- the end of a sweep

    def _check(self, state: SweepState) -> None:
        """Stop the sweep when its halt condition is met, and finish it when it has ended."""
        ended, failed = len(state.ended), state.outcomes.failed
        halt = "now" if state.outcomes.compile_failure else halts(state.plan.halt, failed, ended, state.tasks)
        if halt and not state.stopped:
            log.info("sweep %s halts (%s) after %d of %d tasks", state.job.id, halt, ended, state.tasks)
            state.stopped = True
        if halt == "now" or state.job.cancel_requested:
            # Ending a task calls `_check` again: the set is emptied first.
            tasks, state.running.not_cancelled = state.running.not_cancelled, set()
            self._end_tasks(list(tasks), self._end_task)
        if state.has_ended and self._active_jobs.current(state.job.id).phase is Phase.QUEUED:
            self._finish(state)

    def _end_tasks(self, tasks: Sequence[JobId], end_task: EndTask) -> None:
        if tasks:
            with self._active_jobs.store.transaction():  # a commit for each of thousands would block all clients
                for task in tasks:
                    end_task(self._active_jobs.current(task))

    def _finish(self, state: SweepState) -> None:
        job = self._states.pop(state.job.id).job  # first: the end of a task must not finish the sweep a second time
        self._cancel_retrying(state)
        self._active_jobs.store.finish(job.id, sweep_verdict(state), self._clock.wall())
        self._active_jobs.reread(job.id)
        state.end_event.set()

    def _cancel_retrying(self, state: SweepState) -> None:
        """Cancel the tasks that wait for another attempt: it will not start."""
        tasks = list(state.retrying)
        with self._active_jobs.store.transaction():
            for task in tasks:
                self._active_jobs.store.finish(task, Cancelled(state.job.cancel_by), self._clock.wall())
        for task in tasks:
            state.update(self._active_jobs.reread(task))
