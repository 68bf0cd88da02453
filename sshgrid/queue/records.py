"""Values of the model as the JSON columns and parameters of the queue."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sshgrid.errors import UsageError
from sshgrid.model import (
    MAX_TASKS,
    Attempt,
    AttemptRecord,
    Caps,
    Job,
    JobId,
    Submission,
    Verdict,
    job_text,
    task_id,
)

MAX_KEY = 200  # characters of a submission's key
MAX_INTEGER = 2**63 - 1  # of SQLite

Values = Mapping[str, object]

CAPS = msgspec.json.Decoder(Caps)
SUBMISSION = msgspec.json.Decoder(Submission)
ATTEMPT = msgspec.json.Decoder(AttemptRecord)
ATTEMPTS = msgspec.json.Decoder(tuple[AttemptRecord, ...])
NAMES = msgspec.json.Decoder(frozenset[str])
VERDICT: msgspec.json.Decoder[Verdict] = msgspec.json.Decoder(Verdict)
_encoder = msgspec.json.Encoder()


def encode(value: object) -> str:
    """The JSON text of a value."""
    return _encoder.encode(value).decode()


def encode_submission(submission: Submission, owner: str, key: str) -> str:
    """The JSON text of a submission. Raises UsageError when the queue cannot store it."""
    if not 0 < len(key) <= MAX_KEY:
        raise UsageError(f"the key of a submission must have 1 to {MAX_KEY} characters, not {len(key)}")
    if not -MAX_INTEGER <= submission.priority <= MAX_INTEGER:
        raise UsageError(f"priority {submission.priority} must be between {-MAX_INTEGER} and {MAX_INTEGER}")
    try:
        (owner + key).encode()
        return encode(submission)
    except UnicodeEncodeError as error:
        raise UsageError(f"a submission must be valid UTF-8: {error}") from error


def settled_columns(job: Job) -> Values:
    """The columns of a job that change when one of its attempts has ended."""
    return {
        "id": job.id,
        "phase": job.phase.value,
        "not_before": job.not_before,
        "excluded": encode(sorted(job.excluded)),
        "verdict": None if job.verdict is None else encode(job.verdict),
        "ended": job.ended,
        "held": job.held,
    }


def task_columns(task: Job) -> Values:
    """The columns of the new row of a task."""
    return {
        "id": task.id,
        "owner": task.owner,
        "key": f"task {job_text(task.id)}",
        "priority": task.submission.priority,
        "submitted": task.submitted,
    }


def task_range(sweep: JobId) -> Values:
    """The first and the last id that a task of this sweep may have."""
    return {"first": task_id(sweep, MAX_TASKS), "last": task_id(sweep, 1)}


def check_same_attempt(attempt: Attempt, record: AttemptRecord) -> None:
    """Raise ValueError when the record belongs to another attempt."""
    if attempt.number != record.number:
        raise ValueError(f"the record is of attempt {record.number}, not of {attempt}")


def check_ended(attempt: Attempt, record: AttemptRecord) -> None:
    """Raise ValueError unless the record belongs to this attempt and has an outcome."""
    check_same_attempt(attempt, record)
    if record.outcome is None:
        raise ValueError(f"the record of attempt {attempt} has no outcome")
