"""Attempts that share a start: the tasks of a sweep that go to one slot of a node together.

Each is settled as any other attempt, but many with one commit. Refuses to say of a task that it ran on a lost host
unless the node has told so.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from sshgrid.engines import AttemptResult
from sshgrid.engines.launch import RunSpec
from sshgrid.model import AttemptRecord, Job, Step, sweep_of
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.attempt_registry import RunningAttempt
from sshgrid.spool.spool import Spool

Ends: TypeAlias = "Sequence[tuple[RunningAttempt, AttemptResult]]"


class BatchSink:
    """Brings the news of a batch to disk first and to the watchers second; knows what has not ended yet."""

    def __init__(
        self, active_jobs: ActiveJobs, spool: Spool, batch: Sequence[RunningAttempt], settle: Callable[[Ends], None]
    ) -> None:
        first = batch[0]
        self.name, self.node = first.record.batch, first.attempt.node
        self.sweep = sweep_of(first.attempt.job)
        self.rest = {running.run: running for running in batch}
        self.joining: set[str] = set()  # of these, what the node has not taken yet
        self.leaving: set[str] = set()  # of these, what the node was asked to give back
        self.released = False  # its slot was given away
        self.takes_more = True
        self.follower: asyncio.Task[None] | None = None
        self.keep_warm = False  # when nothing of it is left, its node waits a moment for more
        self.never_began = False  # its folder was claimed against it by somebody who looked for it
        self._first = first
        self._active_jobs = active_jobs
        self._spool = spool
        self._settle = settle
        self._moved = time.monotonic()
        self.has_begun = False

    # --- what the scheduler asks

    @property
    def idle(self) -> bool:
        """It has done all, and its node waits for more."""
        return self.keep_warm and not self.rest

    @property
    def ran_seconds(self) -> float:
        """For how long the task that runs does so, as far as is known."""
        return time.monotonic() - self._moved

    def is_first(self, run: str) -> bool:
        """Whether it is this one that runs."""
        return next(iter(self.rest), None) == run

    def behind(self) -> list[str]:
        """The runs that wait for the one that runs, but for those that are on their way there, or back."""
        return [run for run in list(self.rest)[1:] if run not in self.joining and run not in self.leaving]

    def join(self, batch: Iterable[RunningAttempt]) -> None:
        """More runs for it, which the node has not taken yet."""
        for running in batch:
            self.rest[running.run] = running
            self.joining.add(running.run)

    def leave(self, runs: Iterable[str]) -> None:
        """No more will be told of these."""
        for run in runs:
            self.rest.pop(run, None)
            self.joining.discard(run)
            self.leaving.discard(run)

    # --- what the engine tells

    def kept(self, order: RunSpec, stream: str) -> int:
        return self._spool.outputs.resume(order.attempt.job, order.attempt.number, stream)

    async def output(self, order: RunSpec, stream: str, piece: bytes) -> None:
        running = self.rest.get(order.run)
        if running is None or not running.superseded:
            self._spool.outputs.append(order.attempt.job, order.attempt.number, stream, piece)
            self._active_jobs.notifications.notify(order.attempt.job)

    async def running(self, orders: Sequence[RunSpec]) -> None:
        self._moved, self.has_begun = time.monotonic(), True
        for order in orders:
            if running := self.rest.get(order.run):
                running.record = msgspec.structs.replace(running.record, step=Step.RUNNING)

    async def ended(self, ends: Sequence[tuple[RunSpec, AttemptResult]]) -> None:
        self._moved, self.has_begun = time.monotonic(), True
        async with self._active_jobs.bulk_lock:
            found = [(running, finish) for order, finish in ends if (running := self.rest.get(order.run))]
            # Before others hear of it: they ask what is left.
            self.leave(running.run for running, _ in found)
            self._settle(found)

    async def uploaded(self, count: int, left: int = 0) -> None:
        """Of all tasks of the batch the first one pays."""
        record = self._first.record
        sent = record.uploaded_bytes + count
        self._first.record = msgspec.structs.replace(record, uploaded_bytes=sent, upload_left_bytes=left)

    async def compiled(self, compiled: bool) -> None:
        self._first.record = msgspec.structs.replace(self._first.record, compiled=compiled)


Begun: TypeAlias = "tuple[Job, AttemptRecord]"  # one attempt that runs, and its job


def by_batch(attempts: Iterable[Begun]) -> tuple[list[Begun], list[list[Begun]]]:
    """RunningAttempt attempts that were begun alone, and those of each batch."""
    alone: list[Begun] = []
    batches: dict[tuple[str, str], list[Begun]] = {}
    for job, record in attempts:
        if record.batch:
            batches.setdefault((record.node, record.batch), []).append((job, record))
        else:
            alone.append((job, record))
    return alone, list(batches.values())
