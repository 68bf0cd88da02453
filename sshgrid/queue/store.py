"""The durable queue: jobs, attempts and verdicts in one SQLite file (all SQL is in schema.sql).

What a call returned survives a kill and a power cut. The fence: only a live attempt can settle its job, and then no
other one is live any more. Refuses a file that it cannot trust (damaged, from a newer sshgrid, readable by others, on a
network file system). One connection, used from the thread that opened it.
"""

from __future__ import annotations

import os
import sqlite3
from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import msgspec

from sshgrid.errors import NotAllowed, StoreError, UsageError, no_such_job
from sshgrid.model import (
    MAX_TASKS,
    Account,
    Attempt,
    AttemptRecord,
    Caps,
    Job,
    JobId,
    Phase,
    Role,
    Submission,
    Superseded,
    UserKey,
    Verdict,
    job_text,
    sweep_of,
    task_id,
)
from sshgrid.queue import database

MAX_KEY = 200
_MAX_INTEGER = 2**63 - 1
_WAITING_KEPT = 20_000

T = TypeVar("T")
Values = Mapping[str, object]


class Store:
    """Open it with `Store.open`. Every change is one transaction, durable on return (or at the end of a `batch`)."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._inode = path.stat().st_ino
        self._waiting: dict[int, Submission] = {}  # of jobs that are not over; a submission never changes
        self.grid = str(self._value("get_meta", {"name": "grid"}))

    @classmethod
    def open(cls, path: Path, busy_seconds: float = database.BUSY_SECONDS) -> Self:
        """Open the queue at `path`, made when it is missing. StoreError when it cannot be trusted."""
        return cls(database.open_file(path, busy_seconds), path)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- reading ------------------------------------------------------------------------------------------------------

    def job(self, job_id: JobId) -> Job:
        found = self._jobs("job_by_id", {"id": job_id}) if abs(job_id) <= _MAX_INTEGER else []
        if not found:
            raise no_such_job(job_text(job_id))
        return found[0]

    def jobs(
        self, ids: Sequence[JobId] | None = None, *, active_only: bool = False, owner: str = "", since: float = 0.0
    ) -> list[Job]:
        """Jobs in the order of their numbers; `since` leaves out what was over before. Unknown ids are left out.

        Tasks of sweeps are among them only when asked for by id.
        """
        if ids is not None:
            known = [job_id for job_id in ids if abs(job_id) <= _MAX_INTEGER]
            found = self._jobs("jobs_by_ids", {"ids": msgspec.json.encode(known).decode()})
            return [job for job in found if _wanted(job, active_only, owner, since)]
        return self._jobs("jobs_active" if active_only else "jobs_all", {"owner": owner, "since": since})

    def ids(self, owner: str = "") -> list[JobId]:
        return [JobId(row[0]) for row in self._rows("ids", {"owner": owner})]

    def active_tasks(self) -> list[Job]:
        """Tasks that run, or wait for another attempt."""
        return self._jobs("tasks_active", {})

    def tasks(self, sweep: JobId) -> list[Job]:
        """The tasks of a sweep that have begun, by number."""
        return self._jobs("tasks_of", _task_range(sweep))

    def superseded(self, sweep: JobId) -> list[tuple[JobId, AttemptRecord]]:
        """Attempts at tasks of a sweep that another one has superseded, whether or not they were seen to end."""
        rows = self._rows("superseded", _task_range(sweep))
        return [(JobId(job_id), self._decode(_attempt, text, f"job {job_id}")) for job_id, text in rows]

    def task_fates(self, sweep: JobId) -> list[tuple[JobId, Phase, Verdict | None]]:
        """Of each task that has begun how it stands, in the order in which they ended, without reading each job."""
        rows = self._rows("task_fates", _task_range(sweep))
        verdicts: dict[str | None, Verdict | None] = {None: None}
        for _, _, text in rows:
            if text not in verdicts:
                verdicts[text] = self._decode(_verdict, text, f"a task of {sweep}")
        return [(JobId(job_id), Phase(phase), verdicts[text]) for job_id, phase, text in rows]

    def queued(self) -> list[Job]:
        """What waits (held and backing off too): highest priority first, then oldest."""
        return self._jobs("jobs_queued", {})

    def running(self) -> list[Job]:
        return self._jobs("jobs_running", {})

    def tally(self, owner: str = "") -> list[tuple[Phase, Verdict | None, int]]:
        """How many jobs stand where and ended how, without reading each."""
        rows = self._rows("tally", {"owner": owner})
        return [(Phase(phase), verdict and self._decode(_verdict, verdict, "verdict"), n) for phase, verdict, n in rows]

    def late_news(self) -> int:
        """How many results were dropped because their attempt was no longer the current one."""
        return int(self._value("late_news", {}))

    def blobs(self) -> set[str]:
        """SHA-256 of every file that some job still needs: what Spool.sweep must keep."""
        return {row[0] for row in self._rows("blobs", {})}

    def input_lists(self) -> set[str]:
        """Those of `blobs` that name further files: what the tasks of sweeps read."""
        return {row[0] for row in self._rows("input_lists", {})}

    def blobs_of(self, owner: str) -> set[str]:
        """As `blobs`, of the jobs of one owner."""
        return {row[0] for row in self._rows("blobs_of", {"owner": owner})}

    def users(self) -> list[Account]:
        """Everybody who may come through the door, by name."""
        keys: dict[str, list[UserKey]] = {}
        with database.blame(self._path), database.snapshot(self._connection):
            rows = self._run("users", {}).fetchall()
            for key in self._run("user_keys", {}):
                keys.setdefault(key["user"], []).append(UserKey(key["fingerprint"], key["line"]))
        return [self._user(row, tuple(keys.get(row["name"], ()))) for row in rows]

    # --- changing -----------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Many calls, one commit: durable when the block ends, undone together when it raises. Never await inside."""
        with self._change():
            yield

    def add(self, submission: Submission, owner: str, key: str, now: float) -> Job:
        """Accept a job. The same owner and `key` again give the same job, whatever it has become."""
        body = _encode_submission(submission, owner, key)
        with self._change():
            if before := self.job_of_key(owner, key):
                return before
            values = {"owner": owner, "key": key, "priority": submission.priority, "submitted": now}
            job_id = self._run("add_job", values).lastrowid
            self._run("add_submission", {"id": job_id, "body": body})
        assert job_id is not None
        return Job(JobId(job_id), owner, submission, now)

    def job_of_key(self, owner: str, key: str) -> Job | None:
        """The job that this submission became, when it was accepted before."""
        before = self._rows("job_of_key", {"owner": owner, "key": key})
        return self.job(JobId(before[0][0])) if before else None

    def begin(self, job_id: JobId, node: str, now: float, gpus: tuple[int, ...] = ()) -> Attempt | None:
        """Claim a job for `node`. None when it no longer waits, is held, or shall be cancelled."""
        with self._change():
            # The new attempt is the live one: settle() ignores news of any other.
            if self._run("begin_job", {"id": job_id}).rowcount == 0:
                return None
            return self._add_attempt(job_id, AttemptRecord(0, node, now, gpus=gpus))

    def begin_backup(self, job_id: JobId, node: str, now: float, gpus: tuple[int, ...] = ()) -> Attempt | None:
        """Claim `node` for a second attempt beside the one that runs: both are live.

        None when the job no longer runs, shall be cancelled, or has two already.
        """
        with self._change():
            if self._run("begin_backup", {"id": job_id}).rowcount == 0:
                return None
            return self._add_attempt(job_id, AttemptRecord(0, node, now, gpus=gpus, backup=True))

    def _add_attempt(self, job_id: JobId, record: AttemptRecord) -> Attempt:
        """The one that was claimed just now; only its number is not known before."""
        number = self._value("last_attempt", {"id": job_id})
        record = msgspec.structs.replace(record, number=number)
        self._run("add_attempt", {"id": job_id, "number": number, "record": _json(record)})
        return Attempt(job_id, number, record.node)

    def begin_tasks(self, tasks: Sequence[Job], record: AttemptRecord) -> list[Attempt]:
        """Begin the first attempts at tasks of a sweep, all or none; only now they become rows."""
        text = _json(record)
        with self._change():
            self._run_all("add_task", map(_task_columns, tasks))
            self._run_all("add_submission", ({"id": task.id, "body": _json(task.submission)} for task in tasks))
            self._run_all("add_attempt", ({"id": task.id, "number": 1, "record": text} for task in tasks))
        return [Attempt(task.id, 1, record.node) for task in tasks]

    def note(self, attempt: Attempt, record: AttemptRecord) -> bool:
        """Remember the progress of a running attempt. False = it is no longer live; nothing is kept."""
        _same_attempt(attempt, record)
        with self._change():
            values = {"id": attempt.job, "number": attempt.number, "record": _json(record)}
            return self._run("note_attempt", values).rowcount == 1

    def settle(self, attempt: Attempt, record: AttemptRecord, job: Job) -> bool:
        """Write how an attempt ended, and the job as lifecycle.settle made it. False = late news: counted, dropped."""
        _ended_attempt(attempt, record)
        if job.id != attempt.job or job.phase is Phase.RUNNING:
            raise ValueError(f"attempt {attempt} cannot settle job {job.id} as {job.phase}")
        with self._change():
            if self._run("settle_job", {"number": attempt.number, **_settled_columns(job)}).rowcount == 0:
                self._run("count_late_news", {})
                return False
            self._run("note_settled", {"id": attempt.job, "number": attempt.number, "record": _json(record)})
            for other in job.attempts:
                if isinstance(other.outcome, Superseded) and other.outcome.by == attempt.number:
                    values = {"id": job.id, "number": other.number, "record": _json(other)}
                    self._run("note_superseded", values)
        self._waiting.pop(job.id, None)
        return True

    def leave(self, attempt: Attempt, record: AttemptRecord) -> bool:
        """Write how an attempt ended that leaves its job to another live one. False = late news: counted, dropped."""
        _ended_attempt(attempt, record)
        with self._change():
            values = {"id": attempt.job, "number": attempt.number, "record": _json(record)}
            if self._run("leave_attempt", values).rowcount == 0:
                self._run("count_late_news", {})
                return False
        return True

    def give_back_task(self, task: JobId) -> bool:
        """Undo `begin_tasks` for a task that never began and never will. False when it is no longer as it was then."""
        with self._change():
            return self._run("give_back_task", {"id": task}).rowcount == 1

    def finish(self, job_id: JobId, verdict: Verdict, now: float) -> bool:
        """End a job that waits (cancelled, no node left). False when it does not wait."""
        self._waiting.pop(job_id, None)
        with self._change():
            return self._run("finish_job", {"id": job_id, "verdict": _json(verdict), "ended": now}).rowcount == 1

    def request_cancel(self, job_id: JobId, by: str) -> Job:
        """Mark a job that is not over: it never starts again. Gives the job as it stands; if it waits, finish() it."""
        return self._mark("request_cancel", job_id, {"by": by})

    def hold(self, job_id: JobId, why: str) -> Job:
        """Keep a job that is not over from starting; "" lets it go. Gives the job as it stands."""
        return self._mark("hold_job", job_id, {"why": why})

    def retry(self, jobs: Sequence[JobId]) -> int:
        """Queue those of these jobs that are over once more; how many they are."""
        with self._change():
            return sum(self._run("retry_job", {"id": job_id}).rowcount for job_id in jobs)

    def keep_user(self, user: Account) -> None:
        """Add a user, or what one has become."""
        values = {
            "name": user.name,
            "role": user.role.value,
            "disabled": int(user.disabled),
            "password": user.password or None,
            "created": user.created,
            "caps": _json(user.caps),
        }
        with self._change():
            self._run("keep_user", values)
            self._run("forget_keys", {"name": user.name})
            for key in user.keys:
                self._run("keep_key", {"name": user.name, "fingerprint": key.fingerprint, "line": key.line})

    def forget_user(self, name: str) -> None:
        with self._change():
            self._run("forget_user", {"name": name})

    def remove(self, job_id: JobId) -> None:
        """Forget a finished job. NotAllowed when it is not over, or is only a part of a sweep."""
        sweep = sweep_of(job_id)
        if sweep is not None and self.job(job_id):
            # Without its row it would be a task that has never begun.
            raise NotAllowed(f"{job_text(job_id)} goes with its sweep", f"sshgrid rm {sweep}")
        with self._change():
            phase = self.job(job_id).phase
            if phase is not Phase.DONE:
                raise NotAllowed(
                    f"job {job_id} is {phase}: only finished jobs can be removed", f"sshgrid kill {job_id}"
                )
            self._run("remove_job", {"id": job_id})
            self._run("remove_tasks", _task_range(job_id))

    def backup(self, path: Path) -> None:
        """A whole, checked, durable copy at `path` (0600), which must not exist (UsageError)."""
        if os.path.lexists(path):
            raise UsageError(f"{path}: exists already", "choose another name for the backup")
        database.back_up(self._connection, path)

    # --- SQLite -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _change(self) -> Iterator[None]:
        try:
            with database.blame(self._path):
                if not self._connection.in_transaction:
                    self._still_there()
                with database.change(self._connection):
                    yield
        except BaseException:
            self._waiting.clear()  # an id whose job was undone may be given again
            raise

    def _still_there(self) -> None:
        # SQLite goes on writing to a file that was deleted under it, and every accepted job would be lost.
        try:
            if self._path.lstat().st_ino == self._inode:
                return
        except OSError:
            pass
        raise StoreError(f"{self._path}: was removed or replaced while in use", "stop the master, restore the file")

    def _mark(self, name: str, job_id: JobId, values: Values) -> Job:
        with self._change():
            self.job(job_id)  # NoSuchJob, before an id that SQLite cannot hold
            self._run(name, {"id": job_id, **values})
            return self.job(job_id)

    def _run(self, name: str, values: Values) -> sqlite3.Cursor:
        return self._connection.execute(database.SQL[name], values)

    def _run_all(self, name: str, values: Iterable[Values]) -> None:
        self._connection.executemany(database.SQL[name], values)

    def _rows(self, name: str, values: Values) -> list[Any]:
        with database.blame(self._path):
            return self._run(name, values).fetchall()

    def _value(self, name: str, values: Values) -> Any:
        rows = self._rows(name, values)
        if not rows:
            raise StoreError(f"{self._path}: damaged: no {values.get('name', name)} in it", database.RESTORE)
        return rows[0][0]

    def _jobs(self, name: str, values: Values) -> list[Job]:
        with database.blame(self._path), database.snapshot(self._connection):
            rows = self._run(name, values).fetchall()
            submissions = self._submissions(rows)
        return [self._job(row, submissions[row["id"]]) for row in rows]

    def _submissions(self, rows: Sequence[Any]) -> Mapping[int, Submission]:
        # The loop asks for the same waiting jobs again and again: reading them anew would be most of its work.
        active = {row["id"] for row in rows if row["phase"] != "done"}
        needed = [row["id"] for row in rows if row["id"] not in self._waiting]
        found = {
            job_id: self._decode(_submission, body, f"job {job_id}")
            for job_id, body in self._run("submissions", {"ids": _json(needed)})
        }
        if len(self._waiting) < _WAITING_KEPT:
            self._waiting.update((job_id, found[job_id]) for job_id in active & found.keys())
        if lost := set(needed) - found.keys():
            raise StoreError(f"{self._path}: damaged: no submission of job {min(lost)}", database.RESTORE)
        return ChainMap(found, self._waiting)

    def _job(self, row: Any, submission: Submission) -> Job:
        where = f"job {row['id']}"
        attempts = self._decode(_attempts, f"[{row['attempts']}]", where) if row["attempts"] else ()
        return Job(
            id=JobId(row["id"]),
            owner=row["owner"],
            submission=submission,
            submitted=row["submitted"],
            phase=Phase(row["phase"]),
            attempts=tuple(sorted(attempts, key=lambda record: record.number)),
            excluded=self._decode(_names, row["excluded"], where),
            not_before=row["not_before"],
            verdict=self._decode(_verdict, row["verdict"], where) if row["verdict"] else None,
            cancel_requested=bool(row["cancel_requested"]),
            held=row["held"],
            ended=row["ended"],
            cancel_by=row["cancel_by"],
            forgiven=row["forgiven"],
        )

    def _user(self, row: Any, keys: tuple[UserKey, ...]) -> Account:
        where = f"user {row['name']}"
        caps = self._decode(_caps, row["caps"], where)
        password = row["password"] or ""
        return Account(row["name"], Role(row["role"]), row["created"], bool(row["disabled"]), password, keys, caps)

    def _decode(self, decoder: msgspec.json.Decoder[T], text: str, where: str) -> T:
        try:
            return decoder.decode(text)
        except msgspec.MsgspecError as error:
            raise StoreError(f"{self._path}: damaged: {where}: {error}", database.RESTORE) from error


