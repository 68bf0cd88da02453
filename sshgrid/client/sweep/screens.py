"""Where a followed sweep is printed: the output of whole tasks and a progress bar, or JSON Lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from sshgrid.client.sweep.plan import Plan
from sshgrid.client.sweep.results import ResultOutput
from sshgrid.model import PROGRAM_STREAMS, JobId
from sshgrid.protocol.messages import JobLine, Notice
from sshgrid.protocol.sweep_messages import SweepProgress, TaskLine
from sshgrid.terminal import render
from sshgrid.terminal.bar import ProgressBar
from sshgrid.terminal.screen import JsonScreen, write_all

_FAULT_STATES = frozenset({"TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"})


class SweepScreen(Protocol):
    """Receives what happens in a followed sweep."""

    def accepted(self, job: JobId) -> None: ...
    def task(self, task: TaskLine, output: ResultOutput) -> None: ...
    def progress(self, progress: SweepProgress) -> None: ...
    def notice(self, text: str) -> None: ...
    def detached(self) -> None: ...
    def ended(self, job: JobLine, *, interrupted: bool) -> None: ...


def tagged(pieces: Iterable[bytes], tag: bytes) -> Iterator[bytes]:
    """The pieces with `tag` at the start of each line, as GNU parallel does; a missing last newline is not added."""
    at_start = True
    for piece in pieces:
        text = piece.replace(b"\n", b"\n" + tag)
        if piece.endswith(b"\n"):
            text = text[: -len(tag)]
        yield tag + text if at_start else text
        at_start = piece.endswith(b"\n")


class PlainSweepScreen:
    """Prints the output of each task as one block, and messages of sshgrid on stderr."""

    def __init__(
        self,
        warn: Callable[[str], None],
        err: render.TextStyle,
        bar: ProgressBar,
        tag: Callable[[int], bytes] | None,
        *,
        out_is_terminal: bool,
        notes: bool,
    ) -> None:
        self._warn, self._err, self._bar, self._tag = warn, err, bar, tag
        self._out_is_terminal, self._notes = out_is_terminal, notes
        self._sweep = JobId(0)

    def accepted(self, job: JobId) -> None:
        self._sweep = job

    def task(self, task: TaskLine, output: ResultOutput) -> None:
        for stream in PROGRAM_STREAMS:
            pieces = output.pieces(stream)
            for piece in pieces if self._tag is None else tagged(pieces, self._tag(task.number)):
                self._write(stream, piece)
        if task.state in _FAULT_STATES:
            self._print(f"{self._err.paint('error:', 'red')} task {self._sweep}.{task.number}: {task.reason}")
        self._bar.redraw()

    def _write(self, stream: str, piece: bytes) -> None:
        self._bar.clear()
        if stream == "stdout":
            write_all(1, piece)
        else:
            try:
                write_all(2, piece)
            except OSError:
                return  # stdout must still be printed when stderr is closed
        if self._out_is_terminal or stream == "stderr":
            self._bar.in_line = not piece.endswith(b"\n")

    def progress(self, progress: SweepProgress) -> None:
        self._bar.progress(progress)

    def notice(self, text: str) -> None:
        self._print(self._err.safe(text))

    def _print(self, text: str) -> None:
        self._bar.clear()
        self._warn(text)

    def detached(self) -> None:
        self._bar.clear()

    def ended(self, job: JobLine, *, interrupted: bool) -> None:
        self._bar.end()
        if interrupted or job.state == "COMPLETED" or not job.reason:
            return
        if job.state != "FAILED":
            self._warn(f"{self._err.paint('error:', 'red')} sweep {job.id}: {job.reason}")
            self._warn(f"{self._err.paint('hint:', 'cyan')} sshgrid info {job.id}")
        elif self._notes:
            self._warn(f"sweep {job.id}: {job.reason}")


class JsonSweepScreen:
    """Prints JSON Lines: one object for each event, the object of the sweep last."""

    def __init__(self, plan: Plan | None) -> None:
        self._plan = plan
        self._screen = JsonScreen()
        self._sweep = JobId(0)

    def accepted(self, job: JobId) -> None:
        self._sweep = job
        self._screen.accepted(job)

    def task(self, task: TaskLine, output: ResultOutput) -> None:
        for stream in PROGRAM_STREAMS:
            for piece in output.pieces(stream):
                self._screen.line(
                    {"event": "output", "task": task.number, "stream": stream, **render.bytes_object(piece)}
                )
        self._screen.line({"event": "task", **render.task_object(self._sweep, task), **self._parameters(task.number)})

    def _parameters(self, number: int) -> dict[str, object]:
        if self._plan is None:
            return {}
        values = (value.decode("utf-8", "backslashreplace") for value in self._plan.values(number))
        return {"parameters": dict(zip(self._plan.names, values, strict=True))}

    def progress(self, progress: SweepProgress) -> None:
        self._screen.line({"event": "progress", **render.progress_object(progress)})

    def notice(self, text: str) -> None:
        self._screen.notice(Notice(text))

    def detached(self) -> None:
        """Print nothing: the message goes to stderr."""

    def ended(self, job: JobLine, *, interrupted: bool) -> None:
        self._screen.ended(job, interrupted)
