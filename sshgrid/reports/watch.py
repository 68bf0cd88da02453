"""What watchers of a job are told, in the order in which it became true.

Nothing is queued for anybody: each watcher reads the store and the spool at its own pace and is woken when there is
more, so a watcher that does not read costs nothing. Refuses to show two attempts' bytes as one output.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TypeAlias

from sshgrid.model import Cancelled, Crashed, GaveUp, Job, JobId, Phase
from sshgrid.policy.placement import COUNTDOWN
from sshgrid.protocol.messages import (
    MAX_PAYLOAD,
    Ended,
    Event,
    JobLine,
    Logs,
    NodeReason,
    Notice,
    Output,
    Progress,
    Restarted,
    Waiting,
    Watch,
)
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.reports.replay import Piece, Read, Shown, advance
from sshgrid.spool.spool import Spool

STREAMS = ("stdout", "stderr", "compile")
PIECE_BYTES = MAX_PAYLOAD // 4

# A job as people see it; the second argument: also why it waits, node by node.
Line: TypeAlias = Callable[[Job, bool], JobLine]


class _Watcher:
    """How far one watcher has come."""

    def __init__(self, active_jobs: ActiveJobs, spool: Spool, line: Line) -> None:
        self._active_jobs = active_jobs
        self._spool = spool
        self._line = line
        self._shown = {stream: Shown() for stream in STREAMS}
        self._told: Event | None = None
        self._heard = 0  # number of the last sentence that was told

    def news(self, job: Job) -> list[Event]:
        """Sentences and steps that are new."""
        events: list[Event] = []
        for number, text in self._active_jobs.notifications.notices(job.id, self._heard):
            self._heard = number
            events.append(Notice(text))
        state = self._state(job)
        if state is not None and (key := _lasting(state)) != self._told:
            self._told = key
            events.append(state)
        return events

    def _state(self, job: Job) -> Event | None:
        line = self._line(job, job.phase is Phase.QUEUED)
        if job.phase is Phase.QUEUED:
            return Waiting(line.reason, line.why)
        if job.phase is Phase.RUNNING:
            step = line.state.lower() if line.state == "DISCONNECTED" else line.phase
            sent, total = _upload(line) if step == "uploading" else (0, 0)
            return Progress(line.attempt, line.attempts_allowed, line.node, step, sent, total)
        return None

    def next_piece(self, job: Job) -> tuple[str, int, Piece] | None:
        """The next bytes to show, of whichever stream has some."""
        if job.current is None:
            return None
        attempt = job.current.number
        ended = _has_result(job)
        for stream in STREAMS:
            read = _reader(self._spool, job.id, stream)
            self._shown[stream], piece = advance(self._shown[stream], attempt, read, PIECE_BYTES, ended)
            if piece is not None:
                return stream, attempt, piece
        return None


def _upload(line: JobLine) -> tuple[int, int]:
    """(bytes sent, bytes in all) of a large upload that is under way; else zeros."""
    last = line.attempts[-1]
    return (last.uploaded_bytes, last.uploaded_bytes + last.upload_left_bytes) if last.upload_left_bytes else (0, 0)


def _has_result(job: Job) -> bool:
    """Has the current attempt ended by what its program did? Then it will say no more."""
    return job.phase is Phase.DONE and not isinstance(job.verdict, GaveUp | Cancelled | Crashed)


def _reader(spool: Spool, job: JobId, stream: str) -> Read:
    return lambda attempt, offset, count: spool.outputs.read(job, attempt, stream, offset, count)


def _lasting(state: Event) -> Event:
    """Without what changes every second: a countdown alone is no news."""
    if not isinstance(state, Waiting):
        return state
    return Waiting(state.reason, tuple(NodeReason(why.node, why.reason.partition(COUNTDOWN)[0]) for why in state.why))


async def watch(
    active_jobs: ActiveJobs, spool: Spool, line: Line, request: Watch
) -> AsyncGenerator[tuple[Event, bytes], None]:
    """A job from its beginning to its end."""
    watcher = _Watcher(active_jobs, spool, line)
    while True:
        waiter = active_jobs.notifications.listen(request.job)
        try:
            job = active_jobs.current(request.job)
            for event in watcher.news(job):
                yield event, b""
            while request.output and (found := watcher.next_piece(job)):
                stream, attempt, piece = found
                if piece.restarted:
                    yield Restarted(stream, attempt), b""
                if piece.data:
                    yield Output(stream, attempt, len(piece.data)), piece.data
            if job.phase is Phase.DONE:
                yield Ended(line(job, False)), b""
                return
            await asyncio.wait([waiter], timeout=1.0)
        finally:
            waiter.cancel()


def _current(job: Job) -> int:
    return job.current.number if job.current else 1


def _already_shown(job: Job, spool: Spool, request: Logs) -> dict[str, Shown]:
    """Where each stream begins: behind what was seen, at the last lines, or at its first byte."""
    attempt = request.attempt or _current(job)
    places = dict.fromkeys(request.streams, (attempt, 0))
    if request.tail_lines is not None:
        places = {
            stream: (attempt, spool.outputs.tail(job.id, attempt, stream, request.tail_lines)) for stream in places
        }
    places |= {seen.stream: (seen.attempt, seen.size) for seen in request.seen if seen.stream in places}
    return {stream: Shown(number, size, number, size) for stream, (number, size) in places.items()}


async def tail(
    active_jobs: ActiveJobs, spool: Spool, line: Line, request: Logs
) -> AsyncGenerator[tuple[Event, bytes], None]:
    """The kept output of one attempt, or with `follow` of each newest one; with `follow` until the job is done."""
    shown = _already_shown(active_jobs.current(request.job), spool, request)
    while True:
        waiter = active_jobs.notifications.listen(request.job)
        try:
            job = active_jobs.current(request.job)
            attempt = request.attempt or _current(job)
            for stream in shown:
                read = _reader(spool, job.id, stream)
                while True:
                    shown[stream], piece = advance(shown[stream], attempt, read, PIECE_BYTES, _has_result(job))
                    if piece is None:
                        break
                    if piece.restarted:
                        yield Restarted(stream, attempt), b""
                    offset = shown[stream].count - len(piece.data)
                    yield Output(stream, attempt, len(piece.data), offset), piece.data
            if job.phase is Phase.DONE or not request.follow:
                yield Ended(line(job, False)), b""
                return
            await asyncio.wait([waiter], timeout=1.0)
        finally:
            waiter.cancel()
