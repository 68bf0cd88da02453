"""Batches through the engine, over a real SSH connection to this very machine."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from sshgrid.engines import Finish, place_in
from sshgrid.engines.batch import NEVER_BEGAN
from sshgrid.jobscript import Batch, Order, make_batch, task_name
from sshgrid.model import CompileFailed, Exited, HostLost, Node, Step
from tests.edge.engines import Host, Kept
from tests.edge.test_nodes_local import until


class Told:
    """A sink of a batch: what was told of each task, which may be told to have ended once."""

    def __init__(self) -> None:
        self.sinks: dict[str, Kept] = {}
        self.finishes: dict[str, Finish] = {}
        self.never_began: list[str] = []
        self.bytes = 0
        self.builds: list[bool] = []

    def task(self, order: Order) -> Kept:
        return self.sinks.setdefault(order.run, Kept())

    def kept(self, order: Order, stream: str) -> int:
        return self.task(order).kept(stream)

    async def output(self, order: Order, stream: str, piece: bytes) -> None:
        await self.task(order).output(stream, piece)

    async def running(self, orders: Sequence[Order]) -> None:
        for order in orders:
            await self.task(order).step(Step.RUNNING)

    async def uploaded(self, count: int, left: int = 0) -> None:
        self.bytes += count

    async def compiled(self, compiled: bool) -> None:
        self.builds.append(compiled)

    async def ended(self, ends: Sequence[tuple[Order, Finish]]) -> None:
        for order, finish in ends:
            assert order.run not in self.finishes
            self.finishes[order.run] = finish
            if finish.outcome == HostLost(NEVER_BEGAN):
                self.never_began.append(order.run)

    def outcomes(self, batch: Batch) -> list[object]:
        return [self.finishes[order.run].outcome for order in batch.tasks]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(Node("n1", connection="local", workdir=str(tmp_path / "w")), tmp_path)
    yield host
    await host.end()


def batch_of(host: Host, source: bytes, count: int, lanes: int = 2) -> Batch:
    return make_batch([host.order(source, str(number).encode()) for number in range(count)], lanes)


def place(batch: Batch, number: int) -> str:
    return place_in(batch.run, batch.tasks[number].run)


def folder(host: Host, batch: Batch) -> Path:
    return Path(host.node.workdir) / "runs" / batch.run


async def run(host: Host, batch: Batch, told: Told, *, resume: bool = False) -> None:
    async with asyncio.timeout(60):
        await host.engine.run_batch(batch, told, resume=resume)


async def test_1000_tasks_each_with_its_own_code_and_bytes(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'echo "out $1"; echo "err $1" >&2; exit $(($1 % 256))', 1000, 4)
    await run(host, batch, told)
    for number, order in enumerate(batch.tasks):
        assert told.finishes[order.run].outcome == Exited(number % 256)
        assert told.sinks[order.run]["stdout"] == b"out %d\n" % number
        assert told.sinks[order.run]["stderr"] == b"err %d\n" % number
    assert host.dials == 1
    await host.engine.discard(batch.run)
    assert not folder(host, batch).exists()


async def test_large_outputs_come_whole(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'head -c $((3000000 * $1)) /dev/zero | tr "\\0" "$1"', 3)
    await run(host, batch, told)
    assert [told.task(order)["stdout"] for order in batch.tasks] == [b"", b"1" * 3000000, b"2" * 6000000]


async def test_cpu_seconds_are_those_of_the_task_alone(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'i=0; while [ "$i" -lt $((300000 * (1 - $1))) ]; do i=$((i+1)); done', 2, 1)
    await run(host, batch, told)
    busy, idle = (told.finishes[order.run].usage.cpu_seconds for order in batch.tasks)
    assert busy is not None
    assert idle is not None
    assert busy > 0.1 > idle >= 0


async def test_a_program_that_does_not_compile_ends_every_task(host: Host) -> None:
    orders = [host.order(b"", b"%d" % n, compiler=(("sh", "-c", "echo no; exit 1"),)) for n in range(3)]
    told, batch = Told(), make_batch(orders, 2)
    await run(host, batch, told)
    assert told.outcomes(batch) == [CompileFailed(1)] * 3
    assert [told.task(order)["compile"] for order in orders] == [b"no\n", b"", b""]


async def test_F3_after_a_lost_connection_the_rest_is_read_and_nothing_twice(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'echo "$1"; sleep 0.01', 200)
    running = asyncio.create_task(run(host, batch, told))
    for cut in (10, 60, 120):
        await until(lambda cut=cut: len(told.finishes) >= cut or running.done(), "tasks to end")  # type: ignore[misc]
        assert host.link
        host.link._connection.abort()
    await running
    assert told.outcomes(batch) == [Exited(0)] * 200
    assert [told.sinks[order.run]["stdout"] for order in batch.tasks] == [b"%d\n" % number for number in range(200)]
    assert host.dials >= 3


async def test_a_next_master_finds_what_is_left_of_a_batch(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'echo "$1"; sleep 0.02; echo "$1"', 60)
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: len(told.finishes) >= 10, "ten tasks to end")
    running.cancel()
    await asyncio.wait([running])
    await host.close()
    host.engine = host.new_engine()
    left = [order for order in batch.tasks if order.run not in told.finishes]
    assert left
    await run(host, make_batch(left, 2, batch.run), told, resume=True)
    assert told.outcomes(batch) == [Exited(0)] * 60
    assert [told.sinks[order.run]["stdout"] for order in batch.tasks] == [b"%d\n%d\n" % (n, n) for n in range(60)]


async def test_a_killed_wrapper_loses_what_had_begun_and_frees_the_rest(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'[ "$1" = 0 ] || { echo ready; sleep 600; }', 6)
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: sum(Step.RUNNING in sink.steps for sink in told.sinks.values()) == 2, "two to run")
    wrapper = str((folder(host, batch) / "pid").readlink())
    os.kill(int(wrapper.partition(",")[0].removeprefix("pid=")), signal.SIGKILL)
    await running
    assert told.outcomes(batch)[0] == Exited(0)
    assert all(isinstance(outcome, HostLost) for outcome in told.outcomes(batch)[1:])
    assert told.never_began == [order.run for order in batch.tasks[3:]]
    begun = [order for order in batch.tasks if (folder(host, batch) / f"{task_name(order)}.out").exists()]
    assert begun == list(batch.tasks[:3])


async def test_one_task_is_killed_and_one_refused(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'echo ready; [ "$1" != 0 ] || sleep 600', 4, 1)
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: Step.RUNNING in told.task(batch.tasks[0]).steps, "the first to run")
    assert await host.engine.refuse(place(batch, 2))
    assert not await host.engine.refuse(place(batch, 2))
    assert not await host.engine.refuse(place(batch, 0))
    assert not await host.engine.signal(place(batch, 3), "TERM")
    assert await host.engine.signal(place(batch, 0), "TERM")
    await running
    assert told.never_began == [batch.tasks[2].run]
    assert [told.finishes[batch.tasks[n].run].outcome for n in (0, 1, 3)] == [Exited(143), Exited(0), Exited(0)]
