"""Where a followed job is printed: the program's bytes unchanged, and messages of sshgrid on stderr.

`PlainScreen` prints for users and pipes, `JsonScreen` prints JSON Lines.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable
from typing import Protocol

from sshgrid.model import job_text
from sshgrid.notation.quantities import format_size
from sshgrid.protocol.messages import JobLine, Notice, Progress, Restarted, Waiting
from sshgrid.terminal import render

_FAULT_STATES = frozenset({"TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "CANCELLED"})
_CLEAR_LINE = "\r\x1b[K"
_TRANSIENT_STEPS = frozenset({"uploading", "compiling", "fetching"})


class Screen(Protocol):
    """Receives the events of a followed job."""

    def accepted(self, job: int) -> None: ...
    def output(self, stream: str, attempt: int, piece: bytes) -> None: ...
    def progress(self, event: Progress) -> None: ...
    def waiting(self, event: Waiting) -> None: ...
    def notice(self, event: Notice) -> None: ...
    def restarted(self, event: Restarted) -> None: ...
    def fetched(self, name: str, size: int, replaced: bool) -> None: ...
    def ended(self, job: JobLine, interrupted: bool) -> None: ...


def write_all(descriptor: int, piece: bytes) -> None:
    """Write all bytes, even if the descriptor is non-blocking."""
    rest = memoryview(piece)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:
            select.select([], [descriptor], [])


class PlainScreen:
    """Prints the program's bytes; `notes` adds progress on stderr, in a line that is cleared on a terminal."""

    def __init__(
        self,
        warn: Callable[[str], None],
        err: render.TextStyle,
        *,
        notes: bool,
        show_node: bool = False,
        quiet: bool = False,
    ) -> None:
        self._warn, self._err = warn, err
        self._notes, self._show_node, self._quiet = notes, show_node, quiet
        self._transient = notes and err.terminal
        self._dirty = False
        self._node = ""
        self._compiler_printed = False

    def accepted(self, job: int) -> None:
        """Print nothing: the ID is printed when the user detaches."""

    def output(self, stream: str, attempt: int, piece: bytes) -> None:
        self._clear()
        self._compiler_printed |= stream == "compile"
        if stream == "stdout":
            write_all(1, piece)
            return
        try:
            write_all(2, piece)
        except OSError:
            return  # stdout must still be printed when stderr is closed

    def progress(self, event: Progress) -> None:
        if self._show_node and event.node and event.node != self._node:
            self._node = event.node
            self._line(f"node: {event.node}")
        if not self._notes:
            return
        tries = f" (attempt {event.attempt} of {event.attempts_allowed})" if event.attempt > 1 else ""
        if event.total_bytes:
            self._upload_status(f"uploading to {event.node}{tries}", event)
        elif event.step in _TRANSIENT_STEPS:
            self._status(f"{event.step} on {event.node}{tries}")
        else:
            self._clear()

    def waiting(self, event: Waiting) -> None:
        if not self._notes:
            return
        self._status(f"waiting: {event.reason}" + "".join(f"; {each.node}: {each.reason}" for each in event.why[:3]))

    def notice(self, event: Notice) -> None:
        self._line(event.text)

    def restarted(self, event: Restarted) -> None:
        self._line(f"{event.stream} restarts: the output of attempt {event.attempt} differs from the one before")

    def fetched(self, name: str, size: int, replaced: bool) -> None:
        if not self._quiet:
            self._line(f"fetched {name} ({format_size(size)})" + (", replaced" if replaced else ""))

    def ended(self, job: JobLine, interrupted: bool) -> None:
        self._clear()
        if interrupted:
            return
        if job.state in _FAULT_STATES or (job.state == "COMPILE_ERROR" and not self._compiler_printed):
            self._warn(f"{self._err.paint('error:', 'red')} job {job_text(job.id)}: {job.reason or job.state}")
            self._warn(f"{self._err.paint('hint:', 'cyan')} sshgrid info {job_text(job.id)}")

    def _line(self, text: str) -> None:
        self._clear()
        self._warn(self._err.safe(text))

    def _upload_status(self, what: str, event: Progress) -> None:
        """Show upload progress, only where the line can be replaced."""
        if self._transient:
            from sshgrid.terminal.bar import transfer_text

            self._status(transfer_text(what, event.sent_bytes, event.total_bytes))

    def _status(self, text: str) -> None:
        if not self._transient:
            self._warn(text)
            return
        text = self._err.safe(text).replace("\n", " ")
        render.write_err(_CLEAR_LINE + self._err.paint(text[: max(self._err.columns - 1, 20)], "dim"))
        self._dirty = True

    def _clear(self) -> None:
        if self._dirty:
            render.write_err(_CLEAR_LINE)
            self._dirty = False


class JsonScreen:
    """Prints JSON Lines: one object for each event, the object of the job last."""

    def accepted(self, job: int) -> None:
        self.line({"event": "accepted", "id": job})

    def output(self, stream: str, attempt: int, piece: bytes) -> None:
        self.line({"event": "output", "stream": stream, "attempt": attempt, **render.bytes_object(piece)})

    def progress(self, event: Progress) -> None:
        value = {"event": "progress", "attempt": event.attempt, "attempts_allowed": event.attempts_allowed}
        sent = {"sent_bytes": event.sent_bytes, "total_bytes": event.total_bytes} if event.total_bytes else {}
        self.line({**value, "node": event.node, "step": event.step, **sent})

    def waiting(self, event: Waiting) -> None:
        self.line({"event": "waiting", "reason": event.reason, "why": render.why_objects(event.why)})

    def notice(self, event: Notice) -> None:
        self.line({"event": "notice", "text": event.text})

    def restarted(self, event: Restarted) -> None:
        self.line({"event": "restarted", "stream": event.stream, "attempt": event.attempt})

    def fetched(self, name: str, size: int, replaced: bool) -> None:
        self.line({"event": "fetched", "name": name, "size": size, "replaced": replaced})

    def ended(self, job: JobLine, interrupted: bool) -> None:
        self.line(render.job_object(job))

    def line(self, value: dict[str, object]) -> None:
        """Print one object as a line."""
        write_all(1, render.to_json({"schema": render.SCHEMA, **value}).encode() + b"\n")
