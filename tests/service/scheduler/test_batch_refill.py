"""The slots of sweeps: tasks wait in a batch behind the one that runs, unless another job should start before them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from sshgrid.engines.launch import RunSpec
from sshgrid.errors import Dropped, NodeUnfit
from sshgrid.model import Exited, Group, Halt, HostLost, JobId, Node, Phase, SweepDone, sweep_of
from sshgrid.protocol.messages import Cancel
from sshgrid.scheduler.sweep_state import SweepState
from sshgrid.testing.engine import ScriptedBatches, Stage
from sshgrid.testing.grid import ScriptedGrid, inventory, until
from tests.service.scheduler.test_sweeps import sweep, verdict

pytestmark = pytest.mark.usefixtures("quiet_log")


class Gate:
    """A play: the argument `wait` waits until the gate opens, `fN` exits with N, and any other one with 0."""

    def __init__(self) -> None:
        self.open = asyncio.Event()

    async def __call__(self, stage: Stage) -> Exited:
        word = stage.args[0].decode() if stage.args else ""
        if word == "wait":
            await self.open.wait()
        return Exited(int(word[1:]) if word.startswith("f") else 0)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def grid(tmp_path: Path, gate: Gate) -> AsyncIterator[ScriptedGrid]:
    grid = ScriptedGrid(tmp_path, inventory(*(Node(name, host="127.0.0.1", slots=1) for name in ("h1", "h2"))))
    grid.engine.plays(*[gate] * 1000)
    await grid.begin()
    yield grid
    gate.open.set()
    await grid.end()


def behind(grid: ScriptedGrid) -> int:
    """How many tasks wait in batches on nodes."""
    return sum(map(len, grid.engine.batches._ahead.values()))


async def waits_in_a_batch(grid: ScriptedGrid, job: JobId) -> None:
    """Wait until a task waits for the gate, with other tasks behind it."""
    await until(
        lambda: behind(grid) and grid.active_jobs.slots_in_use().by_owner().get("ann", 0) == 1,
        lambda: grid.engine.batches._ahead,
    )


async def test_the_next_tasks_wait_in_the_batch_where_they_will_run(grid: ScriptedGrid, gate: Gate) -> None:
    words = ["go"] * 10 + ["wait"] + ["go"] * 30
    job = await grid.submit(sweep(grid, *words, at_once=1))
    await waits_in_a_batch(grid, job)
    gate.open.set()
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(41, 0)
    numbers = [-order.attempt.job & 0xFFFFF for order in grid.engine.orders]
    assert numbers == list(range(1, 42))


async def test_a_job_of_another_user_starts_before_tasks_that_are_not_in_the_batch_yet(
    grid: ScriptedGrid, gate: Gate
) -> None:
    grid.node("h2").go_down()
    words = ["go"] * 8 + ["wait"] + ["go"] * 600
    job = await grid.submit(sweep(grid, *words))
    await waits_in_a_batch(grid, job)
    there = len(grid.store.jobs.tasks(job))
    other = await grid.submit(owner="bob")
    await grid.reaches(other, "PENDING")
    gate.open.set()
    await grid.wait(other)
    place = [order.attempt.job for order in grid.engine.orders].index(other)
    assert place <= there
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(609, 0)


async def test_tasks_behind_a_long_task_are_revoked_for_a_free_slot(grid: ScriptedGrid, gate: Gate) -> None:
    grid.node("h2").go_down()
    job = await grid.submit(sweep(grid, *["go"] * 12, "wait", *["go"] * 20))
    await waits_in_a_batch(grid, job)
    grid.node("h2").come_up()
    await until(lambda: len(grid.engine.orders) == 33, lambda: (len(grid.engine.orders), grid.engine.batches._ahead))
    assert behind(grid) == 0
    gate.open.set()
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(33, 0)
    assert len({order.run for order in grid.engine.orders}) == 33
    assert {order.attempt.number for order in grid.engine.orders} == {1}


async def test_tasks_of_a_released_batch_are_revoked_too(grid: ScriptedGrid, gate: Gate) -> None:
    grid.node("h2").go_down()
    job = await grid.submit(sweep(grid, *["go"] * 12, "wait", *["go"] * 20))
    await waits_in_a_batch(grid, job)
    for sink in grid.master.attempts.batches.holding_slots:
        grid.master.attempts.batches.release(sink)  # as when it was expected to end by now
    await until(lambda: behind(grid) == 0 and len(grid.engine.orders) == 33, lambda: grid.engine.batches._ahead)
    gate.open.set()
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(33, 0)


async def test_tasks_that_wait_in_a_batch_do_not_start_when_the_sweep_halts(grid: ScriptedGrid, gate: Gate) -> None:
    grid.node("h2").go_down()
    words = [*["go"] * 12, "wait", *["go"] * 20, "f1", *["go"] * 500]
    job = await grid.submit(sweep(grid, *words, halt=Halt("soon", count=1)))
    await waits_in_a_batch(grid, job)
    state = grid.master.sweeps.state(job)
    assert state is not None
    state.stopped = True  # as when a task on another node has failed
    grid.active_jobs.wake.set()
    await until(lambda: behind(grid) == 0)
    gate.open.set()
    await grid.wait(job)
    found = verdict(grid, job)
    assert isinstance(found, SweepDone)
    assert (found.failed, found.left) == (0, len(words) - len(grid.engine.orders))
    assert len(grid.engine.orders) < 34


async def test_a_slow_node_gets_no_task_that_faster_nodes_would_end_earlier(
    grid: ScriptedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SweepState, "seconds_on", lambda _, node: {"h1": 0.05, "h2": 5.0}[node])
    job = await grid.submit(sweep(grid, "go", "go", "go"))
    await grid.wait(job)
    assert grid.engine.ran_on == ["h1"] * 3


async def test_a_task_that_failed_on_a_fast_node_runs_on_a_slow_one(
    grid: ScriptedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SweepState, "seconds_on", lambda _, node: {"h1": 0.05, "h2": 5.0}[node])
    grid.engine.coming[:0] = [NodeUnfit("h1", "its disk is full")]
    job = await grid.submit(sweep(grid, "go"))
    await grid.wait(job)
    assert grid.engine.ran_on == ["h1", "h2"]
    assert verdict(grid, job) == SweepDone(1, 0)


async def test_a_slow_node_is_used_when_the_fast_ones_are_closed_to_the_user(
    grid: ScriptedGrid, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SweepState, "seconds_on", lambda _, node: {"h1": 0.05, "h2": 5.0}[node])
    two = inventory(Node("h1", host="127.0.0.1", slots=2), Node("h2", host="127.0.0.1", slots=1))
    await grid.master.use_inventory(msgspec.structs.replace(two, groups=(Group("fast", frozenset({"h1"}), 1),)))
    await grid.submit(grid.submission(args=(b"wait",), on="h1"))
    await until(lambda: len(grid.engine.orders) == 1)
    job = await grid.submit(sweep(grid, "go"))
    await grid.wait(job)
    assert grid.engine.ran_on == ["h1", "h2"]


async def test_tasks_that_a_batch_refuses_start_elsewhere(grid: ScriptedGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    refused: list[str] = []
    grid.engine.batches.warm_seconds = 0.01

    async def extend(batch: str, orders: Sequence[RunSpec]) -> bool:
        refused.extend(order.run for order in orders)
        grid.engine.batches.close(batch)
        return False

    monkeypatch.setattr(grid.engine.batches, "extend", extend)
    job = await grid.submit(sweep(grid, *["go"] * 300))
    await grid.wait(job)
    assert refused
    assert verdict(grid, job) == SweepDone(300, 0)
    assert sorted(-order.attempt.job & 0xFFFFF for order in grid.engine.orders) == list(range(1, 301))
    assert {len(task.attempts) for task in grid.store.jobs.tasks(job)} == {1}


async def test_tasks_that_cannot_be_sent_to_a_batch_are_retried(
    grid: ScriptedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []

    async def extend(batch: str, orders: Sequence[RunSpec]) -> bool:
        if lost:
            return await ScriptedBatches.extend(grid.engine.batches, batch, orders)
        lost.extend(order.run for order in orders)
        raise Dropped("h1", "reset")

    monkeypatch.setattr(grid.engine.batches, "extend", extend)
    job = await grid.submit(sweep(grid, *["go"] * 40))
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(40, 0)
    retried = [task for task in grid.store.jobs.tasks(job) if len(task.attempts) > 1]
    assert [task.attempts[0].outcome for task in retried] == [HostLost("reset")] * len(lost)


async def test_tasks_are_revoked_again_when_the_node_did_not_answer(
    grid: ScriptedGrid, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Sequence[str]] = []

    async def revoke(batch: str, runs: Sequence[str]) -> list[str]:
        tries.append(runs)
        if len(tries) == 1:
            raise Dropped("h1", "reset")
        return await ScriptedBatches.revoke(grid.engine.batches, batch, runs)

    monkeypatch.setattr(grid.engine.batches, "revoke", revoke)
    grid.node("h2").go_down()
    job = await grid.submit(sweep(grid, *["go"] * 12, "wait", *["go"] * 20))
    await waits_in_a_batch(grid, job)
    grid.node("h2").come_up()
    await until(lambda: len(grid.engine.orders) == 33, lambda: (len(grid.engine.orders), tries))
    assert len(tries) > 1
    gate.open.set()
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(33, 0)


async def test_a_batch_on_a_node_that_left_the_inventory_runs_elsewhere(grid: ScriptedGrid, gate: Gate) -> None:
    grid.node("h2").go_down()
    job = await grid.submit(sweep(grid, "wait", *["go"] * 5))
    await until(lambda: len(grid.engine.orders) == 1)
    await grid.end()
    grid.inventory = inventory(Node("h2", host="127.0.0.1", slots=1))
    await grid.begin()
    gate.open.set()
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(6, 0)
    first = grid.store.jobs.tasks(job)[0]
    assert first.attempts[0].outcome == HostLost("h1 is no longer in the inventory")
    assert first.attempts[1].node == "h2"


async def test_an_idle_batch_is_extended(grid: ScriptedGrid) -> None:
    grid.engine.batches.warm_seconds = 1e6
    job = await grid.submit(sweep(grid, *["go"] * 300))
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(300, 0)
    # The first two tasks started alone, as their runtime was not known; their batches were extended with many more.
    first = next(iter(grid.engine.batches.runs.values()))
    assert first[0].endswith("-1_1.1")
    assert len(first) > 60


async def test_an_idle_batch_is_released_when_its_sweep_has_no_more_tasks(grid: ScriptedGrid) -> None:
    grid.engine.batches.warm_seconds = 1e6
    first = await grid.submit(sweep(grid, *["go"] * 40))
    await grid.wait(first)
    second = await grid.submit(sweep(grid, *["go"] * 40))
    await grid.wait(second)
    alone = await grid.submit(grid.submission())
    await grid.wait(alone)
    assert grid.job(alone).verdict == Exited(0)


async def test_a_job_of_another_user_gets_a_slot_beside_a_batch_that_is_kept_warm(grid: ScriptedGrid) -> None:
    grid.engine.batches.warm_seconds = 1e6
    job = await grid.submit(sweep(grid, *["wait"] * 3, at_once=1))
    await until(lambda: len(grid.engine.orders) == 1)
    # The first task runs on one node; the other node is free.
    other = await grid.submit(owner="bob")
    await grid.wait(other)
    assert verdict(grid, other) == Exited(0)
    assert grid.job(job).phase is not Phase.DONE


async def test_extending_a_batch_exceeds_no_limit_of_a_group(grid: ScriptedGrid) -> None:
    grid.engine.batches.warm_seconds = 1e6
    first, second = Gate(), Gate()
    grid.engine.coming[:2] = [first, second]
    two = inventory(*(Node(name, host="127.0.0.1", slots=1) for name in ("h1", "h2")))
    await grid.master.use_inventory(msgspec.structs.replace(two, groups=(Group("lab", frozenset({"h1", "h2"}), 1),)))
    job = await grid.submit(sweep(grid, "wait", *["go"] * 20))
    await until(lambda: len(grid.engine.orders) == 1)
    other = await grid.submit(grid.submission(priority=10, args=(b"wait",)))
    await grid.reaches(other, "PENDING")
    first.open.set()
    await grid.reaches(other, "RUNNING")
    await grid.scheduler_steps()
    assert len(grid.engine.orders) == 2
    second.open.set()
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(21, 0)


async def test_extending_a_batch_counts_for_the_share_of_its_owner(grid: ScriptedGrid) -> None:
    async def takes_a_while(stage: Stage) -> Exited:
        await asyncio.sleep(0.2)
        return Exited(0)

    grid.engine.coming[:] = [takes_a_while] * 40
    grid.node("h2").go_down()
    sweep_of_ann = await grid.submit(sweep(grid, *["go"] * 30, at_once=1))
    await until(lambda: len(grid.engine.orders) == 1)
    grid.node("h2").come_up()
    await grid.submit(grid.submission(on="h2"), owner="bob")
    await until(lambda: len(grid.engine.orders) == 2)
    second = await grid.submit(grid.submission(on="h1"), owner="bob")
    await grid.wait(second)
    place = [order.attempt.job for order in grid.engine.orders].index(second)
    assert place < 20
    await grid.master.cancel(Cancel((sweep_of_ann,), "KILL"), "ann")
    await grid.wait(sweep_of_ann)


async def test_an_idle_batch_on_a_lost_node_delays_no_task(
    grid: ScriptedGrid, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SweepState, "seconds_on", lambda _, node: {"h1": 0.05, "h2": 5.0}[node])
    grid.engine.batches.warm_seconds = 1e6
    grid.node("h2").go_down()
    job = await grid.submit(sweep(grid, "wait", *["go"] * 5, at_once=1))
    await until(lambda: len(grid.engine.orders) == 1)
    grid.master.pause()
    gate.open.set()
    await until(lambda: bool(grid.engine.batches.warm))
    grid.node("h1").go_down()
    grid.node("h2").come_up()
    grid.master.scheduler.paused = False
    grid.active_jobs.nodes_changed()
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(6, 0)


async def test_a_master_that_leaves_removes_idle_batches(grid: ScriptedGrid) -> None:
    job = await grid.submit(sweep(grid, *["go"] * 3))
    await grid.wait(job)
    await grid.end()
    assert set(grid.engine.batches.runs) <= set(grid.engine.discarded)
    await grid.begin()


async def test_the_next_master_resumes_tasks_that_wait_in_a_batch(grid: ScriptedGrid, gate: Gate) -> None:
    job = await grid.submit(sweep(grid, *["go"] * 10, "wait", *["go"] * 30, at_once=1))
    await waits_in_a_batch(grid, job)
    await grid.end()
    await grid.begin()
    gate.open.set()
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(41, 0)
    ends = [task for task in grid.store.jobs.tasks(job) if sweep_of(task.id) == job]
    assert len(ends) == 41
