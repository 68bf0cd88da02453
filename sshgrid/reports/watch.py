"""Watch one job: its states, its notices and its output, in the order in which they became true.

Nothing is queued for a watcher: it reads the store and the spool at its own pace and is woken when there is more, so a
watcher that does not read costs no memory. The bytes of two attempts are never shown as one output.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from typing import Protocol, TypeAlias

from sshgrid.model import TEXT_STREAMS, Cancelled, Crashed, GaveUp, Job, JobId, Phase
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

PIECE_BYTES = MAX_PAYLOAD // 4
LOOK_SECONDS = 1.0  # a watcher looks this often without a notification: a countdown changes without one

# A job as users see it; the second argument: also why it waits, node by node.
Line: TypeAlias = Callable[[Job, bool], JobLine]
Events: TypeAlias = AsyncGenerator[tuple[Event, bytes], None]


class Watcher(Protocol):
    """One subscription: remembers what it has reported."""

    def news(self, job: Job) -> Iterator[tuple[Event, bytes]]:
        """The events since the last call, each with its payload. `job` is the job as it is now."""


async def follow(
    active_jobs: ActiveJobs,
    job_id: JobId,
    watcher: Watcher,
    line: Line,
    *,
    once: bool = False,
    pause: Callable[[], Awaitable[object]] | None = None,
) -> Events:
    """Yield the news of `watcher` until the job has ended, or `once`; then `Ended`. `pause` runs between two looks."""
    while True:
        waiter = active_jobs.notifications.listen(job_id)
        try:
            job = active_jobs.current(job_id)
            for event, payload in watcher.news(job):
                yield event, payload
            if once or job.phase is Phase.DONE:
                yield Ended(line(job, False)), b""
                return
            if pause is not None:
                await pause()
            await asyncio.wait([waiter], timeout=LOOK_SECONDS)
        finally:
            waiter.cancel()


class Notices:
    """The notices about one job that were not reported yet."""

    def __init__(self, active_jobs: ActiveJobs, job: JobId) -> None:
        self._active_jobs = active_jobs
        self._job = job
        self._last = 0  # number of the last notice that was reported

    def news(self) -> Iterator[tuple[Event, bytes]]:
        for number, text in self._active_jobs.notifications.notices(self._job, self._last):
            self._last = number
            yield Notice(text), b""


class JobWatcher:
    """Reports a job from its submission to its end."""

    def __init__(self, active_jobs: ActiveJobs, spool: Spool, line: Line, request: Watch) -> None:
        self._spool = spool
        self._line = line
        self._notices = Notices(active_jobs, request.job)
        self._shown = {stream: Shown() for stream in TEXT_STREAMS if request.output}
        self._reported: Event | None = None  # the last state, without its countdown

    def news(self, job: Job) -> Iterator[tuple[Event, bytes]]:
        yield from self._notices.news()
        state = self._state(job)
        if state is not None and (key := _without_countdown(state)) != self._reported:
            self._reported = key
            yield state, b""
        while found := self._next_piece(job):
            stream, attempt, piece = found
            if piece.restarted:
                yield Restarted(stream, attempt), b""
            if piece.data:
                yield Output(stream, attempt, len(piece.data)), piece.data

    def _state(self, job: Job) -> Event | None:
        line = self._line(job, job.phase is Phase.QUEUED)
        if job.phase is Phase.QUEUED:
            return Waiting(line.reason, line.why)
        if job.phase is Phase.RUNNING:
            step = line.state.lower() if line.state == "DISCONNECTED" else line.phase
            sent, total = _upload(line) if step == "uploading" else (0, 0)
            return Progress(line.attempt, line.attempts_allowed, line.node, step, sent, total)
        return None

    def _next_piece(self, job: Job) -> tuple[str, int, Piece] | None:
        """The next bytes to show, from the first stream that has some."""
        if job.current is None:
            return None
        attempt = job.current.number
        ended = _has_result(job)
        for stream, shown in self._shown.items():
            read = _reader(self._spool, job.id, stream)
            self._shown[stream], piece = advance(shown, attempt, read, PIECE_BYTES, ended)
            if piece is not None:
                return stream, attempt, piece
        return None


class LogReader:
    """Reports the stored output of one attempt, or of each newest attempt in turn."""

    def __init__(self, active_jobs: ActiveJobs, spool: Spool, request: Logs) -> None:
        self._spool = spool
        self._request = request
        self._shown = _already_shown(active_jobs.current(request.job), spool, request)

    def news(self, job: Job) -> Iterator[tuple[Event, bytes]]:
        attempt = self._request.attempt or _current(job)
        for stream in self._shown:
            read = _reader(self._spool, job.id, stream)
            while True:
                shown, piece = advance(self._shown[stream], attempt, read, PIECE_BYTES, _has_result(job))
                self._shown[stream] = shown
                if piece is None:
                    break
                if piece.restarted:
                    yield Restarted(stream, attempt), b""
                yield Output(stream, attempt, len(piece.data), shown.count - len(piece.data)), piece.data


def _upload(line: JobLine) -> tuple[int, int]:
    """(bytes sent, bytes in all) of a large upload in progress; zeros otherwise."""
    last = line.attempts[-1]
    return (last.uploaded_bytes, last.uploaded_bytes + last.upload_left_bytes) if last.upload_left_bytes else (0, 0)


def _has_result(job: Job) -> bool:
    """Whether the program of the current attempt has ended by itself, so that its output is complete."""
    return job.phase is Phase.DONE and not isinstance(job.verdict, GaveUp | Cancelled | Crashed)


def _reader(spool: Spool, job: JobId, stream: str) -> Read:
    return lambda attempt, offset, count: spool.outputs.read(job, attempt, stream, offset, count)


def _without_countdown(state: Event) -> Event:
    """The state without the seconds that change at every look."""
    if not isinstance(state, Waiting):
        return state
    return Waiting(state.reason, tuple(NodeReason(why.node, why.reason.partition(COUNTDOWN)[0]) for why in state.why))


def _current(job: Job) -> int:
    return job.current.number if job.current else 1


def _already_shown(job: Job, spool: Spool, request: Logs) -> dict[str, Shown]:
    """Where each stream begins: after the bytes that the client has seen, at the last lines, or at its first byte."""
    attempt = request.attempt or _current(job)
    places = dict.fromkeys(request.streams, (attempt, 0))
    if request.tail_lines is not None:
        places = {
            stream: (attempt, spool.outputs.tail(job.id, attempt, stream, request.tail_lines)) for stream in places
        }
    places |= {seen.stream: (seen.attempt, seen.size) for seen in request.seen if seen.stream in places}
    return {stream: Shown(number, size, number, size) for stream, (number, size) in places.items()}
