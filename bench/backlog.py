"""What a long queue costs: the same sweep is measured with a short and with a very long one of lower rank behind it.

All of it is `true`, so nothing but claiming, starting and settling is measured. Refuses the figure when the sweep was
nearly over before the queue stood, or when the queue moved meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.crowd import memory_mib
from bench.installed import Failed, Grid
from bench.table import Row, rested, say, spread
from bench.work import TRUE
from tests.lab.hosts import Lab

MEASURED, SLOTS = 16_000, 2
FEW, MANY = 100, 100_000
LEAST_RATE, MOST_MIB, MOST_PS_SECONDS = 0.9, 300.0, 1.0
SHORT = 200


def rows(lab: Lab, command: Path, home: Path, rounds: int, *, short: bool) -> Iterator[Row]:
    node = {"toolchains": ["executable"], "slots": SLOTS}
    with Grid(command, home, lab.inventory_yaml(fields=dict.fromkeys(lab.hosts, node))) as grid:
        grid.seconds("master", "start")
        grid.wait_for_toolchains({"executable"})
        found = Backlog(grid, SHORT if short else MEASURED)
        found.rate(FEW)
        pairs = [(found.rate(MANY), found.rate(FEW)) for _ in range(rounds)]
    ratios = [many / few for many, few in pairs]
    figure = statistics.median(ratios)
    sides = "{:.0f} / {:.0f} a second".format(*(statistics.median(side) for side in zip(*pairs, strict=True)))
    yield Row(
        f"tasks begun a second, {MANY:,} queued / {FEW}",
        f"{figure:.2f}",
        spread(ratios),
        f">= {LEAST_RATE:g}",
        None if short else figure >= LEAST_RATE,
        f"{sides}, {len(pairs)} rounds",
    )
    memory, waits = max(found.memories), statistics.median(found.waits)
    yield Row(
        f"the same: most memory that the master ever had, {MANY:,} queued",
        f"{memory:.0f} MiB",
        "",
        f"< {MOST_MIB:.0f} MiB",
        memory < MOST_MIB,
        "VmHWM",
    )
    yield Row(
        "the same: ps",
        f"{waits:.2f} s",
        spread(found.waits),
        f"< {MOST_PS_SECONDS:g} s",
        waits < MOST_PS_SECONDS,
        f"{len(found.waits)} times",
    )


class Backlog:
    """One grid; what is seen while MANY are queued is kept."""

    def __init__(self, grid: Grid, measured: int) -> None:
        self._grid = grid
        self._measured = measured
        self._pid = grid.json("master", "status")["pid"]
        self.memories = list[float]()
        self.waits = list[float]()

    def rate(self, queued: int) -> float:
        """Tasks of the sweep that ended a second while so many others were queued."""
        sweep = self._sweep(self._measured, "--priority", "10")
        behind = self._sweep(queued)
        start, before = time.perf_counter(), self._progress(sweep)
        if before["ended"] > self._measured / 2:
            raise Failed(f"{before['ended']} of {self._measured} tasks had ended before {queued} were queued")
        moved = self._progress(behind)["ended"]
        self._grid.seconds("wait", sweep)
        taken = time.perf_counter() - start
        if queued == MANY:
            self._look(behind, moved)
        self._end(behind)
        rate: float = (self._measured - before["ended"]) / taken
        say(f"{rate:.0f} a second with {queued} queued")
        return rate

    def _sweep(self, tasks: int, *options: str) -> str:
        done = self._grid.run("sweep", "-d", *options, "-p", f"n=1..{tasks}", str(TRUE))
        if done.returncode != 0:
            raise Failed(f"sweep of {tasks}: {done.stderr!r}")
        return done.stdout.decode().strip()

    def _progress(self, sweep: str) -> Any:
        return self._grid.json("progress", sweep)

    def _look(self, behind: str, moved: int) -> None:
        self.waits += [rested(lambda: self._grid.seconds("ps")) for _ in range(5)]
        self.memories.append(memory_mib(self._pid, "VmHWM"))
        if self._progress(behind)["waiting"] < MANY / 2:
            raise Failed(f"the queue moved: {self._progress(behind)}, {moved} had ended before")

    def _end(self, sweep: str) -> None:
        self._grid.run("kill", sweep)
        self._grid.run("wait", sweep)
