"""The sweeps that are not over: which tasks come next, and what the end of a task means for its sweep.

A task becomes a job, with a row in the store, when it begins; before that it is only a number. So a hundred thousand
waiting tasks cost nothing, and all that is kept here can be found again in the store. Refuses to begin a task twice.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

from sshgrid.errors import UsageError
from sshgrid.model import (
    Cancelled,
    GaveUp,
    Job,
    JobId,
    Phase,
    SweepDone,
    Verdict,
    job_text,
    sweep_of,
    task_id,
    task_number,
)
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.sweep_state import SweepState
from sshgrid.spool.spool import Spool
from sshgrid.sweeps.halt import halts

log = logging.getLogger(__name__)

SIBLINGS = 200  # of so many that ended last a new master looks how long they took
EndRunning = Callable[[Job], None]


class ActiveSweeps:
    """All sweeps of a master that are not over. `end_running` ends a task that runs."""

    def __init__(self, active_jobs: ActiveJobs, spool: Spool, end_running: EndRunning) -> None:
        self._active_jobs = active_jobs
        self._spool = spool
        self._end_running = end_running
        self._states: dict[JobId, SweepState] = {}
        self.slots = 1  # of all nodes that are up
        self._weights: dict[str, float] = {}
        active_jobs.on_task_changed = self._task_changed
        active_jobs.on_begin_undone = self._given_back

    def take_up(self) -> None:
        """The sweeps that an earlier master left; before anything else happens."""
        for job in self._active_jobs.active():
            if (plan := job.submission.sweep) and all(self._spool.blobs.has(file.sha256) for file in plan.uploads):
                self.add(job)
            elif plan:  # the queue was restored without it: only this one cannot go on
                gone = GaveUp("its parameters or inputs are no longer in the spool beside the queue")
                self._active_jobs.store.finish(job.id, gone, time.time())
                self._active_jobs.reread(job.id)
        for state in list(self._states.values()):
            self._look(state)

    def add(self, job: Job) -> SweepState:
        """A sweep that is new here, with what the store knows of its tasks."""
        state = self._states[job.id] = self._read(job)
        return state

    def read(self, job: Job) -> SweepState:
        """A sweep as it stands or stood; UsageError when the job is none."""
        if job.submission.sweep is None:
            raise UsageError(f"job {job_text(job.id)} is no sweep", "sshgrid info ID")
        return self._states.get(job.id) or self._read(job)

    def _read(self, job: Job) -> SweepState:
        plan = job.submission.sweep
        assert plan is not None
        state = SweepState(job, plan, self._spool.blobs.read, self._weights)
        begun = []
        for task, phase, verdict in self._active_jobs.store.jobs.task_fates(job.id):
            number = task_number(task)
            begun.append(number)
            if phase is Phase.DONE:
                state.count(number, verdict)
            elif phase is Phase.RUNNING:
                state.enter_slot(self._active_jobs.current(task))
            else:
                state.again[task] = self._active_jobs.current(task)
        state.begin_after(begun)
        if plan.backup and job.phase is not Phase.DONE:
            state.remember(
                self._active_jobs.store.jobs.select([task_id(job.id, number) for number in state.ended[-SIBLINGS:]])
            )
        state.stopped = job.cancel_requested or job.phase is Phase.DONE
        return state

    def see(self, slots: int, weights: Mapping[str, float]) -> None:
        """What the grid is like: slots of all nodes that are up, and the weight of each node."""
        self.slots = slots
        self._weights.update(weights)

    def state(self, task: JobId) -> SweepState | None:
        """The sweep of this task; None when it is over, or the job is no task."""
        return self._states.get(sweep_of(task) or task)

    def goes_on(self, task: JobId) -> bool:
        """Whether there are tasks of its sweep that have never begun, and may."""
        state = self.state(task)
        return state is not None and not state.stopped and not state.job.held and state.unbegun > 0

    def upcoming(self, free: int, nearly_free: Mapping[JobId, int]) -> list[Job]:
        """Tasks that might begin now: of each sweep as many as the grid could take."""
        return [
            task for sweep, state in self._states.items() for task in state.upcoming(free, nearly_free.get(sweep, 0))
        ]

    def batch(self, task: Job) -> list[Job]:
        """A task that has never begun, with those that should go with it to the same slot; or none: it begins alone."""
        state = self.state(task.id)
        return [] if state is None else state.batch(task, self.slots)

    def with_stragglers(self) -> list[SweepState]:
        """The sweeps whose last tasks may get a second attempt."""
        return [state for state in self._states.values() if state.wants_backups()]

    def begun(self, sweep: JobId) -> bool:
        """Whether some task of it has ever begun."""
        state = self._states.get(sweep)
        return state is not None and bool(state.running or state.again or state.ended)

    def unbegun(self, owner: str) -> int:
        """How many tasks of this owner have never begun and still may."""
        return sum(state.unbegun for state in self._states.values() if state.job.owner == owner and not state.stopped)

    def changed(self, job: Job, end_running: EndRunning | None = None) -> None:
        """A sweep was held, let go, or is to be cancelled: then `end_running` ends each task that runs."""
        if state := self._states.get(job.id):
            state.job = job
            state.stopped = state.stopped or job.cancel_requested
            if end_running:
                with (
                    self._active_jobs.store.transaction()
                ):  # a commit for each of thousands would keep everybody waiting
                    for task in list(state.running):
                        end_running(self._active_jobs.current(task))
            self._look(state)

    def forget(self, sweep: JobId) -> None:
        self._states.pop(sweep, None)

    # --- a task has changed

    def _task_changed(self, task: Job) -> None:
        sweep = sweep_of(task.id)
        state = None if sweep is None else self._states.get(sweep)
        if state is None:
            return
        state.changed(task)
        if task.phase is not Phase.RUNNING:
            self._look(state)
        self._active_jobs.notifications.notify(state.job.id)

    def _given_back(self, tasks: Sequence[JobId]) -> None:
        state = self.state(tasks[0])
        if state is not None:
            state.given_back(tasks)
            self._look(state)
            self._active_jobs.notifications.notify(state.job.id)

    def _look(self, state: SweepState) -> None:
        """Is it to stop, or over?"""
        ended = len(state.ended)
        halt = "now" if state.compile_failed else halts(state.plan.halt, state.failed, ended, state.tasks)
        if halt and not state.stopped:
            log.info("sweep %s halts (%s) after %d of %d tasks", state.job.id, halt, ended, state.tasks)
            state.stopped = True
        if halt == "now" or state.job.cancel_requested:
            self._end_tasks(state)
        if state.over and self._active_jobs.current(state.job.id).phase is Phase.QUEUED:
            self._finish(state)

    def _end_tasks(self, state: SweepState) -> None:
        # All of them now: one that ends by this leads here again.
        asked, state.unasked = state.unasked, set()
        if asked:
            with self._active_jobs.store.transaction():
                for task in asked:
                    self._end_running(self._active_jobs.current(task))

    def _finish(self, state: SweepState) -> None:
        job = self._states.pop(state.job.id).job  # first, as no end of a task must finish it once more
        self._give_up_waiting(state)
        self._active_jobs.store.finish(job.id, self._verdict(state), time.time())
        self._active_jobs.reread(job.id)
        state.finished.set()

    def _give_up_waiting(self, state: SweepState) -> None:
        """Tasks that wait for another attempt which will not come."""
        waiting = list(state.again)
        with self._active_jobs.store.transaction():
            for task in waiting:
                self._active_jobs.store.finish(task, Cancelled(state.job.cancel_by), time.time())
        for task in waiting:
            state.changed(self._active_jobs.reread(task))

    def _verdict(self, state: SweepState) -> Verdict:
        if state.job.cancel_requested:
            return Cancelled(state.job.cancel_by)
        if state.compile_failed:
            return state.compile_failed
        counts = state.counts()
        return SweepDone(counts.tasks, counts.failed, counts.left)
