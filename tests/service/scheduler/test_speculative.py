"""Speculative attempts on a real master with scripted nodes: the first result counts, and each task has one result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import msgspec
import pytest

from sshgrid.engines.launch import run_name
from sshgrid.errors import Dropped, UsageError
from sshgrid.model import (
    Attempt,
    Cancelled,
    Caps,
    CompileFailed,
    Exited,
    Halt,
    HostLost,
    JobId,
    Limits,
    Node,
    OnHostLoss,
    Outcome,
    Phase,
    RetryPolicy,
    SourceFile,
    Submission,
    Superseded,
    Sweep,
    SweepDone,
    task_id,
    task_number,
)
from sshgrid.policy import retry
from sshgrid.protocol.messages import Cancel
from sshgrid.protocol.sweep_messages import TaskEnded, TaskLine, TaskOutput, WatchSweep
from sshgrid.protocol.user_messages import AddUser, SetCaps
from sshgrid.queue.store import Store
from sshgrid.sweeps import chunking, parameters, speculation
from sshgrid.sweeps.parameters import Axis, Table
from sshgrid.testing.engine import Play, ScriptedEngine, Stage, after
from sshgrid.testing.grid import ScriptedGrid, inventory, until

DROPPED = "late result dropped"  # in the log, when an attempt that is no longer live settles

pytestmark = pytest.mark.usefixtures("quiet_log", "quick")

SHORT = Exited(0)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a task late after some hundredths of a second."""
    monkeypatch.setattr(speculation, "START_SECONDS", 0.01)


@pytest.fixture
async def grid(tmp_path: Path) -> AsyncIterator[ScriptedGrid]:
    """Two nodes. h2 is down until `bring_h2`, so what starts before runs on h1."""
    grid = await ScriptedGrid(tmp_path, inventory("h1", "h2"), down=["h2"]).begin()
    yield grid
    await grid.end()
    await grid.engine.close()


@pytest.fixture
async def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ScriptedGrid]:
    """One slot on h1; h2 is down. All tasks but the first share one batch."""
    monkeypatch.setattr(chunking, "BATCH_SECONDS", 3600.0)
    grid = await ScriptedGrid(tmp_path, inventory(Node("h1", host="127.0.0.1", slots=1), "h2"), down=["h2"]).begin()
    yield grid
    await grid.end()
    await grid.engine.close()


def bring_h2(grid: ScriptedGrid) -> None:
    grid.down.clear()  # for the next master as well
    grid.node("h2").come_up()


class Gated:
    """A play that prints its name, then waits for `gate`."""

    def __init__(self, name: str, outcome: Outcome = SHORT) -> None:
        self.output, self.outcome = name.encode() + b"\n", outcome
        self.gate = asyncio.Event()

    async def __call__(self, stage: Stage) -> Outcome:
        await stage.say(self.output)
        await self.gate.wait()
        return self.outcome


def sweep(
    grid: ScriptedGrid, tasks: int = 4, *, backup: bool = True, batches: bool = False, **plan: object
) -> Submission:
    rows = tuple((str(number).encode(),) for number in range(1, tasks + 1))
    packed = parameters.encode(Table((Axis(("x",), rows),)))
    table = SourceFile("parameters", grid.spool.blobs.keep(packed), len(packed))
    asked = msgspec.structs.replace(Sweep(table, tasks, backup=backup), **plan)
    # With this limit tasks share no start.
    return grid.submission(sweep=asked, limits=Limits() if batches else Limits(processes=64))


async def with_speculative_attempt(
    grid: ScriptedGrid, first: Play, second: Play, owner: str = "ann"
) -> tuple[JobId, JobId]:
    """A sweep of four tasks. The last one plays `first`, and its speculative attempt `second`."""
    grid.engine.coming[:0] = [SHORT, SHORT, SHORT, first, second]
    begun = len(grid.engine.orders)
    sweep_id = await grid.submit(sweep(grid), owner)
    task = task_id(sweep_id, 4)
    await until(lambda: len(grid.engine.orders) == begun + 4, lambda: grid.engine.ran_on)
    bring_h2(grid)
    await until(lambda: len(grid.engine.orders) == begun + 5, lambda: grid.engine.ran_on)
    pair = [order.attempt for order in grid.engine.orders[begun + 3 :]]
    assert [(attempt.job, attempt.number) for attempt in pair] == [(task, 1), (task, 2)]
    assert {attempt.node for attempt in pair} == {"h1", "h2"}
    return sweep_id, task


