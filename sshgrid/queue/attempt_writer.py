"""Writes the attempts in the queue: begin, progress and settlement.

The fence: only a live attempt can settle its job, and after it no attempt of the job is live.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from sshgrid.model import Attempt, AttemptRecord, Job, JobId, Phase, Superseded
from sshgrid.queue.queue_file import QueueFile
from sshgrid.queue.records import (
    check_ended,
    check_same_attempt,
    encode,
    settled_columns,
    task_columns,
)


class AttemptWriter:
    """Every call is one transaction, durable on return. `on_end` is called with each job that is settled."""

    def __init__(self, file: QueueFile, on_end: Callable[[JobId], None]) -> None:
        self._file = file
        self._on_end = on_end

    def begin(self, job_id: JobId, node: str, now: float, gpus: tuple[int, ...] = ()) -> Attempt | None:
        """Claim `node` for a queued job. None when the job is not queued, is held, or is to be cancelled."""
        with self._file.transaction():
            # begin_job gives the attempt its number; from now on settle() drops results of earlier attempts.
            if self._file.run("begin_job", {"id": job_id}).rowcount == 0:
                return None
            return self._add(job_id, AttemptRecord(0, node, now, gpus=gpus))

    def begin_speculative(self, job_id: JobId, node: str, now: float, gpus: tuple[int, ...] = ()) -> Attempt | None:
        """Claim `node` for a second attempt beside the running one; both are live.

        None when the job does not run, is to be cancelled, or already has two live attempts.
        """
        with self._file.transaction():
            if self._file.run("begin_speculative", {"id": job_id}).rowcount == 0:
                return None
            return self._add(job_id, AttemptRecord(0, node, now, gpus=gpus, speculative=True))

    def begin_tasks(self, tasks: Sequence[Job], record: AttemptRecord) -> list[Attempt]:
        """Begin the first attempts of these tasks of a sweep, all or none. Adds the row of each task."""
        text = encode(record)
        with self._file.transaction():
            self._file.run_many("add_task", map(task_columns, tasks))
            self._file.run_many("add_submission", ({"id": task.id, "body": encode(task.submission)} for task in tasks))
            self._file.run_many("add_attempt", ({"id": task.id, "number": 1, "record": text} for task in tasks))
        return [Attempt(task.id, 1, record.node) for task in tasks]

    def undo_begin(self, task: JobId) -> bool:
        """Undo `begin_tasks` for a task that its node never started. False when the task has changed since."""
        with self._file.transaction():
            return self._file.run("undo_begin_task", {"id": task}).rowcount == 1

    def note(self, attempt: Attempt, record: AttemptRecord) -> bool:
        """Write the progress of a running attempt. False when it is no longer live; then nothing is written."""
        check_same_attempt(attempt, record)
        with self._file.transaction():
            values = {"id": attempt.job, "number": attempt.number, "record": encode(record)}
            return self._file.run("note_attempt", values).rowcount == 1

    def settle(self, attempt: Attempt, record: AttemptRecord, job: Job) -> bool:
        """Write the outcome of an attempt, and the job as policy.retry.settle returned it.

        False when the attempt is no longer live; then nothing is written.
        """
        check_ended(attempt, record)
        if job.id != attempt.job or job.phase is Phase.RUNNING:
            raise ValueError(f"attempt {attempt} cannot settle job {job.id} as {job.phase}")
        with self._file.transaction():
            if self._file.run("settle_job", {"number": attempt.number, **settled_columns(job)}).rowcount == 0:
                return False
            self._file.run("note_settled", {"id": attempt.job, "number": attempt.number, "record": encode(record)})
            for other in job.attempts:
                if isinstance(other.outcome, Superseded) and other.outcome.by == attempt.number:
                    values = {"id": job.id, "number": other.number, "record": encode(other)}
                    self._file.run("note_superseded", values)
        self._on_end(job.id)
        return True

    def settle_one_of_two(self, attempt: Attempt, record: AttemptRecord) -> bool:
        """Write the outcome of an attempt whose job continues with another live attempt.

        False when the attempt is no longer live, or no other attempt is live; then nothing is written.
        """
        check_ended(attempt, record)
        with self._file.transaction():
            values = {"id": attempt.job, "number": attempt.number, "record": encode(record)}
            return self._file.run("leave_attempt", values).rowcount == 1

    def _add(self, job_id: JobId, record: AttemptRecord) -> Attempt:
        """Add the attempt after its claim, which has set its number."""
        number = self._file.value("last_attempt", {"id": job_id})
        record = msgspec.structs.replace(record, number=number)
        self._file.run("add_attempt", {"id": job_id, "number": number, "record": encode(record)})
        return Attempt(job_id, number, record.node)