_caps = msgspec.json.Decoder(Caps)
_submission = msgspec.json.Decoder(Submission)
_attempt = msgspec.json.Decoder(AttemptRecord)
_attempts = msgspec.json.Decoder(tuple[AttemptRecord, ...])
_names = msgspec.json.Decoder(frozenset[str])
_verdict: msgspec.json.Decoder[Verdict] = msgspec.json.Decoder(Verdict)
_encoder = msgspec.json.Encoder()


def _json(value: object) -> str:
    return _encoder.encode(value).decode()


# --- values and columns -----------------------------------------------------------------------------------------------


def _encode_submission(submission: Submission, owner: str, key: str) -> str:
    if not 0 < len(key) <= MAX_KEY:
        raise UsageError(f"the key of a submission has 1 to {MAX_KEY} characters, this one {len(key)}")
    if not -_MAX_INTEGER <= submission.priority <= _MAX_INTEGER:
        raise UsageError(f"priority {submission.priority} is too large a number")
    try:
        (owner + key).encode()
        return _json(submission)
    except UnicodeEncodeError as error:
        raise UsageError(f"a submission must be valid text: {error}") from error


def _settled_columns(job: Job) -> Values:
    return {
        "id": job.id,
        "phase": job.phase.value,
        "not_before": job.not_before,
        "excluded": _json(sorted(job.excluded)),
        "verdict": None if job.verdict is None else _json(job.verdict),
        "ended": job.ended,
        "held": job.held,
    }


def _task_range(sweep: JobId) -> Values:
    """The ids of all tasks that a sweep may have."""
    return {"first": task_id(sweep, MAX_TASKS), "last": task_id(sweep, 1)}


def _same_attempt(attempt: Attempt, record: AttemptRecord) -> None:
    if attempt.number != record.number:
        raise ValueError(f"the record is of attempt {record.number}, not of {attempt}")


def _ended_attempt(attempt: Attempt, record: AttemptRecord) -> None:
    _same_attempt(attempt, record)
    if record.outcome is None:
        raise ValueError(f"the record of attempt {attempt} does not say how it ended")


def _wanted(job: Job, active_only: bool, owner: str, since: float) -> bool:
    if active_only and job.phase is Phase.DONE:
        return False
    return owner in ("", job.owner) and (job.ended is None or job.ended >= since)


def _task_columns(task: Job) -> Values:
    return {
        "id": task.id,
        "owner": task.owner,
        "key": f"task {job_text(task.id)}",
        "priority": task.submission.priority,
        "submitted": task.submitted,
    }
