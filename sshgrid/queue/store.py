"""The durable queue: jobs, attempts, verdicts and users in one SQLite file (all SQL is in schema.sql).

Every change is durable on return: it survives a kill and a power cut. There is one connection, for the thread that
opened it. See queue/database.py for the files that are refused.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from sshgrid.errors import NotAllowed, UsageError
from sshgrid.model import Job, JobId, Phase, Submission, Verdict, job_text, sweep_of
from sshgrid.queue import database
from sshgrid.queue.attempt_writer import AttemptWriter
from sshgrid.queue.job_reader import JobReader
from sshgrid.queue.queue_file import QueueFile
from sshgrid.queue.records import Values, encode, encode_submission, task_range
from sshgrid.queue.user_table import UserTable


class Store:
    """Open with `Store.open`. Every change is one transaction, durable on return (or at the end of `transaction`).

    `jobs` reads jobs, `attempts` begins and settles attempts, `users` holds the accounts.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._file = QueueFile(connection, path)
        self.jobs = JobReader(self._file)
        self._file.on_rollback = self.jobs.drop_submissions
        self.attempts = AttemptWriter(self._file, self.jobs.drop_submission)
        self.users = UserTable(self._file)
        self.grid = str(self._file.value("get_meta", {"name": "grid"}))  # names the runs of this queue on the nodes

    @classmethod
    def open(cls, path: Path, busy_seconds: float = database.BUSY_SECONDS) -> Self:
        """Open the queue at `path`; create it when it is missing. Raises StoreError when it cannot be trusted."""
        connection = database.open_file(path, busy_seconds)
        try:
            return cls(connection, path)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        self._file.connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction for the block: durable at its end, undone when it raises. Never await inside."""
        with self._file.transaction():
            yield

    def add(self, submission: Submission, owner: str, key: str, now: float) -> Job:
        """Accept a job. A second call with the same owner and `key` returns the first job, in its current state."""
        body = encode_submission(submission, owner, key)
        with self._file.transaction():
            if before := self.jobs.by_key(owner, key):
                return before
            values = {"owner": owner, "key": key, "priority": submission.priority, "submitted": now}
            job_id = self._file.run("add_job", values).lastrowid
            self._file.run("add_submission", {"id": job_id, "body": body})
        assert job_id is not None
        return Job(JobId(job_id), owner, submission, now)

    def finish(self, job_id: JobId, verdict: Verdict, now: float) -> bool:
        """End a queued job that is cancelled, or that no node can run. False when it is not queued."""
        self.jobs.drop_submission(job_id)
        with self._file.transaction():
            return self._file.run("finish_job", {"id": job_id, "verdict": encode(verdict), "ended": now}).rowcount == 1

    def request_cancel(self, job_id: JobId, by: str) -> Job:
        """Mark an unfinished job: it starts no more attempts. Returns the job; `finish` it if it is queued."""
        return self._mark("request_cancel", job_id, {"by": by})

    def hold(self, job_id: JobId, why: str) -> Job:
        """Keep an unfinished job from starting, with the reason; "" releases it. Returns the job."""
        return self._mark("hold_job", job_id, {"why": why})

    def retry(self, jobs: Sequence[JobId]) -> int:
        """Queue the ended ones of these jobs again; returns their number."""
        with self._file.transaction():
            return sum(self._file.run("retry_job", {"id": job_id}).rowcount for job_id in jobs)

    def remove(self, job_id: JobId) -> None:
        """Remove an ended job. Raises NotAllowed when it has not ended, or is a task of a sweep."""
        sweep = sweep_of(job_id)
        if sweep is not None and self.jobs.get(job_id):
            # Without its row it would look like a task that has never begun.
            raise NotAllowed(f"{job_text(job_id)} is a task, and is removed with its sweep", f"sshgrid rm {sweep}")
        with self._file.transaction():
            phase = self.jobs.get(job_id).phase
            if phase is not Phase.DONE:
                raise NotAllowed(
                    f"job {job_id} is {phase}; only finished jobs can be removed", f"sshgrid kill {job_id}"
                )
            self._file.run("remove_job", {"id": job_id})
            self._file.run("remove_tasks", task_range(job_id))

    def backup(self, path: Path) -> None:
        """Write a complete, checked, durable copy to `path` (mode 0600). Raises UsageError when `path` exists."""
        if os.path.lexists(path):
            raise UsageError(f"{path}: already exists", "choose another name for the backup")
        database.backup(self._file.connection, path)

    def _mark(self, name: str, job_id: JobId, values: Values) -> Job:
        with self._file.transaction():
            self.jobs.get(job_id)  # raises NoSuchJob, also for an id that is too large for SQLite
            self._file.run(name, {"id": job_id, **values})
            return self.jobs.get(job_id)
