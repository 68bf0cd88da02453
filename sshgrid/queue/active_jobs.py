"""The jobs that are not over, in memory as they are in the store, and the board that tells of their changes.

The store is written first; what stands here is never ahead of it. Finished jobs are read from the store when asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from sshgrid.errors import StoreError
from sshgrid.model import Attempt, AttemptRecord, Job, JobId, Phase
from sshgrid.queue.notifications import Notifications
from sshgrid.queue.store import Store

MINUTE_SECONDS = 60
JUST_ENDED = 1000


class ActiveJobs:
    """What is queued and what runs. `wake` is set whenever somebody may have to decide something."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.notifications = Notifications()
        self.wake = asyncio.Event()
        # For work on hundreds of jobs at once: who has waited for it comes in another round of the loop, so that
        # whoever asks something has a turn in between.
        self.turn = asyncio.Lock()
        self.failure: StoreError | None = None
        self._ended: Counter[int] = Counter()  # how many in each second of the last minute
        self.on_task: Callable[[Job], None] = lambda task: None  # a task of a sweep has changed
        self.on_given_back: Callable[[Sequence[JobId]], None] = lambda tasks: None  # these are only numbers again
        active = [*store.jobs.select(active_only=True), *store.jobs.active_tasks()]
        self._active: dict[JobId, Job] = {job.id: job for job in active}
        self._just_ended: dict[JobId, Job] = {}  # the last tasks of which watchers will ask at once

    def fail(self, error: StoreError) -> None:
        """What is kept here can no longer be trusted: whoever decides must stop."""
        self.failure = self.failure or error
        self.wake.set()

    @contextlib.contextmanager
    def following_the_store(self) -> Iterator[None]:
        """For noting what the store has already. An error leaves jobs as they no longer are: the master must stop."""
        done = False
        try:
            yield
            done = True
        finally:
            if not done:
                self.fail(StoreError("what the master remembers is not what the queue says", "sshgrid master logs"))

    def current(self, job_id: JobId) -> Job:
        """The job as it stands. Raises NoSuchJob."""
        return self._active.get(job_id) or self._just_ended.get(job_id) or self.store.jobs.get(job_id)

    def keep(self, job: Job) -> None:
        """A newer state of a job, which the store has already."""
        if job.phase is Phase.DONE:
            if job.id < 0:
                self._remember(job)
            if self._active.pop(job.id, None):
                self._ended[int(time.monotonic())] += 1
                if len(self._ended) > 2 * MINUTE_SECONDS:
                    self._forget_old_seconds()
        else:
            self._just_ended.pop(job.id, None)
            self._active[job.id] = job
        if job.id < 0:
            self.on_task(job)
        self.notifications.tell(job.id)
        self.wake.set()

    def retry(self, jobs: Sequence[JobId]) -> int:
        """Queue what is over once more; read each again then. How many there were."""
        self._just_ended.clear()
        return self.store.retry(jobs)

    def remove(self, job_id: JobId) -> None:
        """Forget a finished job. NotAllowed as Store.remove."""
        self._just_ended.clear()
        self.store.remove(job_id)

    def _remember(self, job: Job) -> None:
        self._just_ended[job.id] = job
        if len(self._just_ended) > JUST_ENDED:
            del self._just_ended[next(iter(self._just_ended))]

    def begin(self, job: Job, node: str, now: float, gpus: tuple[int, ...] = ()) -> tuple[Job, Attempt] | None:
        """Claim a node for a job that waits; None when the store says that it may not begin."""
        if job.id < 0 and not job.attempts:
            return self.begin_tasks([job], AttemptRecord(1, node, now, gpus=gpus))[0]
        found = self.store.attempts.begin(job.id, node, now, gpus)
        job = self.reread(job.id)
        return None if found is None else (job, found)

    def begin_speculative(
        self, job: Job, node: str, now: float, gpus: tuple[int, ...] = ()
    ) -> tuple[Job, Attempt] | None:
        """Claim a node for a second attempt beside the one that runs; None when the store says no."""
        found = self.store.attempts.begin_speculative(job.id, node, now, gpus)
        job = self.reread(job.id)
        return None if found is None else (job, found)

    def begin_tasks(self, tasks: Sequence[Job], record: AttemptRecord) -> list[tuple[Job, Attempt]]:
        """Claim a node for tasks of a sweep that have never begun: all of them, or none."""
        attempts = self.store.attempts.begin_tasks(tasks, record)
        begun = [msgspec.structs.replace(task, phase=Phase.RUNNING, attempts=(record,)) for task in tasks]
        for job in begun:
            self.keep(job)
        return list(zip(begun, attempts, strict=True))

    def give_back_tasks(self, tasks: Iterable[JobId]) -> list[JobId]:
        """Those of these tasks that are as if they had never been claimed; the others have ended meanwhile."""
        with self.store.transaction():
            given = [task for task in tasks if self.store.attempts.undo_begin(task)]
        for task in given:
            self._active.pop(task, None)
            self.notifications.tell(task)
        if given:
            self.on_given_back(given)
            self.wake.set()
        return given

    def reread(self, job_id: JobId) -> Job:
        """As `keep`, with what the store says."""
        job = self.store.jobs.get(job_id)
        self.keep(job)
        return job

    def _forget_old_seconds(self) -> None:
        begin = time.monotonic() - MINUTE_SECONDS
        self._ended = Counter({second: count for second, count in self._ended.items() if second > begin})

    def ended_last_minute(self) -> int:
        """How many jobs ended, however they did."""
        self._forget_old_seconds()
        return self._ended.total()

    def is_over(self, job_id: JobId) -> bool:
        return job_id not in self._active

    def active(self) -> list[Job]:
        """The jobs that are not over, tasks of sweeps left out."""
        return [job for job in self._active.values() if job.id > 0]

    def in_phase(self, phase: Phase) -> list[Job]:
        return [job for job in self._active.values() if job.phase is phase]

    def has_begun(self, job_id: JobId) -> bool:
        job = self._active.get(job_id)
        return job is not None and job.phase is Phase.RUNNING

    def count(self, owner: str, phase: Phase) -> int:
        """How many jobs of this user wait, or how many slots they have."""
        if phase is Phase.RUNNING:
            return self.running_by_owner().get(owner, 0)
        return sum(job.owner == owner and job.phase is phase for job in self._active.values())

    def running_by_owner(self) -> Mapping[str, int]:
        """How many slots each user has: the tasks of a batch share one, and a backup has one of its own."""
        return Counter(owner for owner, _ in self._slots())

    def nodes_in_use(self, owner: str) -> list[str]:
        """Of each slot that this user has the node."""
        return [node for user, node in self._slots() if user == owner]

    def _slots(self) -> Iterable[tuple[str, str]]:
        """Of each slot in use whose it is and on which node."""
        slots: dict[object, tuple[str, str]] = {}
        for job in self.in_phase(Phase.RUNNING):
            newest = job.attempts[-1]
            for record in job.live if newest.speculative else (newest,):
                slots[record.batch or (job.id, record.number)] = (job.owner, record.node)
        return slots.values()

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits that could still run."""
        return all(job.held and job.phase is Phase.QUEUED for job in self._active.values())

    def nodes_changed(self) -> None:
        """A node came, went or changed: every waiting job may have something to decide, and to tell."""
        self.wake.set()
        self.notifications.tell_all()


def slot_of(job: Job) -> object:
    """What stands for the slot of its current attempt: tasks with the same one run one after the other in it."""
    return (job.current.batch if job.current else "") or job.id
