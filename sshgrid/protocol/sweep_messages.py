"""The messages about sweeps: part of sshgrid.protocol.messages.

The output of a task is sent as raw bytes, as any output, after the task has ended.
"""

from __future__ import annotations

from typing import TypeAlias

from sshgrid.model import JobId, Struct


class WatchSweep(Struct, frozen=True, tag="watch-sweep"):
    """Send the tasks of a sweep as they end until the sweep has ended: for each its `TaskOutput`s and then `TaskEnded`;
    between them `SweepProgress` and `Notice`; at last `Ended`. With `keep_order` the tasks come in the order of
    their numbers."""

    job: JobId
    have: str = ""  # numbers of tasks that the client has already, as in "1-40,45"
    keep_order: bool = False
    output: bool = True


class ProgressOf(Struct, frozen=True, tag="progress-of"):
    """Ask for the counts of a sweep. Reply: `SweepProgress`, or `Failure` when the job is not a sweep."""

    job: JobId


class Tasks(Struct, frozen=True, tag="tasks"):
    """List the tasks of a sweep that have begun, by number; with `states` only those in these states. Reply:
    `TasksReply`."""

    job: JobId
    states: tuple[str, ...] = ()


class Retry(Struct, frozen=True, tag="retry"):
    """Queue ended jobs again; of a sweep its tasks. With `failed` only those that did not succeed.
    Reply: `Done` with the number of jobs and tasks that were queued."""

    jobs: tuple[JobId, ...]
    failed: bool = False


SweepsQuestion: TypeAlias = ProgressOf | Tasks | Retry


class TaskLine(Struct, frozen=True):
    """A task as a joblog shows it."""

    number: int
    state: str  # as JobLine.state
    node: str
    attempt: int
    started: float | None  # Unix seconds
    seconds: float
    exit_status: int | None  # with which `run` would have exited; None: not ended
    signal: int | None
    reason: str
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    sent_bytes: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0


class SweepProgress(Struct, frozen=True, tag="sweep-progress"):
    """The counts of a sweep, as a reply to `ProgressOf` and as an event. `tasks` = `ended` (`failed` among them) +
    `running` + `waiting` + `left`."""

    job: JobId
    tasks: int
    ended: int
    failed: int
    running: int
    waiting: int
    left: int = 0  # will not begin, because the sweep was halted or cancelled
    rate: float = 0.0  # tasks that ended per second, lately
    eta_seconds: float | None = None
    slowest: TaskLine | None = None  # the running task that has run for the longest time
    speculative: int = 0  # running tasks that have a second attempt


class TaskOutput(Struct, frozen=True, tag="task-output"):
    """Output of a task that has ended: `size` raw bytes follow. `stream`: "stdout", "stderr" or "compile"."""

    number: int
    stream: str
    size: int


class TaskEnded(Struct, frozen=True, tag="task-ended"):
    """A task has ended, and all of its output was sent."""

    task: TaskLine


class TasksReply(Struct, frozen=True, tag="tasks-reply"):
    """Reply to `Tasks`: tasks by number."""

    tasks: tuple[TaskLine, ...]


SweepEvent: TypeAlias = TaskOutput | TaskEnded | SweepProgress
SweepReply: TypeAlias = SweepProgress | TasksReply
