"""Reads jobs, tasks and their attempts from the queue."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

from sshgrid.errors import StoreError, no_such_job
from sshgrid.model import AttemptRecord, Job, JobId, Phase, Submission, Verdict, job_text
from sshgrid.queue import database
from sshgrid.queue.queue_file import QueueFile
from sshgrid.queue.records import (
    ATTEMPT,
    ATTEMPTS,
    MAX_INTEGER,
    NAMES,
    SUBMISSION,
    VERDICT,
    Values,
    encode,
    task_range,
)

_SUBMISSIONS_CACHED = 20_000


class JobReader:
    """Reads jobs. The submissions of active jobs are cached, as a submission never changes."""

    def __init__(self, file: QueueFile) -> None:
        self._file = file
        self._submissions: dict[int, Submission] = {}

    def get(self, job_id: JobId) -> Job:
        """One job or task. Raises NoSuchJob."""
        found = self._jobs("job_by_id", {"id": job_id}) if abs(job_id) <= MAX_INTEGER else []
        if not found:
            raise no_such_job(job_text(job_id))
        return found[0]

    def select(
        self, ids: Sequence[JobId] | None = None, *, active_only: bool = False, owner: str = "", since: float = 0.0
    ) -> list[Job]:
        """Jobs by number; jobs that ended before `since` (Unix seconds) and unknown ids are left out.

        Tasks of sweeps are included only when `ids` names them.
        """
        if ids is not None:
            known = [job_id for job_id in ids if abs(job_id) <= MAX_INTEGER]
            found = self._jobs("jobs_by_ids", {"ids": encode(known)})
            return [job for job in found if _is_selected(job, active_only, owner, since)]
        return self._jobs("jobs_active" if active_only else "jobs_all", {"owner": owner, "since": since})

    def ids(self, owner: str = "") -> list[JobId]:
        """The numbers of all jobs of one owner, or of all owners."""
        return [JobId(row[0]) for row in self._file.rows("ids", {"owner": owner})]

    def by_key(self, owner: str, key: str) -> Job | None:
        """The job that an earlier submission with this key became; None when there was none."""
        before = self._file.rows("job_of_key", {"owner": owner, "key": key})
        return self.get(JobId(before[0][0])) if before else None

    def active_tasks(self) -> list[Job]:
        """The tasks that run, or wait for another attempt."""
        return self._jobs("tasks_active", {})

    def tasks(self, sweep: JobId) -> list[Job]:
        """The tasks of a sweep that have begun, by number."""
        return self._jobs("tasks_of", task_range(sweep))

    def task_verdicts(self, sweep: JobId) -> list[tuple[JobId, Phase, Verdict | None]]:
        """Phase and verdict of each task that has begun, in the order of their ends; reads no submission."""
        rows = self._file.rows("task_verdicts", task_range(sweep))
        verdicts: dict[str | None, Verdict | None] = {None: None}
        for _, _, text in rows:
            if text not in verdicts:
                verdicts[text] = self._file.decode(VERDICT, text, f"a task of {sweep}")
        return [(JobId(job_id), Phase(phase), verdicts[text]) for job_id, phase, text in rows]

    def superseded(self, sweep: JobId) -> list[tuple[JobId, AttemptRecord]]:
        """The superseded attempts of the tasks of a sweep, with the ids of their tasks."""
        rows = self._file.rows("superseded", task_range(sweep))
        return [(JobId(job_id), self._file.decode(ATTEMPT, text, f"job {job_id}")) for job_id, text in rows]

    def queued(self) -> list[Job]:
        """Queued jobs (held ones and those in backoff too): highest priority first, then oldest."""
        return self._jobs("jobs_queued", {})

    def running(self) -> list[Job]:
        """Running jobs and tasks, by number."""
        return self._jobs("jobs_running", {})

    def tally(self, owner: str = "") -> list[tuple[Phase, Verdict | None, int]]:
        """The number of jobs for each phase and verdict; reads no job."""
        rows = self._file.rows("tally", {"owner": owner})
        return [
            (Phase(phase), verdict and self._file.decode(VERDICT, verdict, "verdict"), count)
            for phase, verdict, count in rows
        ]

    def blobs(self, owner: str = "") -> set[str]:
        """The SHA-256 of each file that a job of one owner, or of any owner, still needs."""
        if owner:
            return {row[0] for row in self._file.rows("blobs_of", {"owner": owner})}
        return {row[0] for row in self._file.rows("blobs", {})}

    def input_lists(self) -> set[str]:
        """The SHA-256 of those blobs that list further blobs: the inputs of the tasks of sweeps."""
        return {row[0] for row in self._file.rows("input_lists", {})}

    # --- the cache of submissions

    def drop_submission(self, job_id: JobId) -> None:
        """Drop the submission of an ended job."""
        self._submissions.pop(job_id, None)

    def drop_submissions(self) -> None:
        """Drop all submissions: a transaction was undone, and its ids will be given to other jobs."""
        self._submissions.clear()

    def _jobs(self, name: str, values: Values) -> list[Job]:
        with self._file.snapshot():
            rows = self._file.run(name, values).fetchall()
            submissions = self._submissions_of(rows)
        return [self._job(row, submissions[row["id"]]) for row in rows]

    def _submissions_of(self, rows: Sequence[Any]) -> Mapping[int, Submission]:
        # The scheduler reads the same active jobs often; decoding them each time would be most of its work.
        active = {row["id"] for row in rows if row["phase"] != "done"}
        needed = [row["id"] for row in rows if row["id"] not in self._submissions]
        found = {
            job_id: self._file.decode(SUBMISSION, body, f"job {job_id}")
            for job_id, body in self._file.run("submissions", {"ids": encode(needed)})
        }
        if len(self._submissions) < _SUBMISSIONS_CACHED:
            self._submissions.update((job_id, found[job_id]) for job_id in active & found.keys())
        if missing := set(needed) - found.keys():
            raise StoreError(
                f"{self._file.path}: damaged: the submission of job {min(missing)} is missing", database.RESTORE_HINT
            )
        return ChainMap(found, self._submissions)

    def _job(self, row: Any, submission: Submission) -> Job:
        where = f"job {row['id']}"
        attempts = self._file.decode(ATTEMPTS, f"[{row['attempts']}]", where) if row["attempts"] else ()
        return Job(
            id=JobId(row["id"]),
            owner=row["owner"],
            submission=submission,
            submitted=row["submitted"],
            phase=Phase(row["phase"]),
            attempts=tuple(sorted(attempts, key=lambda record: record.number)),
            excluded=self._file.decode(NAMES, row["excluded"], where),
            not_before=row["not_before"],
            verdict=self._file.decode(VERDICT, row["verdict"], where) if row["verdict"] else None,
            cancel_requested=bool(row["cancel_requested"]),
            held=row["held"],
            ended=row["ended"],
            cancel_by=row["cancel_by"],
            forgiven=row["forgiven"],
        )


def _is_selected(job: Job, active_only: bool, owner: str, since: float) -> bool:
    if active_only and job.phase is Phase.DONE:
        return False
    return owner in ("", job.owner) and (job.ended is None or job.ended >= since)
