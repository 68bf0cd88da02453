"""Attempts that share a start: the tasks of a sweep that go to one slot of a node together.

Each is settled like any other attempt, but many with one commit. A task counts as run on a lost host only when the node
has reported its start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from sshgrid.clock import Clock
from sshgrid.engines import AttemptResult
from sshgrid.engines.batch_state import BatchState
from sshgrid.model import AttemptRecord, Job, Step, sweep_of
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.attempt_registry import RunningAttempt
from sshgrid.spool.spool import Spool

Ends: TypeAlias = "Sequence[tuple[RunningAttempt, AttemptResult]]"


class RunningBatch:
    """Writes reports of a batch to disk, then notifies watchers. Owns the state of the batch."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        spool: Spool,
        attempts: Sequence[RunningAttempt],
        settle: Callable[[Ends], None],
        *,
        clock: Clock,
        resumed: bool = False,
        keep_warm: bool = False,
    ) -> None:
        first = attempts[0]
        runs = {running.run: running for running in attempts}
        self.state = BatchState(runs, resumed=resumed, keep_warm=keep_warm, clock=clock)
        self.name, self.node = first.record.batch, first.attempt.node
        self.sweep = sweep_of(first.attempt.job)
        self.released = False  # its slot was given to another job before its end
        self.follower: asyncio.Task[None] | None = None
        self.never_began = False  # its folder on the node was claimed so that it cannot begin
        self._first = first
        self._active_jobs = active_jobs
        self._spool = spool
        self._settle = settle

    def kept(self, run: str, stream: str) -> int:
        running = self.state.rest.get(run)
        if running is None:  # it ended while its output was read: `output` ignores it
            return 0
        return self._spool.outputs.resume(running.attempt.job, running.attempt.number, stream)

    async def output(self, run: str, stream: str, piece: bytes) -> None:
        running = self.state.rest.get(run)
        if running is not None and not running.superseded:
            attempt = running.attempt
            self._spool.outputs.append(attempt.job, attempt.number, stream, piece)
            self._active_jobs.notifications.notify(attempt.job)

    async def running(self, runs: Sequence[str]) -> None:
        for run in runs:
            if running := self.state.rest.get(run):
                running.record = msgspec.structs.replace(running.record, step=Step.RUNNING)

    async def ended(self, ends: Sequence[tuple[str, AttemptResult]]) -> None:
        self.state.note_progress()
        async with self._active_jobs.bulk_lock:
            found = [(running, result) for run, result in ends if (running := self.state.rest.get(run))]
            # Before they are settled: watchers of the settled jobs ask what is left.
            self.state.remove(running.run for running, _ in found)
            self._settle(found)

    async def uploaded(self, count: int, left: int = 0) -> None:
        """Count the uploads of the batch for its first task."""
        record = self._first.record
        sent = record.uploaded_bytes + count
        self._first.record = msgspec.structs.replace(record, uploaded_bytes=sent, upload_left_bytes=left)

    async def compiled(self, compiled: bool) -> None:
        self._first.record = msgspec.structs.replace(self._first.record, compiled=compiled)


Begun: TypeAlias = "tuple[Job, AttemptRecord]"  # one attempt that runs, and its job


def by_batch(attempts: Iterable[Begun]) -> tuple[list[Begun], list[list[Begun]]]:
    """Split running attempts into those that started alone, and those of each batch."""
    alone: list[Begun] = []
    batches: dict[tuple[str, str], list[Begun]] = {}
    for job, record in attempts:
        if record.batch:
            batches.setdefault((record.node, record.batch), []).append((job, record))
        else:
            alone.append((job, record))
    return alone, list(batches.values())
