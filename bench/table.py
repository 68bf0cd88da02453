"""Measures pairs, and prints the table of figures with their targets.

The two sides of a pair are measured in turn (A B A B), so that other load of the machine affects both.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

REST_SECONDS = 0.25  # cleanup of the previous measurement must not affect the next
HEADINGS = ("what", "figure", "min..max", "target", "", "details")
MET = {True: "met", False: "NOT MET", None: ""}


@dataclass(frozen=True)
class Row:
    """One line of the table. `met` is None when there is no target."""

    what: str
    figure: str
    spread: str
    target: str = ""
    met: bool | None = None
    note: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        return (self.what, self.figure, self.spread, self.target, MET[self.met], self.note)


def pairs(first: Callable[[], float], second: Callable[[], float], count: int) -> list[tuple[float, float]]:
    """The seconds of `first` and `second`, measured in turn."""
    return [(rested(first), rested(second)) for _ in range(count)]


def rested(measure: Callable[[], float]) -> float:
    time.sleep(REST_SECONDS)
    return measure()


def ratio_row(what: str, measured: Sequence[tuple[float, float]], at_most: float | None = None) -> Row:
    """A row with the median of the ratios and the medians of both sides."""
    ratios = [a / b for a, b in measured]
    figure = statistics.median(ratios)
    sides = "{:.0f} / {:.0f} ms".format(*(statistics.median(side) * 1000 for side in zip(*measured, strict=True)))
    return Row(
        what,
        f"{figure:.2f}",
        spread(ratios),
        "" if at_most is None else f"<= {at_most:g}",
        None if at_most is None else figure <= at_most,
        f"{sides}, {len(measured)} pairs",
    )


def spread(values: Iterable[float], digits: int = 2) -> str:
    ordered = sorted(values)
    return f"{ordered[0]:.{digits}f}..{ordered[-1]:.{digits}f}"


def text(rows: Sequence[Row]) -> str:
    """The table, in columns."""
    lines = [HEADINGS, *(row.cells for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    # Figures are aligned to the right, texts to the left.
    aligned = [f"{cell:>{width}}" if 0 < at < 4 else f"{cell:<{width}}" for at, (cell, width) in _at(cells, widths)]
    return "  ".join(aligned).rstrip() + "\n"


def _at(cells: Sequence[str], widths: Sequence[int]) -> Iterable[tuple[int, tuple[str, int]]]:
    return enumerate(zip(cells, widths, strict=True))


def say(text: str) -> None:
    """Print progress to stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
