"""What the next master finds: runs in progress, results that were not settled, cancels, a disk that was full."""

from __future__ import annotations

import asyncio
import errno

import msgspec
import pytest

from sshgrid.errors import StoreError
from sshgrid.model import Exited, HostLost, Outcome, Phase
from sshgrid.protocol.messages import Cancel
from sshgrid.testing import Stage, until, until_killed
from tests.service.conftest import Grids

pytestmark = pytest.mark.usefixtures("quiet_log")


# --- the fence --------------------------------------------------------------------------------------------------------


async def test_F4_a_late_result_of_an_abandoned_attempt_changes_nothing(grids: Grids) -> None:
    let_go = asyncio.Event()

    async def twin(stage: Stage) -> Outcome:
        await let_go.wait()
        return Exited(66)

    grid = await grids(twin, until_killed)
    job = await grid.submit()
    before = await grid.begun(job)
    old = grid.job(job)
    # Another part of the master settles the attempt while the task that follows it still runs.
    record = msgspec.structs.replace(old.attempts[-1], outcome=HostLost("silent"), ended=1.0)
    moved = msgspec.structs.replace(old, phase=Phase.QUEUED, attempts=(record,), excluded=frozenset({"n1"}))
    assert grid.store.attempts.settle(before.order.attempt, record, moved)
    grid.active_jobs.update(moved)
    await grid.begun(job, 2)
    let_go.set()
    await until(lambda: before.order.run in grid.engine.discarded, lambda: grid.engine.discarded)
    assert (grid.line(job).state, grid.line(job).attempt) == ("RUNNING", 2)
    await grid.master.cancel(Cancel((job,), "KILL"))
    line = await grid.wait(job)
    assert [attempt.outcome for attempt in line.attempts] == ["host-lost: silent", "cancelled (KILL)"]


# --- the next master --------------------------------------------------------------------------------------------------


async def test_F10_the_next_master_follows_the_run_in_progress(grids: Grids) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    await until(lambda: grid.kept(job) == b"ready\n", lambda: grid.line(job))
    await grid.end()
    stage = grid.engine.stage(job)
    assert stage is not None
    await stage.say(b"while nobody looked\n")
    await grid.begin()
    await until(lambda: b"looked" in grid.kept(job), lambda: grid.kept(job))
    stage.send("TERM")
    line = await grid.wait(job)
    assert (line.exit_status, len(line.attempts), grid.engine.ran_on) == (143, 1, ["n1"])
    assert grid.kept(job) == b"ready\nwhile nobody looked\n"


async def test_F13_a_result_from_the_time_without_a_master_is_settled_once(grids: Grids) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    await until(lambda: grid.kept(job) == b"ready\n", lambda: grid.line(job))
    await grid.end()
    stage = grid.engine.stage(job)
    assert stage is not None
    stage.send("INT")
    await until(lambda: stage.end)
    await grid.begin()
    line = await grid.wait(job)
    assert (line.exit_status, grid.engine.ran_on, grid.kept(job)) == (130, ["n1"], b"ready\n")


async def test_the_next_master_waits_for_the_node_of_a_run_to_come_back(grids: Grids) -> None:
    grid = await grids(until_killed)
    grid.inventory = msgspec.structs.replace(
        grid.inventory, retry=msgspec.structs.replace(grid.inventory.retry, patience_min_seconds=5.0)
    )
    job = await grid.submit()
    await until(lambda: grid.kept(job) == b"ready\n", lambda: grid.line(job))
    await grid.end()
    grid.down = {"n1"}
    await grid.begin()
    assert (await grid.reaches(job, "DISCONNECTED")).attempt == 1
    grid.node("n1").come_up()
    stage = await grid.begun(job)
    stage.send("TERM")
    line = await grid.wait(job)
    assert (line.exit_status, grid.engine.ran_on) == (143, ["n1"])


async def test_the_next_master_moves_a_run_whose_node_does_not_come_back(grids: Grids) -> None:
    grid = await grids(until_killed, Exited(0))
    job = await grid.submit()
    await until(lambda: grid.kept(job) == b"ready\n", lambda: grid.line(job))
    await grid.end()
    grid.down = {"n1"}
    grid.engine.lose("n1")
    await grid.begin()
    line = await grid.wait(job)
    assert (line.exit_status, grid.engine.ran_on) == (0, ["n1", "n2"])


async def test_F11_a_claim_that_never_reached_its_node_is_retried_on_another_node(grids: Grids) -> None:
    grid = await grids()
    grid.engine.uploads.clear()
    job = await grid.submit()
    await grid.reaches(job, "RUNNING")
    await grid.end()
    grid.engine.uploads.set()
    await grid.begin()
    line = await grid.wait(job)
    assert (line.exit_status, [attempt.node for attempt in line.attempts]) == (0, ["n1", "n2"])
    assert grid.engine.ran_on == ["n2"]


async def test_a_run_is_followed_when_its_node_no_longer_has_the_toolchain(grids: Grids) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    await until(lambda: grid.kept(job) == b"ready\n", lambda: grid.line(job))
    await grid.end()
    grid.down = {"n1"}
    await grid.begin()
    node = grid.node("n1")
    node.has()
    node.come_up()
    stage = await grid.begun(job)
    stage.send("INT")
    assert (await grid.wait(job)).exit_status == 130
    assert grid.engine.ran_on == ["n1"]


async def test_the_next_master_starts_a_waiting_job(grids: Grids) -> None:
    grid = await grids(down=("n1", "n2", "n3"))
    job = await grid.submit(grid.submission(wait_for_nodes=True))
    await grid.end()
    again = await grids()
    assert (await again.wait(job)).exit_status == 0


async def test_the_next_master_completes_a_cancel(grids: Grids) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    await until(lambda: grid.kept(job) == b"ready\n", lambda: grid.line(job))
    grid.store.request_cancel(job, "INT by ann")
    await grid.end()
    await grid.begin()
    line = await grid.wait(job)
    assert (line.state, line.exit_status) == ("CANCELLED", 130)


# --- a full disk ------------------------------------------------------------------------------------------------------


async def test_a_full_disk_stops_the_master_and_does_not_fail_the_job(
    grids: Grids, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = await grids(until_killed)
    full = StoreError("spool: no space left on its disk")

    def no_space(*_: object) -> int:
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(grid.spool.outputs, "append", no_space)
        job = await grid.submit()
        await asyncio.wait([grid.working], timeout=10)
        assert grid.working.done()
        assert grid.working.exception() is full
    await grid.end()
    await grid.begin()
    await until(lambda: grid.kept(job) == b"ready\n", lambda: grid.line(job))
    assert (grid.line(job).state, grid.line(job).attempt, grid.engine.ran_on) == ("RUNNING", 1, ["n1"])


async def test_a_result_that_cannot_be_written_is_settled_by_the_next_master(
    grids: Grids, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = await grids(Exited(5))
    with monkeypatch.context() as patch:
        broken = OSError(errno.EIO, "broken")
        patch.setattr(grid.spool.outputs, "sync", lambda *_: (_ for _ in ()).throw(StoreError(f"spool: {broken}")))
        job = await grid.submit()
        await asyncio.wait([grid.working], timeout=10)
        assert isinstance(grid.working.exception(), StoreError)
    await grid.end()
    await grid.begin()
    line = await grid.wait(job)
    assert (line.exit_status, len(line.attempts), grid.engine.ran_on) == (5, 1, ["n1"])
