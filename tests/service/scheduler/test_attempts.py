"""Cancelling a job in any phase, and what an attempt leaves on its node."""

from __future__ import annotations

import asyncio

import pytest

from sshgrid.engines import AttemptResult
from sshgrid.engines.launch import run_name
from sshgrid.errors import Dropped, UsageError
from sshgrid.model import Attempt, Exited, Outcome, RetryPolicy, Step
from sshgrid.protocol.messages import Cancel, Watch
from sshgrid.scheduler import attempts, keyboards, run_removal, termination
from sshgrid.testing import ScriptedEngine, ScriptedGrid, Stage, after, inventory, until, until_killed
from tests.service.conftest import Grids

pytestmark = pytest.mark.usefixtures("quiet_log", "quick")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the pauses between signals short."""
    quick = {name: tuple((signal, 0.02) for signal, _ in steps) for name, steps in termination.ESCALATION.items()}
    monkeypatch.setattr(termination, "ESCALATION", quick)
    monkeypatch.setattr(run_removal, "CLAIM_KEPT_SECONDS", 0.02)


async def ignores_signals(stage: Stage) -> Outcome:
    """Ignores all signals but KILL."""
    await stage.say(b"ready\n")
    await asyncio.get_running_loop().create_future()
    return Exited(0)


def signals(grid: ScriptedGrid) -> list[str]:
    return [name for _, name in grid.engine.signals]


async def test_a_queued_job_is_cancelled_at_once(grids: Grids) -> None:
    grid = await grids(down=("n1", "n2", "n3"))
    job = await grid.submit(grid.submission(wait_for_nodes=True))
    assert await grid.master.cancel(Cancel((job,)), "ann") == 1
    line = grid.line(job)
    assert (line.state, line.exit_status, line.reason) == ("CANCELLED", 143, "cancelled (TERM by ann)")
    assert grid.engine.ran_on == []


async def test_a_job_that_backs_off_is_cancelled_at_once(grids: Grids) -> None:
    grid = await grids(Dropped("n1", "reset"), nodes=("n1",))
    grid.master.pool.shared.retry = RetryPolicy(backoff_seconds=3600.0, backoff_max_seconds=3600.0)
    job = await grid.submit()
    await until(lambda: grid.line(job).reason == "Backoff", lambda: grid.line(job))
    await grid.master.cancel(Cancel((job,)))
    assert (grid.line(job).state, grid.engine.ran_on) == ("CANCELLED", ["n1"])


async def test_a_job_that_is_uploading_is_cancelled_and_never_starts(grids: Grids) -> None:
    grid = await grids()
    grid.engine.uploads.clear()
    job = await grid.submit()
    await grid.reaches(job, "RUNNING")
    await grid.master.cancel(Cancel((job,), "INT"))
    line = await grid.wait(job)
    assert (line.state, line.exit_status, len(line.attempts)) == ("CANCELLED", 130, 1)
    run = run_name(grid.store.grid, Attempt(job, 1, "n1"))
    grid.engine.uploads.set()
    await until(lambda: run in grid.engine.discarded, lambda: grid.engine.discarded)
    assert (grid.engine.ran_on, grid.engine.refused) == ([], set())


async def test_a_running_job_is_cancelled_and_removed_from_its_node(grids: Grids) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    await grid.begun(job)
    assert await grid.master.cancel(Cancel((job,), "TERM"), "ann") == 1
    line = await grid.wait(job)
    assert (line.state, line.exit_status, line.signal) == ("CANCELLED", 143, 15)
    await until(lambda: not grid.engine.stages)
    assert signals(grid) == ["TERM"]


async def test_cancelling_a_job_that_has_ended_does_nothing(grids: Grids) -> None:
    grid = await grids(Exited(3))
    line = await grid.run()
    assert await grid.master.cancel(Cancel((line.id,), "KILL")) == 0
    assert grid.line(line.id).state == "FAILED"


@pytest.mark.parametrize(
    ("asked", "sent", "status"),
    [("INT", ["INT", "TERM", "KILL"], 130), ("TERM", ["TERM", "KILL"], 143), ("KILL", ["KILL"], 137)],
)
async def test_a_program_that_ignores_signals_gets_stronger_ones(
    grids: Grids, asked: str, sent: list[str], status: int
) -> None:
    grid = await grids(ignores_signals)
    job = await grid.submit()
    await grid.begun(job)
    await grid.master.cancel(Cancel((job,), asked))
    line = await grid.wait(job)
    assert (line.state, line.exit_status, signals(grid)) == ("CANCELLED", status, sent)


async def test_a_second_cancel_with_a_stronger_signal_does_not_wait_for_the_first(
    grids: Grids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(termination.ESCALATION, "INT", (("INT", 3600.0),))
    grid = await grids(ignores_signals)
    job = await grid.submit()
    await grid.begun(job)
    await grid.master.cancel(Cancel((job,), "INT"))
    await until(lambda: signals(grid) == ["INT"], lambda: signals(grid))
    await grid.master.cancel(Cancel((job,), "KILL"))
    assert (await grid.wait(job)).exit_status == 137
    assert signals(grid) == ["INT", "KILL"]


async def test_a_program_that_exits_with_0_after_a_cancel_is_cancelled(grids: Grids) -> None:
    async def polite(stage: Stage) -> Outcome:
        await stage.signal()
        return Exited(0)

    grid = await grids(polite)
    job = await grid.submit()
    await grid.begun(job)
    await grid.master.cancel(Cancel((job,), "INT"))
    assert (await grid.wait(job)).state == "CANCELLED"


async def test_a_signal_that_ends_nothing_is_only_sent(grids: Grids) -> None:
    async def counts(stage: Stage) -> Outcome:
        while (name := await stage.signal()) != "TERM":
            await stage.say(name.encode() + b"\n")
        return Exited(0)

    grid = await grids(counts)
    job = await grid.submit()
    await grid.begun(job)
    for name in ("USR1", "HUP"):
        assert await grid.master.cancel(Cancel((job,), name)) == 1
    await until(lambda: grid.kept(job) == b"USR1\nHUP\n", lambda: grid.kept(job))
    assert not grid.job(job).cancel_requested
    assert grid.line(job).state == "RUNNING"


@pytest.mark.parametrize("name", ["", "NOPE", "9", "TERM; rm -rf /", "int", "SIGTERM", "../x", "RTMIN+1"])
async def test_A8_an_invalid_signal_name_is_a_usage_error(grids: Grids, name: str) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    await grid.begun(job)
    with pytest.raises(UsageError, match="no such signal"):
        await grid.master.cancel(Cancel((job,), name))
    assert (signals(grid), grid.job(job).cancel_requested) == ([], False)


async def test_a_cancel_reaches_a_silent_node_when_it_answers_again(
    grids: Grids, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    await grid.begun(job)
    tries: list[str] = []

    async def not_now(run: str, name: str) -> bool:
        tries.append(name)
        if len(tries) < 3:
            raise Dropped("n1", "no answer")
        return await ScriptedEngine.signal(grid.engine, run, name)

    monkeypatch.setattr(grid.engine, "signal", not_now)
    await grid.master.cancel(Cancel((job,)))
    assert (await grid.wait(job)).state == "CANCELLED"
    assert tries == ["TERM"] * 3


async def test_a_cancelled_job_is_not_retried_when_its_host_is_lost(grids: Grids) -> None:
    grid = await grids(ignores_signals)
    job = await grid.submit()
    await grid.begun(job)
    grid.store.request_cancel(job, "TERM")
    grid.active_jobs.reread(job)
    grid.engine.lose("n1")
    line = await grid.wait(job)
    assert (line.state, grid.engine.ran_on) == ("CANCELLED", ["n1"])


async def test_a_run_on_a_node_that_left_the_inventory_runs_elsewhere(grids: Grids) -> None:
    grid = await grids(ignores_signals, Exited(0), nodes=("n1",))
    job = await grid.submit()
    await grid.begun(job)
    await grid.end()
    grid.inventory = inventory("n2")
    await grid.begin()
    line = await grid.wait(job)
    assert [(attempt.node, attempt.outcome) for attempt in line.attempts] == [
        ("n1", "host-lost: n1 is no longer in the inventory"),
        ("n2", "exited 0"),
    ]


async def test_a_late_result_is_dropped(grids: Grids, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    grid = await grids(ignores_signals)
    job = await grid.submit()
    await grid.begun(job)
    (running,) = grid.master.attempts.running
    grid.master.attempts.settlement.settle(running, AttemptResult(Exited(3)))
    grid.master.attempts.settlement.settle(running, AttemptResult(Exited(4)))
    assert (grid.line(job).exit_code, len(grid.line(job).attempts)) == (3, 1)
    assert "late result dropped" in caplog.text


# --- what is left on a node -------------------------------------------------------------------------------------------


async def test_the_folder_of_a_finished_run_is_removed(grids: Grids) -> None:
    grid = await grids(after(b"x", Exited(0)))
    await grid.run()
    await until(lambda: len(grid.engine.discarded) == 1, lambda: grid.engine.discarded)
    assert grid.engine.stages == {}


async def test_F3_a_run_on_a_lost_node_is_removed_when_the_node_is_back(grids: Grids) -> None:
    grid = await grids(ignores_signals, Exited(0))
    job = await grid.submit()
    stage = await grid.begun(job)
    grid.engine.lose("n1")
    line = await grid.wait(job)
    assert [attempt.node for attempt in line.attempts] == ["n1", "n2"]
    await until(lambda: stage.order.run in grid.node("n1").cleanup.leftovers, lambda: grid.node("n1").cleanup.leftovers)


async def test_a_master_that_leaves_does_not_wait_long_for_a_removal(
    grids: Grids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "LEAVE_SECONDS", 0.02)
    grid = await grids(Exited(0))

    async def never(_: str) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(grid.engine, "discard", never)
    await grid.run()
    async with asyncio.timeout(5):
        await grid.end()


# --- what an attempt says about itself --------------------------------------------------------------------------------


async def test_an_attempt_reports_its_steps_and_what_it_used(grids: Grids) -> None:
    gate = asyncio.Event()

    async def steps(stage: Stage) -> Outcome:
        await stage.enter(Step.COMPILING)
        await gate.wait()
        await stage.enter(Step.RUNNING)
        await stage.signal()
        return Exited(0)

    grid = await grids(steps)
    grid.engine.uploads.clear()
    job = await grid.submit()
    await until(lambda: grid.line(job).phase == "uploading", lambda: grid.line(job))
    grid.engine.uploads.set()
    await until(lambda: grid.line(job).phase == "compiling", lambda: grid.line(job))
    gate.set()
    await until(lambda: grid.line(job).phase == "running", lambda: grid.line(job))
    line = grid.line(job)
    assert (line.node, line.attempt, line.attempts_allowed) == ("n1", 1, 3)
    (attempt,) = line.attempts
    assert (attempt.toolchain, attempt.isolation, attempt.uploaded_bytes) == ("sh 1.0", "session", 11)
    await grid.master.cancel(Cancel((job,)))
    await grid.wait(job)


# --- interactive runs -------------------------------------------------------------------------------------------------


async def echo(stage: Stage) -> Outcome:
    assert stage.keyboard is not None
    while piece := await stage.keyboard.get():
        await stage.say(b"%r\n" % (piece,))
    return Exited(5)


async def test_an_interactive_run_receives_input_and_window_sizes(grids: Grids) -> None:
    grid = await grids(echo)
    job = await grid.submit(grid.submission(interactive=True, terminal=True))
    await grid.begun(job)
    await grid.master.send_input(job, b"hi")
    await grid.master.resize(job, 100, 30)
    await grid.master.send_input(job, b"")
    assert (await grid.wait(job)).exit_status == 5
    assert grid.kept(job) == b"b'hi'\n(100, 30)\n"


async def test_input_before_the_start_is_kept_and_dropped_with_the_job(grids: Grids) -> None:
    grid = await grids(echo, down=("n1", "n2", "n3"))
    jobs = [await grid.submit(grid.submission(interactive=True, wait_for_nodes=True)) for _ in range(2)]
    for job in jobs:
        await grid.master.send_input(job, b"early")
        await grid.master.send_input(job, b"")
    await grid.master.cancel(Cancel((jobs[1],)))
    grid.node("n1").come_up()
    assert (await grid.wait(jobs[0])).exit_status == 5
    assert grid.kept(jobs[0]) == b"b'early'\n"
    assert len(grid.master.attempts.keyboards) == 0


async def test_an_interactive_run_is_not_retried(grids: Grids) -> None:
    grid = await grids(Dropped("n1", "reset"))
    line = await grid.run(grid.submission(interactive=True))
    assert (line.exit_status, grid.engine.ran_on) == (125, ["n1"])


async def test_the_next_master_does_not_start_an_interactive_run_again(grids: Grids) -> None:
    grid = await grids(echo)
    job = await grid.submit(grid.submission(interactive=True))
    stage = await grid.begun(job)
    await grid.end()
    assert stage.keyboard is not None
    stage.keyboard.put_nowait(b"")
    await grid.begin()
    assert (await grid.wait(job)).exit_status == 5
    assert grid.engine.ran_on == ["n1"]


async def test_input_for_a_job_that_is_not_interactive_is_dropped(grids: Grids) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    await grid.begun(job)
    async with asyncio.timeout(5):
        for _ in range(keyboards.MAX_UNREAD_PIECES * 2):
            await grid.master.send_input(job, b"x")
    await grid.master.cancel(Cancel((job,)))
    assert (await grid.wait(job)).state == "CANCELLED"


@pytest.mark.parametrize("size", [(-1, 24), (80, -24), (1 << 40, 24), (0, 1 << 16)])
async def test_an_impossible_window_size_is_a_usage_error(grids: Grids, size: tuple[int, int]) -> None:
    grid = await grids(echo)
    job = await grid.submit(grid.submission(interactive=True, terminal=True))
    stage = await grid.begun(job)
    with pytest.raises(UsageError, match="window"):
        await grid.master.resize(job, *size)
    assert stage.keyboard is not None
    stage.keyboard.put_nowait(b"")
    assert [type(event).__name__ for event, _ in await grid.watch(job, Watch(job, output=False))][-1] == "Ended"
