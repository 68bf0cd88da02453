"""Measures a task of a batch on the nodes and in transit, against the same program in a loop of sh on those hosts.

Both sides use four hosts at the same time, on the processors of this machine. There is no queue, so the result is the
upper limit for a sweep. The measurement fails when a task fails.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.installed import Failed
from bench.table import Row, rested, spread
from sshgrid.engines import AttemptResult
from sshgrid.engines.batch_state import BatchState
from sshgrid.engines.launch import BatchSpec, make_batch
from sshgrid.model import Exited, Node
from tests.edge.engine_hosts import Host
from tests.lab.disk import ACCOUNT
from tests.lab.hosts import Lab, LabHost

TASKS = 500  # on each host
PAIRS = 5
AT_LEAST = 0.3
LOOP = f"i=0; while [ $i -lt {TASKS} ]; do /bin/true; i=$((i + 1)); done"


class _Tally:
    """Counts the tasks that exited with 0."""

    def __init__(self, batch: BatchSpec) -> None:
        self.state = BatchState({task.run: task for task in batch.tasks})
        self.succeeded = 0

    def kept(self, run: str, stream: str) -> int:
        return 0

    async def output(self, run: str, stream: str, piece: bytes) -> None:
        raise Failed(f"{run} printed {piece!r} on {stream}")

    async def running(self, runs: Sequence[str]) -> None:
        """Starts are not counted."""

    async def ended(self, ends: Sequence[tuple[str, AttemptResult]]) -> None:
        self.succeeded += sum(result.outcome == Exited(0) for _, result in ends)
        self.state.remove(run for run, _ in ends)

    async def uploaded(self, count: int, left: int = 0) -> None:
        """The upload is not measured."""

    async def compiled(self, compiled: bool) -> None:
        """The program is not compiled."""


def rows(lab: Lab, home: Path) -> Iterator[Row]:
    home.mkdir()
    with asyncio.Runner() as runner:
        hosts = [_host(lab, host, home) for host in lab]
        try:
            runner.run(_batches(hosts, 10))
            pairs = [
                (rested(lambda: _loops(lab)), rested(lambda: runner.run(_batches(hosts, TASKS)))) for _ in range(PAIRS)
            ]
        finally:
            runner.run(_end(hosts))
    ratios = [limit / taken for limit, taken in pairs]
    count = TASKS * len(hosts)
    loop, batch = (count / statistics.median(side) for side in zip(*pairs, strict=True))
    figure = statistics.median(ratios)
    yield Row(
        f"batches of {TASKS} x /bin/true / a loop of sh, {len(hosts)} hosts at once: tasks per second",
        f"{figure:.2f}",
        spread(ratios),
        f">= {AT_LEAST}",
        figure >= AT_LEAST,
        f"{batch:.0f} / {loop:.0f} per second, {PAIRS} pairs",
    )


def _host(lab: Lab, host: LabHost, home: Path) -> Host:
    folder = home / host.name
    folder.mkdir()
    node = Node(
        host.name,
        host.address,
        user=ACCOUNT,
        port=22,
        identity_file=str(lab.identity_file),
        known_hosts=str(lab.known_hosts),
        workdir="/var/tmp/batch",
    )
    return Host(node, folder)


def _loops(lab: Lab) -> float:
    start = time.perf_counter()
    with ThreadPoolExecutor(len(lab.hosts)) as pool:
        list(pool.map(lambda host: host.run(["/bin/sh", "-c", LOOP], user=ACCOUNT), lab))
    return time.perf_counter() - start


async def _batches(hosts: Sequence[Host], count: int) -> float:
    """Seconds from the first start to the last end. The folders are removed afterwards."""
    batches = [
        make_batch([host.order(b"", b"%d" % number, run=(b"/bin/true",)) for number in range(count)]) for host in hosts
    ]
    for host in hosts:
        await host.open()
    tallies = [_Tally(batch) for batch in batches]
    start = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for host, batch, tally in zip(hosts, batches, tallies, strict=True):
            group.create_task(host.engine.batches.run(batch, tally))
    taken = time.perf_counter() - start
    if any(tally.succeeded != count for tally in tallies):
        raise Failed(f"of {count} tasks exited with 0: {[tally.succeeded for tally in tallies]}")
    for host, batch in zip(hosts, batches, strict=True):
        await host.engine.runs.discard(batch.run)
    return taken


async def _end(hosts: Sequence[Host]) -> None:
    for host in hosts:
        await host.end()
