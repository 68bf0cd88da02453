"""What is asked and answered about sweeps: their part of sshgrid.protocol.messages.

Pure nouns. A task's output follows as raw bytes, like any other output, and never before the task has ended.
"""

from __future__ import annotations

from typing import TypeAlias

from sshgrid.model import JobId, Struct


class WatchSweep(Struct, frozen=True, tag="watch-sweep"):
    """The tasks of a sweep as they end, until it is done: for each `TaskOutput`s and then `TaskEnded`; between them
    `SweepProgress`; at last `Ended`. With `keep_order` in the order of their numbers."""

    job: JobId
    have: str = ""  # numbers of tasks that need not be told again, as "1-40,45"
    keep_order: bool = False
    output: bool = True


class ProgressOf(Struct, frozen=True, tag="progress-of"):
    """How far a sweep has come. Answered by `SweepProgress`; UsageError when the job is none."""

    job: JobId


class Tasks(Struct, frozen=True, tag="tasks"):
    """The tasks of a sweep that have begun, by number; in these states alone if any are named. `TasksReply`."""

    job: JobId
    states: tuple[str, ...] = ()


class Retry(Struct, frozen=True, tag="retry"):
    """Queue jobs that are done once more; of a sweep its tasks, with `failed` those that did not succeed. `Done` counts
    what is queued."""

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
    exit_status: int | None  # what `run` would have exited with; None = not done
    signal: int | None
    reason: str
    cpu_seconds: float | None = None
    peak_memory: int | None = None
    sent_bytes: int = 0
    stdout_bytes: int = 0
    stderr_bytes: int = 0


class SweepProgress(Struct, frozen=True, tag="sweep-progress"):
    """How far a sweep has come. Tasks = ended (failed among them) + running + waiting + left."""

    job: JobId
    tasks: int
    ended: int
    failed: int
    running: int
    waiting: int
    left: int = 0  # will not begin, because the sweep was halted or cancelled
    rate: float = 0.0  # tasks that ended a second, lately
    eta_seconds: float | None = None
    slowest: TaskLine | None = None  # of those that run, the one that runs longest
    backups: int = 0  # of those that run, how many run twice


class TaskOutput(Struct, frozen=True, tag="task-output"):
    """`size` raw bytes of a task that has ended follow. stream: "stdout" | "stderr" | "compile"."""

    number: int
    stream: str
    size: int


class TaskEnded(Struct, frozen=True, tag="task-ended"):
    """A task is over, and all of its output was told."""

    task: TaskLine


class TasksReply(Struct, frozen=True, tag="tasks-reply"):
    """Tasks, by number."""

    tasks: tuple[TaskLine, ...]


SweepEvent: TypeAlias = TaskOutput | TaskEnded | SweepProgress
SweepReply: TypeAlias = SweepProgress | TasksReply
