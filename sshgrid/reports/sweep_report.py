"""Sweeps as people see them: how far one has come, its tasks as lines, and all of it as it happens.

As with single jobs nothing is queued for a watcher: it reads store and spool at its own pace. Refuses to show the
output of a task that has not ended, as that of another one would stand in its middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator, Mapping
from typing import Protocol

from sshgrid.model import Job, JobId, Phase, Sweep, SweepDone, task_id, task_number
from sshgrid.policy import states
from sshgrid.protocol.messages import Ended, Event, Notice
from sshgrid.protocol.sweep_messages import SweepProgress, TaskEnded, TaskLine, TaskOutput, WatchSweep
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.reports.watch import PIECE_BYTES, STREAMS, Line
from sshgrid.spool.spool import Spool
from sshgrid.sweeps import parameters
from sshgrid.sweeps.checks import Counts

PROGRESS_SECONDS = 0.2
IsDisconnected = Callable[[Job], bool]


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
    def backups(self) -> Collection[JobId]:
        """Tasks that have two running attempts."""

    @property
    def compiler_said(self) -> int:
        """The task whose compiler output is shown; the output of the others is the same."""

    @property
    def finished(self) -> asyncio.Event: ...

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
    """What may be asked about the sweeps of a master."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        spool: Spool,
        sweeps: SweepSource,
        attempts: RunningAttempts,
        disconnected: IsDisconnected,
    ) -> None:
        self._active_jobs = active_jobs
        self._spool = spool
        self._sweeps = sweeps
        self._attempts = attempts
        self._disconnected = disconnected

    def progress(self, job: Job) -> SweepProgress:
        """How far this sweep has come. UsageError when it is none."""
        if isinstance(job.verdict, SweepDone):  # says it all, and a list may hold many that are over
            tasks, failed, left = job.verdict.tasks, job.verdict.failed, job.verdict.left
            return SweepProgress(job.id, tasks, tasks - left, failed, running=0, waiting=0, left=left)
        return self._progress(self._sweeps.read(job))

    def _progress(self, state: SweepInProgress) -> SweepProgress:
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
            backups=len(state.backups),
        )

    def tasks(self, job: Job, wanted: tuple[str, ...]) -> tuple[TaskLine, ...]:
        """The tasks that have begun, by number, in these states alone if any are named."""
        self._sweeps.read(job)
        lines = map(self.task_line, self._active_jobs.store.jobs.tasks(job.id))
        return tuple(line for line in lines if not wanted or line.state in wanted)

    def task_line(self, task: Job) -> TaskLine:
        """One task, as a joblog has it."""
        task = self._attempts.with_live_records(task)
        assert task.current is not None
        return self._line(task, self._spool.outputs.sizes(task.id, task.current.number))

    def _line(self, task: Job, sizes: Mapping[str, int]) -> TaskLine:
        last = task.current
        assert last is not None
        return TaskLine(
            number=task_number(task.id),
            state=states.state(task, self._disconnected(task)),
            node=last.node,
            attempt=last.number,
            started=last.began,
            seconds=max(0.0, (last.ended or time.time()) - last.began),
            exit_status=states.exit_status(task),
            signal=states.ended_by_signal(task.verdict),
            reason=states.reason(task),
            cpu_seconds=last.usage.cpu_seconds,
            peak_memory=last.usage.peak_memory_bytes,
            sent_bytes=last.uploaded_bytes,
            stdout_bytes=sizes["stdout"],
            stderr_bytes=sizes["stderr"],
        )

    # --- as it happens

    async def watch(self, request: WatchSweep, line: Line) -> AsyncGenerator[tuple[Event, bytes], None]:
        """The tasks as they end, until the sweep is done."""
        state = self._sweeps.read(self._active_jobs.current(request.job))
        told = _Told(state, request)
        said: SweepProgress | None = None
        heard = 0
        while True:
            waiter = self._active_jobs.notifications.listen(request.job)
            try:
                job = self._active_jobs.current(request.job)
                for number in told.news(self._ended(state, job)):
                    for event in self._task(state, number, output=request.output):
                        yield event
                for said_as, text in self._active_jobs.notifications.notices(request.job, heard):
                    heard = said_as
                    yield Notice(text), b""
                progress = self._progress(state)
                if progress != said:
                    said = progress
                    yield progress, b""
                if job.phase is Phase.DONE:
                    yield Ended(line(job, False)), b""
                    return
                # Some pause, as in a busy sweep there is news a thousand times a second; but none at its end.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROGRESS_SECONDS):
                        await state.finished.wait()
                await asyncio.wait([waiter], timeout=1.0)
            finally:
                waiter.cancel()

    def _ended(self, state: SweepInProgress, job: Job) -> list[int]:
        return state.ended if job.phase is not Phase.DONE else self._sweeps.read(job).ended

    def _task(self, state: SweepInProgress, number: int, *, output: bool) -> Iterator[tuple[Event, bytes]]:
        task = self._active_jobs.current(task_id(state.job.id, number))
        assert task.current is not None
        attempt = task.current.number
        sizes = self._spool.outputs.sizes(task.id, attempt)
        for stream in STREAMS if output else ():
            offset = 0
            if not sizes[stream]:
                continue
            if stream == "compile" and number != state.compiler_said:
                continue  # all tasks of a sweep meet the same words of the compiler
            while piece := self._spool.outputs.read(task.id, attempt, stream, offset, PIECE_BYTES):
                yield TaskOutput(number, stream, len(piece)), piece
                offset += len(piece)
        yield TaskEnded(self._line(self._attempts.with_live_records(task), sizes)), b""


class _Told:
    """What a watcher has been told."""

    def __init__(self, state: SweepInProgress, request: WatchSweep) -> None:
        ranges = parameters.parse_ranges(request.have, state.plan.tasks) if request.have else ()
        self._told = {number for numbers in ranges for number in numbers}
        self._seen = 0  # of the list of those that ended
        self._held: set[int] = set()  # ended, while one before them has not
        self._order = iter(state.numbers()) if request.keep_order else None
        self._due: int | None = None

    def news(self, ended: list[int]) -> list[int]:
        """The tasks to be told now, of all that ended so far."""
        fresh = [number for number in ended[self._seen :] if number not in self._told]
        self._seen = len(ended)
        self._told.update(fresh)
        if self._order is None:
            return fresh
        self._held.update(fresh)
        return list(self._in_order())

    def _in_order(self) -> Iterator[int]:
        assert self._order is not None
        while True:
            if self._due is None and (due := next(self._order, None)) is not None:
                self._due = due
            if self._due is None:
                return
            if self._due in self._held:
                self._held.discard(self._due)
                yield self._due
            elif self._due not in self._told:
                return
            self._due = None
