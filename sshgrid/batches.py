"""Attempts that share a start: the tasks of a sweep that go to one slot of a node together.

Each is settled as any other attempt, but many with one commit. Refuses to say of a task that it ran on a lost host
unless the node has told so.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from sshgrid.engines import Finish
from sshgrid.jobbook import JobBook
from sshgrid.jobscript import Order
from sshgrid.model import Attempt, AttemptRecord, Job, Step
from sshgrid.spool import Spool


class Running:
    """One attempt as it goes: its task, and the record that is not worth a commit for every step."""

    def __init__(self, attempt: Attempt, record: AttemptRecord, run: str) -> None:
        self.attempt = attempt
        self.record = record
        self.run = run
        self.task: asyncio.Task[None] | None = None
        self.ending: asyncio.Task[None] | None = None
        self.refused = False  # its run folder was claimed against it by a cancel: it never started
        self.never_began = False  # the same, by somebody who looked for it


# A start takes about as long.
AHEAD_SECONDS = 0.15

Ends: TypeAlias = "Sequence[tuple[Running, Finish]]"


class BatchSink:
    """Brings the news of a batch to disk first and to the watchers second; knows what has not ended yet."""

    def __init__(
        self,
        book: JobBook,
        spool: Spool,
        batch: Iterable[Running],
        settle: Callable[[Ends], None],
        release: Callable[[], None],
    ) -> None:
        self.rest = {running.run: running for running in batch}
        self._first = next(iter(self.rest.values()))
        self._book = book
        self._spool = spool
        self._settle = settle
        self._release = release
        self._ended = 0
        self._first_end = 0.0

    def kept(self, order: Order, stream: str) -> int:
        return self._spool.go_on(order.attempt.job, order.attempt.number, stream)

    async def output(self, order: Order, stream: str, piece: bytes) -> None:
        self._spool.append(order.attempt.job, order.attempt.number, stream, piece)

    async def running(self, orders: Sequence[Order]) -> None:
        for order in orders:
            if running := self.rest.get(order.run):
                running.record = msgspec.structs.replace(running.record, step=Step.RUNNING)

    async def ended(self, ends: Sequence[tuple[Order, Finish]]) -> None:
        found = [(running, finish) for order, finish in ends if (running := self.rest.get(order.run))]
        self._settle(found)
        for running, _ in found:
            del self.rest[running.run]
        self._look_ahead(len(found))

    def _look_ahead(self, ended: int) -> None:
        """Give the slot away while the last tasks run: by the time that another start has got there, they are over."""
        now = time.monotonic()
        self._first_end = self._first_end or now
        pace = (now - self._first_end) / self._ended if self._ended else math.inf
        self._ended += ended
        if self.rest and len(self.rest) * pace < AHEAD_SECONDS:
            self._release()

    async def uploaded(self, count: int, left: int = 0) -> None:
        """Of all tasks of the batch the first one pays."""
        record = self._first.record
        sent = record.uploaded_bytes + count
        self._first.record = msgspec.structs.replace(record, uploaded_bytes=sent, upload_left_bytes=left)

    async def compiled(self, compiled: bool) -> None:
        self._first.record = msgspec.structs.replace(self._first.record, compiled=compiled)


def by_batch(jobs: Iterable[Job]) -> tuple[list[Job], list[list[Job]]]:
    """Running jobs that were begun alone, and those of each batch."""
    alone: list[Job] = []
    batches: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        last = job.attempts[-1]
        if last.batch:
            batches.setdefault((last.node, last.batch), []).append(job)
        else:
            alone.append(job)
    return alone, list(batches.values())
