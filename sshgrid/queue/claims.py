"""Claim nodes for jobs: in the store first, in memory second."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

import msgspec

from sshgrid.model import Attempt, AttemptRecord, Job, JobId, Phase, is_task
from sshgrid.queue.store import Store


class JobMemory(Protocol):
    """The part of ActiveJobs that a claim updates."""

    def update(self, job: Job) -> None: ...
    def reread(self, job_id: JobId) -> Job: ...
    def drop_tasks(self, tasks: Sequence[JobId]) -> None: ...


class Claims:
    """Every claim is durable on return, and memory is updated."""

    def __init__(self, store: Store, memory: JobMemory) -> None:
        self._store = store
        self._memory = memory

    def begin(self, job: Job, node: str, now: float, gpus: tuple[int, ...] = ()) -> tuple[Job, Attempt] | None:
        """Claim a node for a queued job; None as in AttemptWriter.begin."""
        if is_task(job.id) and not job.attempts:
            return self.begin_tasks([job], AttemptRecord(1, node, now, gpus=gpus))[0]
        return self._reread(job.id, self._store.attempts.begin(job.id, node, now, gpus))

    def begin_speculative(
        self, job: Job, node: str, now: float, gpus: tuple[int, ...] = ()
    ) -> tuple[Job, Attempt] | None:
        """Claim a node for a second attempt beside the running one; None as in AttemptWriter.begin_speculative."""
        return self._reread(job.id, self._store.attempts.begin_speculative(job.id, node, now, gpus))

    def begin_tasks(self, tasks: Sequence[Job], record: AttemptRecord) -> list[tuple[Job, Attempt]]:
        """Claim a node for tasks of a sweep that have never begun: all of them, or none."""
        attempts = self._store.attempts.begin_tasks(tasks, record)
        begun = [msgspec.structs.replace(task, phase=Phase.RUNNING, attempts=(record,)) for task in tasks]
        for job in begun:
            self._memory.update(job)
        return list(zip(begun, attempts, strict=True))

    def undo_begin(self, tasks: Iterable[JobId]) -> list[JobId]:
        """Undo `begin_tasks` where possible; returns these tasks. The others have ended meanwhile."""
        with self._store.transaction():
            undone = [task for task in tasks if self._store.attempts.undo_begin(task)]
        self._memory.drop_tasks(undone)
        return undone

    def _reread(self, job_id: JobId, attempt: Attempt | None) -> tuple[Job, Attempt] | None:
        job = self._memory.reread(job_id)
        return None if attempt is None else (job, attempt)
