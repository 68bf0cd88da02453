"""What watchers of a job are told, in the order in which it became true.

Nothing is queued for anybody: each watcher reads the store and the spool at its own pace and is woken when there is
more, so a watcher that does not read costs nothing. Refuses to show two attempts' bytes as one output.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING

from sshgrid.model import Job, JobId, Phase
from sshgrid.replay import Piece, Read, Shown, advance
from sshgrid.wire import MAX_PAYLOAD, Ended, Event, Logs, Notice, Output, Progress, Restarted, Waiting, Watch

if TYPE_CHECKING:
    from sshgrid.master import Master

STREAMS = ("stdout", "stderr", "compile")
PIECE_BYTES = MAX_PAYLOAD // 4
NOTICES_KEPT = 64


class Board:
    """Who waits for news of which job, and the sentences that were said about it."""

    def __init__(self) -> None:
        self._waiters: dict[JobId | None, set[asyncio.Future[None]]] = {}
        self._notices: dict[JobId, list[str]] = {}

    def tell(self, job: JobId) -> None:
        """Something about this job is new."""
        for key in (job, None):
            for waiter in self._waiters.get(key, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def tell_all(self) -> None:
        """Something about the nodes is new, which may concern every waiting job."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def say(self, job: JobId, text: str) -> None:
        notices = self._notices.setdefault(job, [])
        notices.append(text)
        del notices[:-NOTICES_KEPT]
        self.tell(job)

    def notices(self, job: JobId) -> list[str]:
        return self._notices.get(job, [])

    def forget(self, job: JobId) -> None:
        self._notices.pop(job, None)

    def listen(self, job: JobId | None) -> asyncio.Future[None]:
        """Done at the next news; ask for it before looking, so that nothing falls in between."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(job, set()).add(waiter)
        waiter.add_done_callback(lambda done: self._leave(job, done))
        return waiter

    def _leave(self, job: JobId | None, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(job)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[job]

    async def changed(self, job: JobId | None, seconds: float) -> None:
        waiter = self.listen(job)
        await asyncio.wait([waiter], timeout=seconds)
        waiter.cancel()


class _Watcher:
    """How far one watcher has come."""

    def __init__(self, master: Master, job: JobId) -> None:
        self._master = master
        self._job = job
        self._shown = {stream: Shown() for stream in STREAMS}
        self._told: Event | None = None
        self._notices = 0

    def news(self, job: Job) -> list[Event]:
        """Sentences and steps that are new."""
        events: list[Event] = []
        notices = self._master.board.notices(job.id)
        events += [Notice(text) for text in notices[self._notices :]]
        self._notices = len(notices)
        state = self._state(job)
        if state is not None and state != self._told:
            self._told = state
            events.append(state)
        return events

    def _state(self, job: Job) -> Event | None:
        line = self._master.line(job, explain=job.phase is Phase.QUEUED)
        if job.phase is Phase.QUEUED:
            return Waiting(line.reason, line.why)
        if job.phase is Phase.RUNNING:
            step = line.state.lower() if line.state == "DISCONNECTED" else line.phase
            return Progress(line.attempt, line.attempts_allowed, line.node, step)
        return None

    def next_piece(self, job: Job) -> tuple[str, int, Piece] | None:
        """The next bytes to show, of whichever stream has some."""
        if not job.attempts:
            return None
        attempt = job.attempts[-1].number
        for stream in STREAMS:
            read = self._reader(job.id, stream)
            self._shown[stream], piece = advance(self._shown[stream], attempt, read, PIECE_BYTES)
            if piece is not None:
                return stream, attempt, piece
        return None

    def _reader(self, job: JobId, stream: str) -> Read:
        spool = self._master.spool
        return lambda attempt, offset, count: spool.read_output(job, attempt, stream, offset, count)


async def watch(master: Master, request: Watch) -> AsyncGenerator[tuple[Event, bytes], None]:
    """A job from its beginning to its end."""
    watcher = _Watcher(master, request.job)
    while True:
        waiter = master.board.listen(request.job)
        try:
            job = master.current(request.job)
            for event in watcher.news(job):
                yield event, b""
            while request.output and (found := watcher.next_piece(job)):
                stream, attempt, piece = found
                if piece.restarted:
                    yield Restarted(stream, attempt), b""
                yield Output(stream, attempt, len(piece.data)), piece.data
            if job.phase is Phase.DONE:
                yield Ended(master.line(job)), b""
                return
            await asyncio.wait([waiter], timeout=1.0)
        finally:
            waiter.cancel()


async def tail(master: Master, request: Logs) -> AsyncGenerator[tuple[Event, bytes], None]:
    """The kept output of one attempt; with `follow` until the job is done."""
    job = master.current(request.job)
    attempt = request.attempt or (job.attempts[-1].number if job.attempts else 1)
    offsets = dict.fromkeys(request.streams, 0)
    if request.tail_lines is not None:
        offsets = {stream: master.spool.tail(job.id, attempt, stream, request.tail_lines) for stream in offsets}
    while True:
        waiter = master.board.listen(request.job)
        try:
            job = master.current(request.job)
            for stream in offsets:
                while piece := master.spool.read_output(job.id, attempt, stream, offsets[stream], PIECE_BYTES):
                    offsets[stream] += len(piece)
                    yield Output(stream, attempt, len(piece)), piece
            if job.phase is Phase.DONE or not request.follow:
                yield Ended(master.line(job)), b""
                return
            await asyncio.wait([waiter], timeout=1.0)
        finally:
            waiter.cancel()
