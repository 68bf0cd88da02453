"""Batches through the engine, over a real SSH connection to this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from sshgrid.engines import AttemptResult
from sshgrid.engines.batch import NEVER_BEGAN
from sshgrid.engines.batch_state import BatchState
from sshgrid.engines.launch import BatchSpec, RunSpec, make_batch, place_in, task_name
from sshgrid.errors import Dropped
from sshgrid.model import (
    CompileFailed,
    Exited,
    HostLost,
    Limits,
    Node,
    Outcome,
    OutOfMemory,
    OutputLimit,
    Step,
    TimedOut,
)
from sshgrid.ssh.link import Link
from sshgrid.ssh.parsers import BatchLook
from sshgrid.ssh.runs import RunVerbs
from tests.edge.engine_hosts import Host, Kept
from tests.edge.engines.test_direct import until
from tests.lab.machine import argv_of


class Told:
    """A batch sink that keeps what it receives. A task ends once."""

    def __init__(self) -> None:
        self.state = BatchState[RunSpec]({})
        self.sinks: dict[str, Kept] = {}
        self.finishes: dict[str, AttemptResult] = {}
        self.never_began: list[str] = []
        self.bytes = 0
        self.builds: list[bool] = []

    def task(self, order: RunSpec) -> Kept:
        return self.of(order.run)

    def of(self, run: str) -> Kept:
        return self.sinks.setdefault(run, Kept())

    def kept(self, run: str, stream: str) -> int:
        return self.of(run).kept(stream)

    async def output(self, run: str, stream: str, piece: bytes) -> None:
        await self.of(run).output(stream, piece)

    async def running(self, runs: Sequence[str]) -> None:
        for run in runs:
            await self.of(run).step(Step.RUNNING)

    async def uploaded(self, count: int, left: int = 0) -> None:
        self.bytes += count

    async def compiled(self, compiled: bool) -> None:
        self.builds.append(compiled)

    async def ended(self, ends: Sequence[tuple[str, AttemptResult]]) -> None:
        for run, finish in ends:
            assert run not in self.finishes
            self.finishes[run] = finish
            self.state.remove([run])
            if finish.outcome == HostLost(NEVER_BEGAN):
                self.never_began.append(run)

    def outcomes(self, batch: BatchSpec) -> list[object]:
        return [self.finishes[order.run].outcome for order in batch.tasks]


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(Node("n1", connection="local", workdir=str(tmp_path / "w")), tmp_path)
    yield host
    await host.end()


def batch_of(host: Host, source: bytes, count: int) -> BatchSpec:
    return make_batch([host.order(source, str(number).encode()) for number in range(count)])


def place(batch: BatchSpec, number: int) -> str:
    return place_in(batch.run, batch.tasks[number].run)


def folder(host: Host, batch: BatchSpec) -> Path:
    return Path(host.node.workdir) / "runs" / batch.run


async def run(host: Host, batch: BatchSpec, told: Told, *, resume: bool = False) -> None:
    tasks = {task.run: task for task in batch.tasks}
    told.state = BatchState(tasks, resumed=resume, keep_warm=batch.keep_warm)
    async with asyncio.timeout(60):
        await host.engine.batches.run(batch, told, resume=resume)


async def extend(host: Host, batch: BatchSpec, told: Told, more: Sequence[RunSpec], *, keep_warm: bool = False) -> bool:
    told.state.join({task.run: task for task in more})
    told.state.keep_warm = keep_warm
    taken = await host.engine.batches.extend(batch.run, more)
    if not taken:
        told.state.remove(task.run for task in more)
    return taken


async def revoke(host: Host, batch: BatchSpec, told: Told, *runs: str) -> list[str]:
    revoked = await host.engine.batches.revoke(batch.run, runs)
    told.state.remove(revoked)
    return revoked


async def test_each_of_1000_tasks_has_its_own_exit_code_and_output(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'echo "out $1"; echo "err $1" >&2; exit $(($1 % 256))', 1000)
    await run(host, batch, told)
    for number, order in enumerate(batch.tasks):
        assert told.finishes[order.run].outcome == Exited(number % 256)
        assert told.sinks[order.run]["stdout"] == b"out %d\n" % number
        assert told.sinks[order.run]["stderr"] == b"err %d\n" % number
    assert host.dials == 1
    await host.engine.runs.discard(batch.run)
    assert not folder(host, batch).exists()


async def test_large_outputs_of_tasks_are_complete(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'head -c $((3000000 * $1)) /dev/zero | tr "\\0" "$1"', 3)
    await run(host, batch, told)
    assert [told.task(order)["stdout"] for order in batch.tasks] == [b"", b"1" * 3000000, b"2" * 6000000]


async def test_cpu_seconds_are_those_of_the_task_alone(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'i=0; while [ "$i" -lt $((300000 * (1 - $1))) ]; do i=$((i+1)); done', 2)
    await run(host, batch, told)
    busy, idle = (told.finishes[order.run].usage.cpu_seconds for order in batch.tasks)
    assert busy is not None
    assert idle is not None
    assert busy > 0.1 > idle >= 0


@pytest.mark.parametrize(
    ("source", "limits", "outcome"),
    [
        (b"exec sleep 1000", Limits(wall_seconds=0.2), TimedOut(0.2)),
        (b"exec sleep 1000", Limits(wall_seconds=0.001), TimedOut(0.001)),
        (b"yes; sleep 1000", Limits(output_bytes=1000), OutputLimit(1000)),
        (
            b"exec %s -c 'x = b\"x\" * 150000000; import time; time.sleep(99)'" % os.fsencode(sys.executable),
            Limits(memory_bytes=100 << 20),
            OutOfMemory(100 << 20),
        ),
    ],
    ids=["wall", "tiny wall", "output", "memory"],
)
async def test_limits_are_the_verdicts_of_single_tasks(
    host: Host, source: bytes, limits: Limits, outcome: Outcome
) -> None:
    source = b'[ "$1" = 1 ] || exit "$1"; ' + source
    batch = make_batch([host.order(source, b"%d" % number, limits=limits) for number in range(3)])
    told = Told()
    await run(host, batch, told)
    assert told.outcomes(batch) == [Exited(0), outcome, Exited(2)]


async def test_output_of_a_long_task_is_read_while_it_runs_and_only_once(host: Host) -> None:
    go = Path(host.node.workdir) / "go"
    wait = b"until [ -e %s ]; do sleep 0.05; done" % os.fsencode(go)
    source = b'echo first; echo error >&2; [ "$1" = 0 ] || exit 0; %s; echo last' % wait
    told, batch = Told(), batch_of(host, source, 2)
    running = asyncio.create_task(run(host, batch, told))
    long = told.task(batch.tasks[0])
    await until(lambda: (long["stdout"], long["stderr"]) == (b"first\n", b"error\n"), "its first words")
    assert batch.tasks[0].run not in told.finishes
    host.link.control.connection.abort()  # type: ignore[union-attr]
    go.touch()
    await running
    assert told.outcomes(batch) == [Exited(0)] * 2
    assert (long["stdout"], long["stderr"]) == (b"first\nlast\n", b"error\n")


async def test_data_files_are_uploaded_once_and_present_for_each_task(host: Host) -> None:
    content = os.urandom(50_000)
    orders = [host.order(b"cat a/file; rm -r a", data={"a/file": content}) for _ in range(20)]
    told, batch = Told(), make_batch(orders)
    await run(host, batch, told)
    assert [told.task(order)["stdout"] for order in orders] == [content] * 20
    assert 50_000 < told.bytes < 100_000


async def test_a_program_that_does_not_compile_ends_every_task(host: Host) -> None:
    orders = [host.order(b"", b"%d" % n, compiler=(("sh", "-c", "echo no; exit 1"),)) for n in range(3)]
    told, batch = Told(), make_batch(orders)
    await run(host, batch, told)
    assert told.outcomes(batch) == [CompileFailed(1)] * 3
    assert [told.task(order)["compile"] for order in orders] == [b"no\n", b"", b""]


async def test_a_batch_that_ends_before_it_is_looked_at_has_made_its_build(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = (("sh", "-c", "cp p.sh exe; chmod 755 exe"),)
    orders = [host.order(b"#!/bin/sh\n", compiler=copy, run=(b"{dir}/exe",)) for _ in range(2)]
    told, batch = Told(), make_batch(orders)
    batch_status = RunVerbs.batch_status

    async def after_the_end(runs: RunVerbs, name: str, seen: int) -> BatchLook:
        await until((folder(host, batch) / "rc").is_symlink, "the end of the batch")
        return await batch_status(runs, name, seen)

    monkeypatch.setattr(RunVerbs, "batch_status", after_the_end)
    await run(host, batch, told)
    assert told.outcomes(batch) == [Exited(0)] * 2
    assert [*host.builds._holders_of(batch.recipe.build_key)] == [host.name]


async def test_F3_after_a_lost_connection_the_rest_is_read_and_no_result_twice(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'echo "$1"; sleep 0.01', 200)
    running = asyncio.create_task(run(host, batch, told))
    for cut in (10, 60, 120):
        await until(lambda cut=cut: len(told.finishes) >= cut or running.done(), "tasks to end")  # type: ignore[misc]
        assert host.link
        host.link.control.connection.abort()
    await running
    assert told.outcomes(batch) == [Exited(0)] * 200
    assert [told.sinks[order.run]["stdout"] for order in batch.tasks] == [b"%d\n" % number for number in range(200)]
    assert host.dials >= 3


async def test_the_next_master_follows_the_rest_of_a_batch(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'echo "$1"; sleep 0.02; echo "$1"', 60)
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: len(told.finishes) >= 10, "ten tasks to end")
    running.cancel()
    await asyncio.wait([running])
    await host.close()
    host.engine = host.new_engine()
    left = [order for order in batch.tasks if order.run not in told.finishes]
    assert left
    await run(host, make_batch(left, batch.run), told, resume=True)
    assert told.outcomes(batch) == [Exited(0)] * 60
    assert [told.sinks[order.run]["stdout"] for order in batch.tasks] == [b"%d\n%d\n" % (n, n) for n in range(60)]


async def test_a_killed_wrapper_loses_tasks_that_had_begun_and_the_rest_never_begin(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'[ "$1" = 0 ] || { echo ready; sleep 600; }', 6)
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: Step.RUNNING in told.task(batch.tasks[1]).steps, "the second to run")
    wrapper = str((folder(host, batch) / "pid").readlink())
    os.kill(int(wrapper.partition(",")[0].removeprefix("pid=")), signal.SIGKILL)
    await running
    assert told.outcomes(batch)[0] == Exited(0)
    assert all(isinstance(outcome, HostLost) for outcome in told.outcomes(batch)[1:])
    assert told.never_began == [order.run for order in batch.tasks[2:]]
    begun = [order for order in batch.tasks if (folder(host, batch) / f"{task_name(order)}.out").exists()]
    assert begun == list(batch.tasks[:2])


async def test_one_task_of_a_batch_is_killed_and_one_revoked(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'echo ready; [ "$1" != 0 ] || sleep 600', 4)
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: Step.RUNNING in told.task(batch.tasks[0]).steps, "the first to run")
    runs = [order.run for order in batch.tasks]
    assert await revoke(host, batch, told, runs[2], runs[0]) == [runs[2]]
    assert await revoke(host, batch, told, runs[2]) == []
    assert not await host.engine.runs.signal(place(batch, 3), "TERM")
    assert await host.engine.runs.signal(place(batch, 0), "TERM")
    await running
    assert runs[2] not in told.finishes
    assert [told.finishes[batch.tasks[n].run].outcome for n in (0, 1, 3)] == [Exited(143), Exited(0), Exited(0)]


async def test_a_batch_is_extended_until_it_ends(host: Host) -> None:
    told, batch = Told(), batch_of(host, b'echo ready; while [ ! -e ../../../go ]; do sleep 0.02; done; echo "$1"', 2)
    more = batch_of(host, b'echo ready; while [ ! -e ../../../go ]; do sleep 0.02; done; echo "$1"', 50).tasks
    assert not await extend(host, batch, told, more)
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: Step.RUNNING in told.task(batch.tasks[0]).steps, "the first to run")
    assert await extend(host, batch, told, more[:20])
    assert await revoke(host, batch, told, more[3].run, batch.tasks[0].run) == [more[3].run]
    assert await extend(host, batch, told, more[20:])
    (Path(host.node.workdir) / "go").touch()
    await running
    assert set(told.finishes) == {order.run for order in (*batch.tasks, *more)} - {more[3].run}
    assert {finish.outcome for finish in told.finishes.values()} == {Exited(0)}
    assert told.task(more[49])["stdout"] == b"ready\n49\n"
    assert not await extend(host, batch, told, more)


async def test_a_batch_kept_warm_takes_more_tasks_after_the_last_has_ended(host: Host) -> None:
    tasks = batch_of(host, b'echo "$1"', 9).tasks
    told, batch = Told(), make_batch(tasks[:1], keep_warm=True)
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: len(told.finishes) == 1, "the first to end")
    assert await extend(host, batch, told, tasks[1:5], keep_warm=True)
    await until(lambda: len(told.finishes) == 5, "four more to end")
    assert not running.done()
    assert await extend(host, batch, told, tasks[5:])
    await running
    assert [told.finishes[order.run].outcome for order in tasks] == [Exited(0)] * 9
    assert told.task(tasks[8])["stdout"] == b"8\n"


async def test_added_tasks_run_when_their_lane_died_while_kept_warm(host: Host) -> None:
    tasks = batch_of(host, b'echo "$1"', 4).tasks
    told, batch = Told(), make_batch(tasks[:1], keep_warm=True)
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: len(told.finishes) == 1, "the first to end")
    processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal()]
    lane = [pid for pid in processes if {"lane", batch.run} <= set(argv_of(pid))]
    for pid in lane:
        os.kill(pid, signal.SIGSTOP)  # so that it does not start them
    assert await extend(host, batch, told, tasks[1:])
    for pid in lane:
        os.kill(pid, signal.SIGKILL)
    await running
    assert len(told.finishes) == 4
    assert {finish.outcome for finish in told.finishes.values()} == {Exited(0)}
    assert not await extend(host, batch, told, tasks[1:])


async def test_a_batch_kept_warm_ends_when_no_tasks_are_added(host: Host) -> None:
    told, batch = Told(), make_batch(batch_of(host, b"exit 3", 2).tasks, keep_warm=True)
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: len(told.finishes) == 2, "both to end")
    assert not (folder(host, batch) / "rc").is_symlink()
    await running
    assert (folder(host, batch) / "rc").is_symlink()
    assert not await extend(host, batch, told, batch_of(host, b"true", 3).tasks[2:])
    assert told.outcomes(batch) == [Exited(3)] * 2


async def test_added_tasks_end_once_when_the_connection_breaks(host: Host) -> None:
    """The tasks may have arrived or not."""
    told, batch = Told(), batch_of(host, b"sleep 0.5", 1)
    more = batch_of(host, b"sleep 0.5", 3).tasks
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: Step.RUNNING in told.task(batch.tasks[0]).steps, "it to run")
    assert host.link
    extending = asyncio.create_task(extend(host, batch, told, more))
    await asyncio.sleep(0)
    host.link.control.connection.abort()
    assert await extending
    assert not await extend(host, batch, told, batch_of(host, b"sleep 0.5", 1).tasks)
    await running
    ends = {told.finishes[order.run].outcome for order in more}
    assert ends in ({Exited(0)}, {HostLost(NEVER_BEGAN)})


async def test_tasks_that_could_not_be_sent_are_not_taken(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    told, batch = Told(), batch_of(host, b"sleep 0.5", 1)
    running = asyncio.create_task(run(host, batch, told))
    await until(lambda: Step.RUNNING in told.task(batch.tasks[0]).steps, "it to run")

    async def connected(patience_seconds: float) -> Link:
        if not patience_seconds:
            raise Dropped(host.name, "not connected")
        assert host.link
        return host.link

    monkeypatch.setattr(host, "connected", connected)
    assert not await extend(host, batch, told, batch_of(host, b"sleep 0.5", 3).tasks)
    await running
    assert [*told.finishes] == [batch.tasks[0].run]
