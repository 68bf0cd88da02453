"""Measures the cost of a long queue: the same sweep with 100 and with 100,000 queued tasks of lower priority.

All tasks run `true`, so only claiming, starting and settling are measured. The measurement fails when the sweep was
half done before the other tasks were queued, or when queued tasks started meanwhile.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.installed import Failed, Grid
from bench.many_nodes import memory_mib
from bench.table import Row, rested, say, spread
from bench.work import TRUE
from tests.lab.hosts import Lab

MEASURED, SLOTS = 16_000, 2
SHORT_QUEUE, LONG_QUEUE = 100, 100_000
LEAST_RATE, MOST_MIB, MOST_PS_SECONDS = 0.9, 300.0, 1.0
SHORT = 200


def rows(lab: Lab, command: Path, home: Path, rounds: int, *, short: bool) -> Iterator[Row]:
    node = {"toolchains": ["executable"], "slots": SLOTS}
    with Grid(command, home, lab.inventory_yaml(fields=dict.fromkeys(lab.hosts, node))) as grid:
        grid.seconds("master", "start")
        grid.wait_for_toolchains({"executable"})
        found = Backlog(grid, SHORT if short else MEASURED)
        found.rate(SHORT_QUEUE)
        pairs = [(found.rate(LONG_QUEUE), found.rate(SHORT_QUEUE)) for _ in range(rounds)]
    ratios = [many / few for many, few in pairs]
    figure = statistics.median(ratios)
    sides = "{:.0f} / {:.0f} per second".format(*(statistics.median(side) for side in zip(*pairs, strict=True)))
    yield Row(
        f"tasks started per second, {LONG_QUEUE:,} queued / {SHORT_QUEUE} queued",
        f"{figure:.2f}",
        spread(ratios),
        f">= {LEAST_RATE:g}",
        None if short else figure >= LEAST_RATE,
        f"{sides}, {len(pairs)} rounds",
    )
    memory, waits = max(found.memories), statistics.median(found.waits)
    yield Row(
        f"the same: peak memory of the master, {LONG_QUEUE:,} queued",
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
    """One grid, with the memory and the times of `ps` while LONG_QUEUE tasks are queued."""

    def __init__(self, grid: Grid, measured: int) -> None:
        self._grid = grid
        self._measured = measured
        self._pid = grid.json("master", "status")["pid"]
        self.memories = list[float]()
        self.waits = list[float]()

    def rate(self, queued: int) -> float:
        """Ended tasks of the sweep per second, with `queued` tasks of lower priority."""
        sweep = self._sweep(self._measured, "--priority", "10")
        queue = self._sweep(queued)
        start, before = time.perf_counter(), self._progress(sweep)
        if before["ended"] > self._measured / 2:
            raise Failed(f"{before['ended']} of {self._measured} tasks had ended before {queued} were queued")
        moved = self._progress(queue)["ended"]
        self._grid.seconds("wait", sweep)
        taken = time.perf_counter() - start
        if queued == LONG_QUEUE:
            self._look(queue, moved)
        self._end(queue)
        rate: float = (self._measured - before["ended"]) / taken
        say(f"{rate:.0f} per second with {queued} queued")
        return rate

    def _sweep(self, tasks: int, *options: str) -> str:
        done = self._grid.run("sweep", "-d", *options, "-p", f"n=1..{tasks}", str(TRUE))
        if done.returncode != 0:
            raise Failed(f"sweep of {tasks}: {done.stderr!r}")
        return done.stdout.decode().strip()

    def _progress(self, sweep: str) -> Any:
        return self._grid.json("progress", sweep)

    def _look(self, queue: str, moved: int) -> None:
        self.waits += [rested(lambda: self._grid.seconds("ps")) for _ in range(5)]
        self.memories.append(memory_mib(self._pid, "VmHWM"))
        if self._progress(queue)["waiting"] < LONG_QUEUE / 2:
            raise Failed(f"queued tasks started meanwhile: {self._progress(queue)}, {moved} had ended before")

    def _end(self, sweep: str) -> None:
        self._grid.run("kill", sweep)
        self._grid.run("wait", sweep)
