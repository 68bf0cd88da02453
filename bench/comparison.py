"""A comparison of tools that do the same work in turn (A B C, then B C A), with the time of each.

A tool that fails is excluded from then on, and the reason is kept for its row of the table. All tools are closed at the
end.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable, Sequence
from typing import Self

from bench.installed import Failed
from bench.peers import Peer
from bench.table import rested, say
from bench.work import Work
from tests.lab.machine import LabError


class Comparison:
    """A context manager that installs all sides and closes them. `failures` has the reason of each excluded side."""

    def __init__(self, sides: Sequence[Peer]) -> None:
        self._sides = list(sides)
        self.versions = dict[Peer, str]()
        self.seconds: dict[Peer, list[float]] = {side: [] for side in sides}
        self.failures = dict[Peer, str]()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            for side in self._sides:
                say(f"{side.name}: installing")
                stack.callback(side.close)
                self._try(side, lambda side: self.versions.update({side: side.install()}))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def warm_up(self, work: Work) -> None:
        for side in self._sides:
            self._try(side, lambda side: _measured(side, work))

    def round(self, work: Work) -> None:
        """Measure every side once. The first side is the last one in the next round, as a disk gets slower with use."""
        for side in self._sides:
            self._try(side, lambda side: self.seconds[side].append(_measured(side, work)))
        self._sides.append(self._sides.pop(0))

    def _try(self, side: Peer, step: Callable[[Peer], float | None]) -> None:
        if side in self.failures:
            return
        try:
            step(side)
        except (Failed, LabError, OSError, subprocess.SubprocessError) as error:
            say(f"error: {side.name} is excluded: {error}")
            self.failures[side] = str(error)


def _measured(side: Peer, work: Work) -> float:
    # The data that the previous side has written must not be flushed during this measurement.
    os.sync()
    seconds = rested(lambda: side.run(work))
    say(f"{side.name}: {len(work.arguments)} x {work.program.name} in {seconds:.2f} s")
    return seconds