async def another_sweep_gets_one(grid: ScriptedGrid) -> None:
    """Wait until another sweep has had a speculative attempt: a sweep that has got none by then gets none."""
    sweep_id, _ = await with_speculative_attempt(grid, Gated("another"), SHORT, owner="bob")
    await watched(grid, sweep_id)


async def watched(grid: ScriptedGrid, sweep_id: JobId) -> tuple[dict[int, TaskLine], bytes]:
    """The tasks that a watcher receives, each once, and their output."""
    tasks: dict[int, TaskLine] = {}
    output = b""
    async with asyncio.timeout(20), grid.master.job_queries.watch(WatchSweep(sweep_id)) as events:
        async for event, payload in events:
            match event:
                case TaskEnded(task):
                    assert task.number not in tasks
                    tasks[task.number] = task
                case TaskOutput():
                    output += payload
    return tasks, output


def outcomes(grid: ScriptedGrid, task: JobId) -> list[object]:
    return [record.outcome for record in grid.job(task).attempts]


async def nothing_is_left(grid: ScriptedGrid, task: JobId, attempts: int = 2) -> None:
    """Wait until each run of the task is removed from its node; it has no slot there."""
    runs = {run_name(grid.store.grid, Attempt(task, number, "")) for number in range(1, attempts + 1)}
    await until(lambda: runs <= set(grid.engine.discarded), lambda: (runs, grid.engine.discarded))
    assert not [node.name for node in grid.pool.nodes.values() if node.slots.running]


# --- who wins ---------------------------------------------------------------------------------------------------------


