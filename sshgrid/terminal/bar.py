"""Progress bars on stderr: a line that is redrawn on a terminal, and a new line now and then elsewhere.

When the output of a program ends within a line, the bar starts on a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from sshgrid.notation.quantities import format_duration, format_size
from sshgrid.terminal import render

if TYPE_CHECKING:
    from sshgrid.protocol.sweep_messages import SweepProgress

PLAIN_SECONDS = 10.0
DRAW_SECONDS = 0.1
BAR_CELLS = 20
_CLEAR_LINE = "\r\x1b[K"


def text(progress: SweepProgress, *, bar: bool = False) -> str:
    """The progress of a sweep in one line."""
    over = progress.ended + progress.left
    parts = [f"{progress.ended} of {progress.tasks} done"]
    parts += [f"{progress.failed} failed"] if progress.failed else []
    parts += [f"{progress.left} not started"] if progress.left else []
    if over < progress.tasks:
        twice = f" ({progress.speculative} with a second attempt)" if progress.speculative else ""
        parts += [f"{progress.running} running{twice}", f"{progress.rate:.1f}/s"]
        parts += [f"{format_duration(round(progress.eta_seconds))} left"] if progress.eta_seconds is not None else []
        parts += [_slowest(progress)] if progress.slowest else []
    return (_graphic(over, progress.tasks) if bar else "") + ", ".join(parts)


def _slowest(progress: SweepProgress) -> str:
    task = progress.slowest
    assert task is not None
    return f"slowest {progress.job}.{task.number} on {task.node} for {format_duration(round(task.seconds))}"


def transfer_text(what: str, sent: int, total: int) -> str:
    """The progress of an upload in one line."""
    return f"{what} {_graphic(sent, total)}{format_size(sent)} of {format_size(total)}"


def _graphic(over: int, total: int) -> str:
    cells = BAR_CELLS * over // max(total, 1)
    return f"[{'#' * cells}{'.' * (BAR_CELLS - cells)}] {100 * over // max(total, 1):3d}% "


class TransferBar:
    """The progress of an upload, in a line that is cleared at the end; only with `shown` and on a terminal."""

    def __init__(self, style: render.TextStyle, *, shown: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._style, self._shown, self._clock = style, shown and style.terminal, clock
        self._drawn_at: float | None = None

    def update(self, what: str, sent: int, total: int) -> None:
        """Draw the line, at most every DRAW_SECONDS."""
        if not self._shown or (self._drawn_at is not None and self._clock() - self._drawn_at < DRAW_SECONDS):
            return
        line = self._style.safe(transfer_text(what, sent, total))[: (self._style.columns or 80) - 1]
        render.write_err(_CLEAR_LINE + self._style.paint(line, "dim"))
        self._drawn_at = self._clock()

    def clear(self) -> None:
        if self._drawn_at is not None:
            render.write_err(_CLEAR_LINE)
            self._drawn_at = None


class ProgressBar:
    """The progress of a sweep. Call `clear` before printing anything else to the same terminal."""

    def __init__(
        self, style: render.TextStyle, *, shown: bool, bar: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._style, self._shown, self._bar, self._clock = style, shown, bar, clock
        self._newest: SweepProgress | None = None
        self._drawn_at = clock()
        self._dirty = False
        self.in_line = False  # the last byte on the terminal was not a newline

    def progress(self, progress: SweepProgress) -> None:
        self._newest = progress
        if not self._shown:
            return
        now = self._clock()
        if self._style.terminal:
            self._draw()
        elif now - self._drawn_at >= PLAIN_SECONDS:
            render.write_err(self._style.safe(text(progress, bar=self._bar)) + "\n")
            self._drawn_at = now

    def redraw(self) -> None:
        """Draw the line again after other output, at most every DRAW_SECONDS."""
        if self._shown and self._style.terminal and self._clock() - self._drawn_at > DRAW_SECONDS:
            self._draw()

    def _draw(self) -> None:
        if self._newest is None:
            return
        line = text(self._newest, bar=self._bar)[: (self._style.columns or 80) - 1]
        begin = "\n" if self.in_line else _CLEAR_LINE
        render.write_err(begin + self._style.paint(self._style.safe(line), "dim"))
        self._drawn_at, self._dirty, self.in_line = self._clock(), True, False

    def clear(self) -> None:
        if self._dirty:
            render.write_err(_CLEAR_LINE)
            self._dirty = False

    def end(self) -> None:
        """Clear the line on a terminal; elsewhere print the final state."""
        self.clear()
        if self._shown and not self._style.terminal and self._newest is not None:
            render.write_err(self._style.safe(text(self._newest, bar=self._bar)) + "\n")
