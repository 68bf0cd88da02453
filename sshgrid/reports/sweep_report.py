"""Sweeps as users see them: the progress of one, and its tasks as lines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, TypeAlias

from sshgrid.clock import Clock
from sshgrid.model import Job, JobId, Sweep, SweepDone, task_number
from sshgrid.policy import states
from sshgrid.protocol.sweep_messages import SweepProgress, TaskLine
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.spool.spool import Spool
from sshgrid.sweeps.checks import Counts

IsDisconnected: TypeAlias = Callable[[Job], bool]


class SweepInProgress(Protocol):
    """What a report reads of one sweep."""

    @property
    def job(self) -> Job: ...

    @property
    def plan(self) -> Sweep: ...

    @property
    def ended(self) -> list[int]:
        """Numbers of the tasks that have ended, in the order in which they ended; the list grows at its end."""

    @property
    def compile_output_task(self) -> int:
        """The task whose compiler output is shown; the output of the others is the same."""

    @property
    def end_event(self) -> asyncio.Event: ...

    def numbers(self) -> Iterator[int]:
        """The numbers of all chosen tasks, in order."""

    def counts(self) -> Counts: ...

    def rate(self) -> float:
        """Tasks that ended per second, lately."""


class SweepSource(Protocol):
    """Finds the state of a sweep."""

    def read(self, job: Job) -> SweepInProgress:
        """Raises UsageError when the job is not a sweep."""


class RunningAttempts(Protocol):
    """What a report reads of the attempts that run now."""

    def with_live_records(self, job: Job) -> Job:
        """The job with the newest step of each running attempt, which the store may not have yet."""

    def longest_running(self, sweep: JobId) -> JobId | None:
        """The task of this sweep whose program has run for the longest time."""


class SweepReport:
    """Answers questions about the sweeps of a master."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        spool: Spool,
        sweeps: SweepSource,
        attempts: RunningAttempts,
        disconnected: IsDisconnected,
        clock: Clock,
    ) -> None:
        self._active_jobs = active_jobs
        self._spool = spool
        self._sweeps = sweeps
        self._attempts = attempts
        self._disconnected = disconnected
        self._clock = clock

    def read(self, job: Job) -> SweepInProgress:
        """The state of a sweep. Raises UsageError when the job is not a sweep."""
        return self._sweeps.read(job)

    def progress(self, job: Job) -> SweepProgress:
        """Counts of the tasks by state. Raises UsageError when the job is not a sweep."""
        if isinstance(job.verdict, SweepDone):  # has all counts; a list may hold many ended sweeps
            tasks, failed, left = job.verdict.tasks, job.verdict.failed, job.verdict.left
            return SweepProgress(job.id, tasks, tasks - left, failed, running=0, waiting=0, left=left)
        return self.progress_of(self._sweeps.read(job))

    def progress_of(self, state: SweepInProgress) -> SweepProgress:
        """As `progress`, of a state that was read before."""
        counts, rate = state.counts(), state.rate()
        slowest = self._attempts.longest_running(state.job.id)
        return SweepProgress(
            job=state.job.id,
            tasks=counts.tasks,
            ended=counts.ended,
            failed=counts.failed,
            running=counts.running,
            waiting=counts.waiting,
            left=counts.left,
            rate=rate,
            eta_seconds=(counts.waiting + counts.running) / rate if rate else None,
            slowest=self.task_line(self._active_jobs.current(slowest)) if slowest else None,
            speculative=counts.speculative,
        )

    def tasks(self, job: Job, wanted: tuple[str, ...]) -> tuple[TaskLine, ...]:
        """The tasks that have begun, by number; with `wanted` only those in these states."""
        self._sweeps.read(job)
        lines = map(self.task_line, self._active_jobs.store.jobs.tasks(job.id))
        return tuple(line for line in lines if not wanted or line.state in wanted)

    def task_line(self, task: Job, sizes: Mapping[str, int] | None = None) -> TaskLine:
        """One task as a joblog shows it. `sizes`: bytes of each stream, when the caller has read them."""
        task = self._attempts.with_live_records(task)
        last = task.current
        assert last is not None
        if sizes is None:
            sizes = self._spool.outputs.sizes(task.id, last.number)
        return TaskLine(
            number=task_number(task.id),
            state=states.state(task, self._disconnected(task)),
            node=last.node,
            attempt=last.number,
            started=last.began,
            seconds=max(0.0, (last.ended or self._clock.wall()) - last.began),
            exit_status=states.exit_status(task),
            signal=states.ended_by_signal(task.verdict),
            reason=states.reason(task),
            cpu_seconds=last.usage.cpu_seconds,
            peak_memory=last.usage.peak_memory_bytes,
            sent_bytes=last.uploaded_bytes,
            stdout_bytes=sizes["stdout"],
            stderr_bytes=sizes["stderr"],
        )