async def test_a_speculative_attempt_that_ends_first_is_the_result_and_the_original_is_killed(
    grid: ScriptedGrid, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    original = Gated("original")
    sweep_id, task = await with_speculative_attempt(grid, original, after(b"speculative\n", Exited(3)))
    tasks, output = await watched(grid, sweep_id)
    assert (tasks[4].attempt, tasks[4].node, tasks[4].exit_status, output) == (2, "h2", 3, b"speculative\n")
    assert grid.job(sweep_id).verdict == SweepDone(4, 1)
    assert outcomes(grid, task) == [Superseded(2), Exited(3)]
    assert [line.outcome for line in grid.line(task).attempts] == ["superseded by attempt 2", "exited 3"]
    await nothing_is_left(grid, task)
    assert [name for _, name in grid.engine.signals] == ["KILL"]
    assert DROPPED not in caplog.text


async def test_an_original_that_ends_first_is_the_result_and_the_speculative_attempt_is_killed(
    grid: ScriptedGrid,
) -> None:
    original, speculative = Gated("original"), Gated("speculative")
    sweep_id, task = await with_speculative_attempt(grid, original, speculative)
    await until(lambda: grid.kept(task, 2))
    original.gate.set()
    tasks, output = await watched(grid, sweep_id)
    assert (tasks[4].attempt, tasks[4].node, output) == (1, "h1", b"original\n")
    assert outcomes(grid, task) == [Exited(0), Superseded(1)]
    await nothing_is_left(grid, task)
    assert len(grid.engine.orders) == 5


@pytest.mark.parametrize("first", [0, 1])
async def test_one_result_counts_when_both_attempts_end_at_the_same_moment(grid: ScriptedGrid, first: int) -> None:
    pair = (Gated("original", Exited(1)), Gated("speculative", Exited(2)))
    sweep_id, task = await with_speculative_attempt(grid, *pair)
    await until(lambda: grid.kept(task, 1) and grid.kept(task, 2))
    pair[first].gate.set()
    pair[1 - first].gate.set()
    tasks, output = await watched(grid, sweep_id)
    winner = tasks[4].attempt
    assert (tasks[4].exit_status, output) == (winner, pair[winner - 1].output)
    assert sorted(map(repr, outcomes(grid, task))) == sorted(map(repr, (Exited(winner), Superseded(winner))))
    assert grid.job(sweep_id).verdict == SweepDone(4, 1)
    await nothing_is_left(grid, task)


# --- who is lost ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [Dropped("h2", "reset"), CompileFailed(1)], ids=repr)
async def test_a_speculative_attempt_without_a_result_is_recorded_and_the_original_continues(
    grid: ScriptedGrid, outcome: Outcome
) -> None:
    original = Gated("original", Exited(5))
    sweep_id, task = await with_speculative_attempt(grid, original, outcome)
    await until(lambda: outcomes(grid, task)[1], lambda: outcomes(grid, task))
    assert (grid.job(task).phase, grid.line(task).attempt, grid.line(task).node) == (Phase.RUNNING, 1, "h1")
    await another_sweep_gets_one(grid)
    assert len(grid.job(task).attempts) == 2  # and not a second speculative attempt
    original.gate.set()
    tasks, output = await watched(grid, sweep_id)
    assert (tasks[4].attempt, tasks[4].exit_status, output) == (1, 5, b"original\n")
    await nothing_is_left(grid, task)


async def test_a_speculative_attempt_continues_when_the_original_is_lost(grid: ScriptedGrid) -> None:
    speculative = Gated("speculative")
    sweep_id, task = await with_speculative_attempt(grid, Gated("original"), speculative)
    grid.node("h1").go_down()
    grid.engine.lose("h1")
    await until(lambda: outcomes(grid, task)[0], lambda: outcomes(grid, task))
    line = grid.line(task)
    assert (line.state, line.attempt, line.node, len(line.attempts)) == ("RUNNING", 2, "h2", 2)
    speculative.gate.set()
    tasks, output = await watched(grid, sweep_id)
    assert (tasks[4].attempt, output) == (2, b"speculative\n")
    assert isinstance(outcomes(grid, task)[0], HostLost)
    assert len(grid.engine.orders) == 5


async def test_a_third_attempt_starts_when_both_are_lost(grid: ScriptedGrid) -> None:
    lost = Gated("speculative", HostLost("reset"))
    sweep_id, task = await with_speculative_attempt(grid, Gated("original"), lost)
    grid.engine.coming.insert(0, after(b"third\n", Exited(0)))
    lost.gate.set()
    await until(lambda: outcomes(grid, task)[1], lambda: outcomes(grid, task))
    grid.node("h1").go_down()
    grid.engine.lose("h1")
    tasks, output = await watched(grid, sweep_id)
    assert (tasks[4].attempt, output) == (3, b"third\n")
    assert grid.job(sweep_id).verdict == SweepDone(4, 0)


# --- another master ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("winner", [1, 2])
async def test_a_new_master_resumes_both_attempts_and_takes_the_first_result(grid: ScriptedGrid, winner: int) -> None:
    pair = (Gated("original"), Gated("speculative"))
    sweep_id, task = await with_speculative_attempt(grid, *pair)
    await grid.end()
    await grid.begin()
    assert [record.number for record in grid.job(task).live] == [1, 2]
    pair[winner - 1].gate.set()
    tasks, output = await watched(grid, sweep_id)
    assert (tasks[4].attempt, output) == (winner, pair[winner - 1].output)
    assert outcomes(grid, task)[2 - winner] == Superseded(winner)
    await nothing_is_left(grid, task)
    assert len(grid.engine.orders) == 5


async def test_a_speculative_attempt_that_was_claimed_but_never_started_is_lost(grid: ScriptedGrid) -> None:
    original = Gated("original")
    grid.engine.coming[:0] = [SHORT, SHORT, SHORT, original]
    sweep_id = await grid.submit(sweep(grid, backup=False))
    task = task_id(sweep_id, 4)
    await grid.begun(task)
    assert grid.store.attempts.begin_speculative(task, "h2", 1.0)
    await grid.end()
    grid.down.clear()
    await grid.begin()
    await until(lambda: outcomes(grid, task)[1], lambda: outcomes(grid, task))
    assert grid.job(task).phase is Phase.RUNNING
    original.gate.set()
    tasks, output = await watched(grid, sweep_id)
    assert (tasks[4].attempt, output) == (1, b"original\n")


async def test_a_new_master_learns_the_runtimes_of_ended_tasks(grid: ScriptedGrid) -> None:
    original = Gated("original")
    grid.engine.coming[:0] = [SHORT, SHORT, SHORT, original]
    sweep_id = await grid.submit(sweep(grid))
    await until(lambda: len(grid.master.sweeps.read(grid.job(sweep_id)).ended) == 3)
    await grid.end()
    grid.engine.coming[:0] = [after(b"speculative\n", Exited(0))]
    grid.down.clear()
    await grid.begin()
    tasks, output = await watched(grid, sweep_id)
    assert (tasks[4].attempt, output) == (2, b"speculative\n")


# --- ending early -----------------------------------------------------------------------------------------------------


async def until_killed(stage: Stage) -> Outcome:
    await stage.signal()
    return Exited(143)


@pytest.mark.parametrize("whole", [True, False])
async def test_a_cancel_ends_both_attempts_of_a_task(grid: ScriptedGrid, whole: bool) -> None:
    sweep_id, task = await with_speculative_attempt(grid, until_killed, until_killed)
    await grid.master.cancel(Cancel((sweep_id if whole else task,), "TERM"), "ann")
    tasks, _ = await watched(grid, sweep_id)
    assert tasks[4].state == "CANCELLED"
    cancelled, superseded = sorted(outcomes(grid, task), key=lambda outcome: isinstance(outcome, Superseded))
    assert cancelled == Cancelled("TERM by ann")
    assert isinstance(superseded, Superseded)
    await nothing_is_left(grid, task)
    assert {run.rpartition(".")[2] for run, _ in grid.engine.signals} == {"1", "2"}


async def test_a_halted_sweep_ends_both_attempts(grid: ScriptedGrid) -> None:
    failing = Gated("fails", Exited(1))
    # Both late tasks get a speculative attempt, in either order.
    grid.engine.coming[:0] = [SHORT, SHORT, SHORT, failing, until_killed, HostLost("no"), until_killed]
    sweep_id = await grid.submit(sweep(grid, 5, halt=Halt("now", "fail", 1)))
    bring_h2(grid)
    await until(lambda: len(grid.engine.orders) == 7)
    failing.gate.set()
    tasks, _ = await watched(grid, sweep_id)
    assert (tasks[4].state, tasks[5].state) == ("FAILED", "CANCELLED")
    await nothing_is_left(grid, task_id(sweep_id, 5))


async def test_a_retried_task_starts_with_a_new_attempt_number(grid: ScriptedGrid) -> None:
    sweep_id, _ = await with_speculative_attempt(grid, Gated("original"), after(b"speculative\n", Exited(3)))
    await watched(grid, sweep_id)
    grid.engine.coming[:0] = [after(b"again\n", Exited(0))]
    assert await grid.master.retry([sweep_id], failed=True) == 1
    tasks, output = await watched(grid, sweep_id)
    assert (tasks[4].attempt, output) == (3, b"again\n")


async def test_a_superseded_attempt_on_a_silent_node_is_ended_when_the_node_is_back(
    grid: ScriptedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    speculative = Gated("speculative")
    sweep_id, task = await with_speculative_attempt(grid, Gated("original"), speculative)
    tries: list[str] = []
    longest: list[JobId | None] = []

    async def not_now(run: str, name: str) -> bool:
        tries.append(name)
        longest.append(grid.master.attempts.running.longest_running(sweep_id))
        if len(tries) < 3:
            raise Dropped("h1", "no answer")
        return await ScriptedEngine.signal(grid.engine, run, name)

    monkeypatch.setattr(grid.engine, "signal", not_now)
    speculative.gate.set()
    tasks, output = await watched(grid, sweep_id)
    assert (tasks[4].attempt, output) == (2, b"speculative\n")
    await nothing_is_left(grid, task)
    assert tries == ["KILL"] * 3
    assert longest == [None] * 3  # a superseded attempt does not count


# --- who gets one -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [{"backup": False}, {"at_once": 1}, {"tasks": 3}], ids=repr)
async def test_a_task_that_may_not_run_twice_gets_no_speculative_attempt(
    grid: ScriptedGrid, plan: dict[str, object]
) -> None:
    """Without --backup; with one slot for the sweep; with too few other tasks."""
    original = Gated("original")
    asked = sweep(grid, **plan)  # type: ignore[arg-type] # its own keywords
    assert asked.sweep is not None
    last = asked.sweep.tasks
    grid.engine.coming[:0] = [*[SHORT] * (last - 1), original]
    sweep_id = await grid.submit(asked)
    await until(lambda: len(grid.engine.orders) == last)
    await another_sweep_gets_one(grid)
    assert len(grid.job(task_id(sweep_id, last)).attempts) == 1
    original.gate.set()
    assert (await watched(grid, sweep_id))[0][last].attempt == 1


async def test_a_user_at_the_limit_of_running_jobs_gets_no_speculative_attempt(grid: ScriptedGrid) -> None:
    await grid.master.accounts.answer(AddUser("ann"))
    await grid.master.accounts.answer(SetCaps("ann", Caps(running=1)))
    original = Gated("original")
    grid.engine.coming[:0] = [SHORT, SHORT, SHORT, original]
    sweep_id = await grid.submit(sweep(grid))
    await until(lambda: len(grid.engine.orders) == 4)
    await another_sweep_gets_one(grid)
    assert len(grid.job(task_id(sweep_id, 4)).attempts) == 1
    original.gate.set()
    await watched(grid, sweep_id)


async def test_a_speculative_attempt_counts_as_a_slot_of_its_user(grid: ScriptedGrid) -> None:
    original, speculative = Gated("original"), Gated("speculative")
    sweep_id, _ = await with_speculative_attempt(grid, original, speculative)
    assert grid.active_jobs.slots_in_use().by_owner().get("ann", 0) == 2
    assert sorted(grid.active_jobs.slots_in_use().nodes_of("ann")) == ["h1", "h2"]
    progress = grid.master.job_queries.progress(sweep_id)
    assert (progress.ended, progress.running, progress.waiting, progress.speculative) == (3, 1, 0, 1)
    speculative.gate.set()
    await watched(grid, sweep_id)
    assert grid.active_jobs.slots_in_use().by_owner().get("ann", 0) == 0


async def test_a_drained_node_gets_no_speculative_attempt_and_its_tasks_can_have_one_elsewhere(tmp_path: Path) -> None:
    drained = Node("h2", host="127.0.0.1", slots=4, drained=True)
    grid = await ScriptedGrid(tmp_path, inventory("h1", drained, Node("h3", host="127.0.0.1", slots=1))).begin()
    original = Gated("original")
    grid.engine.coming[:0] = [SHORT, SHORT, SHORT, original, after(b"speculative\n", Exited(0))]
    sweep_id = await grid.submit(sweep(grid))
    await grid.begun(task_id(sweep_id, 4))
    here = grid.node("h1")
    here.config = msgspec.structs.replace(here.config, drained=True)
    tasks, _ = await watched(grid, sweep_id)
    assert (tasks[4].attempt, tasks[4].node) == (2, "h3")
    await grid.end()
    await grid.engine.close()


@pytest.mark.parametrize("wish", [OnHostLoss.FENCE, OnHostLoss.FAIL, OnHostLoss.WAIT])
async def test_backup_and_on_host_loss_that_allows_one_run_exclude_each_other(
    grid: ScriptedGrid, wish: OnHostLoss
) -> None:
    with pytest.raises(UsageError, match=f"--on-host-loss {wish}"):
        await grid.submit(msgspec.structs.replace(sweep(grid), on_host_loss=wish))


# --- in batches -------------------------------------------------------------------------------------------------------


async def stuck_in_a_batch(grid: ScriptedGrid) -> tuple[JobId, JobId]:
    """A sweep of 71 tasks, of which the 61st hangs on h1 with other tasks behind it in its batch."""
    grid.engine.coming[:0] = [*[SHORT] * 60, Gated("stuck")]
    sweep_id = await grid.submit(sweep(grid, 71, batches=True))
    await until(lambda: len(grid.engine.orders) == 61, lambda: len(grid.engine.orders))
    stuck = grid.engine.orders[60]
    batches = grid.engine.batches.runs
    await until(lambda: any(stuck.run in runs[:-1] for runs in batches.values()), lambda: (stuck.run, batches))
    return sweep_id, stuck.attempt.job


async def test_a_late_task_of_a_batch_gets_a_speculative_attempt_and_the_rest_continues(
    small: ScriptedGrid, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sweep_id, stuck = await stuck_in_a_batch(small)
    small.node("h2").come_up()
    tasks, output = await watched(small, sweep_id)
    assert sorted(tasks) == list(range(1, 72))
    assert small.job(sweep_id).verdict == SweepDone(71, 0)
    assert (outcomes(small, stuck), output) == ([Superseded(2), Exited(0)], b"")
    await until(lambda: not [node.name for node in small.pool.nodes.values() if node.slots.running])
    assert DROPPED not in caplog.text


async def test_a_new_master_ends_a_superseded_task_of_a_batch_that_continues(small: ScriptedGrid) -> None:
    sweep_id, stuck = await stuck_in_a_batch(small)
    await small.end()
    with Store.open(small.folder / "queue.db") as store:
        claimed = store.attempts.begin_speculative(stuck, "h2", 1.0)
        assert claimed is not None
        job = store.jobs.get(stuck)
        record = msgspec.structs.replace(job.attempts[1], outcome=Exited(0), ended=2.0)
        won = retry.settle(job, job.attempts[1], Exited(0), RetryPolicy(), 2.0, Random(1))
        assert store.attempts.settle(claimed, record, won)
    await small.begin()
    tasks, output = await watched(small, sweep_id)
    assert sorted(tasks) == list(range(1, 72))
    assert (tasks[task_number(stuck)].attempt, output) == (2, b"")
    assert small.engine.signals == [(run_name(small.store.grid, Attempt(stuck, 1, "h1")), "KILL")]
    await until(lambda: not [node.name for node in small.pool.nodes.values() if node.slots.running])
