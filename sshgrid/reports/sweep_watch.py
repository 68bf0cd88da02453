"""Watch one sweep: its tasks as they end, with their output, and its progress in between.

The output of a task is reported when the task has ended, so the outputs of two tasks never mix.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from sshgrid.model import TEXT_STREAMS, Job, Phase, task_id
from sshgrid.protocol.messages import Event
from sshgrid.protocol.sweep_messages import SweepProgress, TaskEnded, TaskOutput, WatchSweep
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.reports.sweep_report import SweepInProgress, SweepReport
from sshgrid.reports.watch import PIECE_BYTES, Notices
from sshgrid.spool.spool import Spool
from sshgrid.sweeps import parameters

PROGRESS_SECONDS = 0.2


class SweepWatcher:
    """Reports the tasks of a sweep as they end."""

    def __init__(self, active_jobs: ActiveJobs, spool: Spool, report: SweepReport, request: WatchSweep) -> None:
        self._active_jobs = active_jobs
        self._spool = spool
        self._report = report
        self._output = request.output
        self._notices = Notices(active_jobs, request.job)
        self._state = report.read(active_jobs.current(request.job))
        self._order = _TaskOrder(self._state, request)
        self._progress: SweepProgress | None = None  # as it was reported last

    def news(self, job: Job) -> Iterator[tuple[Event, bytes]]:
        ended = self._state.ended if job.phase is not Phase.DONE else self._report.read(job).ended
        for number in self._order.next(ended):
            yield from self._task(number)
        yield from self._notices.news()
        progress = self._report.progress_of(self._state)
        if progress != self._progress:
            self._progress = progress
            yield progress, b""

    async def pause(self) -> None:
        """Wait between two looks: a busy sweep changes a thousand times per second. Returns at once at its end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROGRESS_SECONDS):
                await self._state.end_event.wait()

    def _task(self, number: int) -> Iterator[tuple[Event, bytes]]:
        task = self._active_jobs.current(task_id(self._state.job.id, number))
        assert task.current is not None
        attempt = task.current.number
        sizes = self._spool.outputs.sizes(task.id, attempt)
        for stream in TEXT_STREAMS if self._output else ():
            offset = 0
            if not sizes[stream]:
                continue
            if stream == "compile" and number != self._state.compile_output_task:
                continue  # the compiler prints the same for all tasks of a sweep
            while piece := self._spool.outputs.read(task.id, attempt, stream, offset, PIECE_BYTES):
                yield TaskOutput(number, stream, len(piece)), piece
                offset += len(piece)
        yield TaskEnded(self._report.task_line(task, sizes)), b""


class _TaskOrder:
    """Which tasks to report next: in the order of their ends, or with `keep_order` in the order of their numbers."""

    def __init__(self, state: SweepInProgress, request: WatchSweep) -> None:
        ranges = parameters.parse_ranges(request.have, state.plan.tasks) if request.have else ()
        self._done = {number for numbers in ranges for number in numbers}  # reported or held, here or by the client
        self._seen = 0  # how many of the tasks that have ended were looked at
        self._held: set[int] = set()  # ended, while a task before them has not
        self._numbers = iter(state.numbers()) if request.keep_order else None
        self._due: int | None = None

    def next(self, ended: list[int]) -> list[int]:
        """The tasks to report now. `ended`: all tasks that have ended so far."""
        fresh = [number for number in ended[self._seen :] if number not in self._done]
        self._seen = len(ended)
        self._done.update(fresh)
        if self._numbers is None:
            return fresh
        self._held.update(fresh)
        return list(self._in_order(self._numbers))

    def _in_order(self, numbers: Iterator[int]) -> Iterator[int]:
        while True:
            if self._due is None and (due := next(numbers, None)) is not None:
                self._due = due
            if self._due is None:
                return
            if self._due in self._held:
                self._held.discard(self._due)
                yield self._due
            elif self._due not in self._done:
                return
            self._due = None
