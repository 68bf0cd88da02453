"""The queued and running jobs in memory, with the same content as in the store.

The store is written first, so memory is never ahead of it. Finished jobs are read from the store when they are needed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.errors import StoreError
from sshgrid.model import Job, JobId, Phase, is_task
from sshgrid.queue.claims import Claims
from sshgrid.queue.end_rate import EndRate
from sshgrid.queue.notifications import Notifications
from sshgrid.queue.slots_in_use import SlotsInUse
from sshgrid.queue.store import Store

JUST_ENDED = 1000  # ended tasks that stay in memory


class ActiveJobs:
    """Queued and running jobs. `wake` is set when the scheduler may have to act."""

    def __init__(self, store: Store, clock: Clock = SYSTEM_CLOCK) -> None:
        self.store = store
        self.claims = Claims(store, self)
        self.notifications = Notifications()
        self.wake = asyncio.Event()
        # Held while hundreds of jobs are changed in steps; client requests are answered between the steps.
        self.bulk_lock = asyncio.Lock()
        self.failure: StoreError | None = None
        self.on_task_changed: Callable[[Job], None] = lambda task: None
        self.on_begin_undone: Callable[[Sequence[JobId]], None] = lambda tasks: None
        self._clock = clock
        self._ends = EndRate()
        active = [*store.jobs.select(active_only=True), *store.jobs.active_tasks()]
        self._active: dict[JobId, Job] = {job.id: job for job in active}
        self._just_ended: dict[JobId, Job] = {}  # watchers ask for a task right after its end

    def fail(self, error: StoreError) -> None:
        """Note that memory may differ from the store: the scheduler must stop."""
        self.failure = self.failure or error
        self.wake.set()

    @contextlib.contextmanager
    def memory_update(self) -> Iterator[None]:
        """Wrap the updates of memory that follow a change of the store. An error in the block stops the master."""
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                self.fail(StoreError("the jobs in memory differ from the queue", "sshgrid master logs"))

    def current(self, job_id: JobId) -> Job:
        """The job in its current state. Raises NoSuchJob."""
        return self._active.get(job_id) or self._just_ended.get(job_id) or self.store.jobs.get(job_id)

    def update(self, job: Job) -> None:
        """Take over a newer state of a job, which is already in the store."""
        if job.phase is Phase.DONE:
            if is_task(job.id):
                self._keep_ended(job)
            if self._active.pop(job.id, None):
                self._ends.note(self._clock.monotonic())
        else:
            self._just_ended.pop(job.id, None)
            self._active[job.id] = job
        if is_task(job.id):
            self.on_task_changed(job)
        self.notifications.notify(job.id)
        self.wake.set()

    def reread(self, job_id: JobId) -> Job:
        """Read the job from the store and `update` it; returns it."""
        job = self.store.jobs.get(job_id)
        self.update(job)
        return job

    def drop_tasks(self, tasks: Sequence[JobId]) -> None:
        """Remove these tasks: their begin was undone, and they have no row in the store."""
        for task in tasks:
            self._active.pop(task, None)
            self.notifications.notify(task)
        if tasks:
            self.on_begin_undone(tasks)
            self.wake.set()

    def retry(self, jobs: Sequence[JobId]) -> int:
        """Queue the ended ones of these jobs again; call `reread` for each after it. Returns their number."""
        self._just_ended.clear()
        return self.store.retry(jobs)

    def remove(self, job_id: JobId) -> None:
        """Remove an ended job. Raises NotAllowed as Store.remove."""
        self._just_ended.clear()
        self.store.remove(job_id)

    def _keep_ended(self, job: Job) -> None:
        self._just_ended[job.id] = job
        if len(self._just_ended) > JUST_ENDED:
            del self._just_ended[next(iter(self._just_ended))]

    def ended_last_minute(self) -> int:
        """The number of jobs and tasks that ended in the last minute, with any verdict."""
        return self._ends.last_minute(self._clock.monotonic())

    def has_ended(self, job_id: JobId) -> bool:
        """Whether the job is neither queued nor running."""
        return job_id not in self._active

    def active(self) -> list[Job]:
        """The queued and running jobs, without tasks of sweeps."""
        return [job for job in self._active.values() if not is_task(job.id)]

    def in_phase(self, phase: Phase) -> list[Job]:
        """The jobs and tasks in this phase."""
        return [job for job in self._active.values() if job.phase is phase]

    def is_running(self, job_id: JobId) -> bool:
        job = self._active.get(job_id)
        return job is not None and job.phase is Phase.RUNNING

    def queued_of(self, owner: str) -> int:
        """The number of queued jobs of this user."""
        return sum(job.owner == owner and job.phase is Phase.QUEUED for job in self._active.values())

    def slots_in_use(self) -> SlotsInUse:
        """The slots of all running jobs."""
        return SlotsInUse(self.in_phase(Phase.RUNNING))

    @property
    def idle(self) -> bool:
        """Whether nothing runs, and nothing is queued that could run."""
        return all(job.held and job.phase is Phase.QUEUED for job in self._active.values())

    def nodes_changed(self) -> None:
        """Notify everything: a node joined, left or changed, which may concern every queued job."""
        self.wake.set()
        self.notifications.notify_all()
