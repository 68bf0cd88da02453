"""Sweeps on a real master with scripted nodes: which tasks run, what their ends mean, and what a new master resumes."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from sshgrid.engines import AttemptResult, BatchSink
from sshgrid.engines.launch import BatchSpec
from sshgrid.errors import NeverBegan, NodeUnfit, NotAllowed, StoreError, UsageError
from sshgrid.model import (
    Cancelled,
    CompileFailed,
    Exited,
    Halt,
    HostLost,
    JobId,
    Limits,
    Node,
    Phase,
    RetryPolicy,
    SourceFile,
    Submission,
    Sweep,
    SweepDone,
    job_text,
    task_id,
)
from sshgrid.protocol.messages import Cancel, Ended, Logs
from sshgrid.protocol.sweep_messages import SweepProgress, TaskEnded, TaskLine, TaskOutput, WatchSweep
from sshgrid.sweeps import chunking, estimates, inputs, parameters
from sshgrid.sweeps.parameters import Axis, Table
from sshgrid.testing.engine import Stage
from sshgrid.testing.grid import ScriptedGrid, inventory, until

DROPPED = "late result dropped"  # in the log, when an attempt that is no longer live settles

pytestmark = pytest.mark.usefixtures("quiet_log")


@pytest.fixture
async def grid(tmp_path: Path) -> AsyncIterator[ScriptedGrid]:
    grid = ScriptedGrid(tmp_path, inventory("h1", "h2"))
    grid.engine.plays(*[_prints_its_arguments] * 1000)
    await grid.begin()
    yield grid
    await grid.end()


async def _prints_its_arguments(stage: Stage) -> Exited:
    """Prints its arguments, and exits with the number in the first argument when that is like f3."""
    await stage.say(b" ".join(stage.args) + b"\n")
    word = stage.args[0] if stage.args else b""
    return Exited(int(word[1:])) if word.startswith(b"f") else Exited(0)


async def _until_killed(stage: Stage) -> Exited:
    await stage.signal()
    return Exited(143)


def sweep(grid: ScriptedGrid, *values: str, args: Sequence[bytes] = (), **plan: object) -> Submission:
    rows = tuple((value.encode(),) for value in values)
    packed = parameters.encode(Table((Axis(("x",), rows),)))
    table = SourceFile("parameters", grid.spool.blobs.keep(packed), len(packed))
    return grid.submission(args=tuple(args), sweep=msgspec.structs.replace(Sweep(table, len(values)), **plan))


def alone(sweep: Submission) -> Submission:
    """The sweep with a limit of processes: its tasks share no start."""
    program = msgspec.structs.replace(sweep.program, limits=Limits(processes=1000))
    return msgspec.structs.replace(sweep, program=program)


async def watch(grid: ScriptedGrid, job: JobId, **wishes: object) -> tuple[list[TaskLine], bytes, Ended]:
    """The tasks in the order of the events, all of their stdout, and the last event."""
    tasks, output, ended = [], b"", None
    async with (
        asyncio.timeout(20),
        grid.master.job_queries.watch(msgspec.structs.replace(WatchSweep(job), **wishes)) as events,
    ):
        async for event, payload in events:
            match event:
                case TaskEnded(task):
                    tasks.append(task)
                case TaskOutput(stream="stdout"):
                    output += payload
                case Ended():
                    ended = event
    assert ended is not None
    return tasks, output, ended


def verdict(grid: ScriptedGrid, job: JobId) -> object:
    return grid.job(job).verdict


async def test_each_value_is_a_task_with_its_own_arguments(grid: ScriptedGrid) -> None:
    job = await grid.submit(sweep(grid, "a", "b", "c", args=(b"--x={x}", b"{#}")))
    tasks, output, ended = await watch(grid, job)
    assert sorted(task.number for task in tasks) == [1, 2, 3]
    assert sorted(output.splitlines()) == [b"--x=a 1", b"--x=b 2", b"--x=c 3"]
    assert verdict(grid, job) == SweepDone(3, 0)
    assert (ended.job.state, ended.job.exit_status) == ("COMPLETED", 0)
    assert {order.run.partition("-")[2] for order in grid.engine.orders} == {
        f"{job}_{number}.1" for number in (1, 2, 3)
    }


def with_inputs(grid: ScriptedGrid, asked: Submission, given: dict[int, bytes]) -> Submission:
    """The sweep with these inputs of its tasks."""
    plan = asked.sweep
    assert plan is not None
    kept = {task: SourceFile("stdin", grid.spool.blobs.keep(content), len(content)) for task, content in given.items()}
    packed = inputs.encode(inputs.collect(plan.tasks, kept))
    named = SourceFile("inputs", grid.spool.blobs.keep(packed), len(packed))
    return msgspec.structs.replace(asked, sweep=msgspec.structs.replace(plan, inputs=named))


async def _prints_its_input(stage: Stage) -> Exited:
    await stage.say(stage.args[0] + b":" + stage.stdin + b"\n")
    return Exited(int(stage.stdin == b"bad"))


@pytest.fixture
async def reading(tmp_path: Path) -> AsyncIterator[ScriptedGrid]:
    grid = ScriptedGrid(tmp_path, inventory("h1", "h2"))
    grid.engine.plays(*[_prints_its_input] * 1000)
    await grid.begin()
    yield grid
    await grid.end()


async def test_each_task_reads_its_own_input_alone_and_in_batches(reading: ScriptedGrid) -> None:
    grid, count = reading, 200
    given = {number: b"in %d" % (number % 7) for number in range(1, count + 1)}
    asked = with_inputs(grid, sweep(grid, *map(str, range(1, count + 1))), given)
    _, output, _ = await watch(grid, await grid.submit(asked), keep_order=True)
    assert output.splitlines() == [b"%d:in %d" % (number, number % 7) for number in range(1, count + 1)]


async def test_a_new_master_a_retry_and_the_removal_of_others_keep_the_inputs(reading: ScriptedGrid) -> None:
    grid = reading
    asked = with_inputs(grid, sweep(grid, "a", "b", at_once=1), {1: b"bad", 2: b"two"})
    other = await grid.submit(with_inputs(grid, sweep(grid, "c"), {1: b"other"}))
    await grid.wait(other)
    grid.master.pause()
    job = await grid.submit(asked)
    await grid.end()
    await grid.begin()
    await grid.wait(job)
    for path in grid.spool.blobs.directory.rglob("*"):
        os.utime(path, (1, 1))
    await grid.master.remove([other])
    assert grid.spool.blobs.missing([sha256(content).hexdigest() for content in (b"bad", b"two", b"other")]) == (
        sha256(b"other").hexdigest(),
    )
    assert await grid.master.retry([job], True) == 1
    _, output, _ = await watch(grid, job, keep_order=True)
    assert output == b"a:bad\nb:two\n"
    assert len(grid.job(task_id(job, 1)).attempts) == 2


@pytest.mark.parametrize(
    ("given", "chosen", "words"),
    [
        ({1: b"a"}, "", "has no input"),
        ({1: b"a"}, "2", "has no input"),
        ({}, "1", "has no input"),
    ],
)
async def test_a_task_without_an_input_is_refused_when_others_have_one(
    reading: ScriptedGrid, given: dict[int, bytes], chosen: str, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        await reading.submit(with_inputs(reading, sweep(reading, "a", "b", chosen=chosen), given))
    await reading.wait(await reading.submit(with_inputs(reading, sweep(reading, "a", "b", chosen="1"), {1: b"a"})))


async def test_missing_inputs_and_inputs_for_other_tasks_are_refused(reading: ScriptedGrid) -> None:
    asked = with_inputs(reading, sweep(reading, "a"), {1: b"mine"})
    reading.spool.blobs.path(sha256(b"mine").hexdigest()).unlink()
    with pytest.raises(UsageError, match="1 file of this job was not uploaded"):
        await reading.submit(asked)
    longer = with_inputs(reading, sweep(reading, "a", "b"), {1: b"x", 2: b"y"}).sweep
    assert asked.sweep is not None
    assert longer is not None
    wrong = msgspec.structs.replace(asked.sweep, inputs=longer.inputs)
    with pytest.raises(UsageError, match="for 2 tasks, but the sweep has 1 tasks"):
        await reading.submit(msgspec.structs.replace(asked, sweep=wrong))


async def test_without_a_placeholder_the_values_are_appended(grid: ScriptedGrid) -> None:
    _, output, _ = await watch(grid, await grid.submit(sweep(grid, "a b", args=(b"-v",))))
    assert output == b"-v a b\n"


@pytest.mark.parametrize(("count", "status"), [(3, 3), (100, 100), (101, 101), (130, 101)])
async def test_the_exit_status_is_the_number_of_failed_tasks(grid: ScriptedGrid, count: int, status: int) -> None:
    job = await grid.submit(sweep(grid, "ok", *(f"f{1 + number % 9}" for number in range(count))))
    _, _, ended = await watch(grid, job)
    assert verdict(grid, job) == SweepDone(count + 1, count)
    assert (ended.job.exit_status, ended.job.state) == (status, "FAILED")


async def test_no_more_tasks_run_at_once_than_requested(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [_until_killed] * 3
    job = await grid.submit(sweep(grid, *map(str, range(20)), at_once=3))
    await until(lambda: len(grid.active_jobs.in_phase(Phase.RUNNING)) == 3)
    await grid.scheduler_steps()
    assert len(grid.active_jobs.in_phase(Phase.RUNNING)) == 3
    progress = grid.master.job_queries.progress(job)
    assert (progress.tasks, progress.ended, progress.running, progress.waiting) == (20, 0, 3, 17)
    assert grid.line(job).state == "RUNNING"
    await grid.master.cancel(Cancel((job,), "KILL"))
    assert (await grid.wait(job)).state == "CANCELLED"


async def test_keep_order_reports_tasks_in_the_order_of_their_numbers(grid: ScriptedGrid) -> None:
    release = asyncio.Event()

    async def last(stage: Stage) -> Exited:
        await release.wait()
        return await _prints_its_arguments(stage)

    grid.engine.coming[:0] = [last]
    job = await grid.submit(sweep(grid, *map(str, range(1, 21))))
    await until(lambda: len(grid.master.sweeps.read(grid.job(job)).ended) == 19)
    release.set()
    tasks, output, _ = await watch(grid, job, keep_order=True)
    assert [task.number for task in tasks] == list(range(1, 21))
    assert output.split() == [b"%d" % number for number in range(1, 21)]
    tasks, _, _ = await watch(grid, job)
    assert tasks[-1].number == 1


async def test_tasks_that_a_watcher_has_are_not_sent_again(grid: ScriptedGrid) -> None:
    job = await grid.submit(sweep(grid, *map(str, range(1, 9))))
    await grid.wait(job)
    tasks, output, _ = await watch(grid, job, have="1-3,7", keep_order=True)
    assert [task.number for task in tasks] == [4, 5, 6, 8]
    assert output == b"4\n5\n6\n8\n"


async def test_only_the_chosen_tasks_run(grid: ScriptedGrid) -> None:
    job = await grid.submit(sweep(grid, *map(str, range(1, 9)), chosen="2,5-6"))
    tasks, output, _ = await watch(grid, job, keep_order=True)
    assert [task.number for task in tasks] == [2, 5, 6]
    assert output == b"2\n5\n6\n"
    assert verdict(grid, job) == SweepDone(3, 0)


async def test_halt_soon_starts_no_more_tasks(grid: ScriptedGrid) -> None:
    job = await grid.submit(sweep(grid, "f1", *["ok"] * 30, at_once=1, halt=Halt("soon", "fail", 1)))
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(31, 1, 30)


async def test_halt_now_ends_the_running_tasks(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [_until_killed, _until_killed]
    job = await grid.submit(sweep(grid, "a", "b", "f1", *["ok"] * 30, at_once=3, halt=Halt("now", "fail", 1)))
    tasks, _, ended = await watch(grid, job, keep_order=False)
    assert {task.number: task.state for task in tasks}[1] == "CANCELLED"
    assert {task.number: task.state for task in tasks}[3] == "FAILED"
    assert ended.job.exit_status is not None
    assert len(tasks) <= 5


async def test_a_task_that_a_halt_has_ended_is_not_retried(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [_until_killed] * 3
    job = await grid.submit(sweep(grid, "a", "b", "c", halt=Halt("now", count=1)))
    await until(lambda: len(grid.engine.orders) == 3)
    state = grid.master.sweeps.state(job)
    assert state is not None
    first, second, _ = grid.master.attempts.running
    # As an engine reports the ends of a batch: together.
    grid.master.attempts.settlement.settle_all(
        [(first, AttemptResult(Exited(1))), (second, AttemptResult(HostLost("its disk was full")))]
    )
    assert not state.retrying
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(3, 3)
    assert sorted(state.ended) == [1, 2, 3]
    assert grid.active_jobs.idle


async def test_a_halt_ends_hundreds_of_tasks_that_were_lost_together(tmp_path: Path) -> None:
    grid = ScriptedGrid(tmp_path, inventory(Node("h1", host="127.0.0.1", slots=250)), *[_until_killed] * 250)
    await grid.begin()
    job = await grid.submit(sweep(grid, *map(str, range(250)), halt=Halt("now", count=1)))
    await until(lambda: len(grid.engine.orders) == 250)
    first, *others = grid.master.attempts.running
    lost = [(running, AttemptResult(HostLost("its disk was full"))) for running in others]
    grid.master.attempts.settlement.settle_all([(first, AttemptResult(Exited(1))), *lost])
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(250, 250)
    await grid.end()


async def test_a_failed_compilation_ends_the_sweep_at_once(grid: ScriptedGrid) -> None:
    async def no(stage: Stage) -> CompileFailed:
        await stage.say(b"hello.c:1: error\n", "compile")
        return CompileFailed(1)

    grid.engine.coming[:0] = [no] * 40
    job = await grid.submit(sweep(grid, *map(str, range(50))))
    words = []
    async with grid.master.job_queries.watch(WatchSweep(job)) as events, asyncio.timeout(20):
        async for event, payload in events:
            if isinstance(event, TaskOutput) and event.stream == "compile":
                words.append(payload)
    assert words == [b"hello.c:1: error\n"]
    assert verdict(grid, job) == CompileFailed(1)
    assert grid.line(job).exit_status == 126
    assert len(grid.engine.orders) <= 9


async def test_a_cancelled_sweep_ends_its_tasks_and_starts_none(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [_until_killed] * 50
    job = await grid.submit(sweep(grid, *map(str, range(50))))
    await until(lambda: len(grid.engine.orders) == 8)
    assert await grid.master.cancel(Cancel((job,), "TERM"), "ann") == 1
    await grid.wait(job)
    assert verdict(grid, job) == Cancelled("TERM by ann")
    assert len(grid.engine.orders) == 8
    assert all(task.verdict == Cancelled("TERM by ann") for task in grid.store.jobs.tasks(job))


async def test_a_cancel_of_all_tasks_takes_few_commits(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [_until_killed] * 8
    job = await grid.submit(sweep(grid, *map(str, range(8))))
    await until(lambda: len(grid.engine.orders) == 8)
    statements: list[str] = []
    grid.store._file.connection.set_trace_callback(statements.append)
    await grid.master.cancel(Cancel((job,), "TERM"), "ann")
    grid.store._file.connection.set_trace_callback(None)
    assert statements.count("COMMIT") == 2  # the sweep, and its tasks
    state = grid.master.sweeps.state(job)
    assert state is not None
    assert len(state.running) == 8
    assert not state.running.not_cancelled
    await grid.wait(job)
    assert verdict(grid, job) == Cancelled("TERM by ann")


async def test_a_single_task_can_be_cancelled_and_shown(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [_until_killed]
    job = await grid.submit(sweep(grid, "a", "b"))
    task = task_id(job, 1)
    assert job_text(task) == f"{job}.1"
    await until(lambda: grid.engine.stage(task))
    await grid.master.cancel(Cancel((task,), "KILL"), "ann")
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(2, 1)
    assert grid.line(task).state == "CANCELLED"


async def test_a_task_of_a_lost_host_runs_again(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [NodeUnfit("h1", "gone")]
    job = await grid.submit(sweep(grid, "a", "b", "c"))
    tasks, output, _ = await watch(grid, job, keep_order=True)
    assert [task.attempt for task in tasks] in ([2, 1, 1], [1, 2, 1], [1, 1, 2])
    assert output == b"a\nb\nc\n"
    assert verdict(grid, job) == SweepDone(3, 0)


@pytest.mark.parametrize("count", [1, 300])
async def test_a_cancelled_sweep_cancels_tasks_that_wait_for_another_attempt(tmp_path: Path, count: int) -> None:
    never = RetryPolicy(backoff_seconds=1e6, backoff_max_seconds=1e6)
    grid = ScriptedGrid(tmp_path, inventory("h1", retry=never))
    grid.engine.plays(*[NodeUnfit("h1", "gone")] * count, _until_killed)
    await grid.begin()
    job = await grid.submit(sweep(grid, *map(str, range(count + 1))))
    state = grid.master.sweeps.state(job)
    assert state is not None
    await until(lambda: len(state.retrying) == count and len(grid.engine.orders) == count + 1)
    assert await grid.master.cancel(Cancel((job,), "KILL"), "ann") == 1
    await grid.wait(job)
    assert verdict(grid, job) == Cancelled("KILL by ann")
    assert sorted(state.ended) == list(range(1, count + 2))
    assert {task.verdict for task in grid.store.jobs.tasks(job)} == {Cancelled("KILL by ann")}
    await until(lambda: len([run for run in grid.engine.discarded if run in grid.engine.batches.runs]) == count + 1)
    await grid.end()


async def test_tasks_that_back_off_do_not_delay_other_tasks(tmp_path: Path) -> None:
    grid = ScriptedGrid(tmp_path, inventory("h1", retry=RetryPolicy(backoff_seconds=1e6, backoff_max_seconds=1e6)))
    grid.engine.plays(*[NodeUnfit("h1", "gone")] * 20)
    await grid.begin()
    job = await grid.submit(sweep(grid, *map(str, range(30))))
    state = grid.master.sweeps.state(job)
    assert state is not None
    await until(lambda: len(state.ended) == 10, lambda: (len(state.retrying), state.ended))
    assert len(state.retrying) == 20
    await grid.master.cancel(Cancel((job,), "KILL"), "ann")
    await grid.wait(job)
    await grid.end()


async def test_a_started_sweep_waits_until_a_node_can_run_it_again(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [_until_killed] * 8
    job = await grid.submit(sweep(grid, *map(str, range(10))))
    await until(lambda: len(grid.engine.orders) == 8)
    for name in ("h1", "h2"):
        grid.node(name).has("python")
    for stage in list(grid.engine.stages.values()):
        stage.send("TERM")
    other = await grid.submit(grid.submission(file="hello.py"))
    await grid.wait(other)
    progress = grid.master.job_queries.progress(job)
    assert (progress.ended, progress.running, progress.waiting) == (8, 0, 2)
    grid.node("h2").has("sh")
    grid.active_jobs.nodes_changed()
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(10, 8)


async def test_a_held_sweep_starts_no_task_until_it_is_released(grid: ScriptedGrid) -> None:
    grid.master.pause()
    job = await grid.submit(sweep(grid, *map(str, range(20))))
    await grid.master.hold([job], release=False)
    grid.master.scheduler.paused = False
    grid.active_jobs.wake.set()
    other = await grid.submit()
    await grid.wait(other)
    assert len(grid.engine.orders) == 1
    await grid.master.hold([job], release=True)
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(20, 0)


async def test_a_new_master_continues_a_sweep(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [_prints_its_arguments] * 5 + [_until_killed] * 8
    job = await grid.submit(alone(sweep(grid, *map(str, range(1, 41)))))
    await until(lambda: len(grid.active_jobs.in_phase(Phase.RUNNING)) == 8 and len(grid.engine.orders) == 13)
    await grid.end()
    await grid.begin()
    progress = grid.master.job_queries.progress(job)
    assert (progress.ended, progress.running, progress.waiting) == (5, 8, 27)
    for stage in list(grid.engine.stages.values()):
        stage.send("TERM")
    tasks, _, _ = await watch(grid, job)
    assert sorted(task.number for task in tasks) == list(range(1, 41))
    assert verdict(grid, job) == SweepDone(40, 8)
    begun = [order.attempt for order in grid.engine.orders]
    assert len(begun) == len(set(begun)) == 40


async def test_a_new_master_finishes_a_sweep_whose_last_task_has_ended(grid: ScriptedGrid) -> None:
    job = await grid.submit(sweep(grid, "a", "b"))
    await grid.wait(job)
    await grid.end()
    with sqlite3.connect(grid.folder / "queue.db") as queue:
        queue.execute("UPDATE job SET phase = 'queued', verdict = NULL, ended = NULL WHERE id = ?", (job,))
    queue.close()
    await grid.begin()
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(2, 0)
    assert len(grid.engine.orders) == 2


async def test_retry_runs_failed_tasks_once_more(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [Exited(1), Exited(1)]
    job = await grid.submit(sweep(grid, *map(str, range(6)), at_once=1))
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(6, 2)
    assert await grid.master.retry([job], failed=True) == 2
    tasks, _, ended = await watch(grid, job, keep_order=True)
    assert [task.attempt for task in tasks] == [2, 2, 1, 1, 1, 1]
    assert verdict(grid, job) == SweepDone(6, 0)
    assert ended.job.exit_status == 0
    assert await grid.master.retry([job], failed=True) == 0


async def test_retry_of_a_cancelled_sweep_runs_the_tasks_that_were_left(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [_until_killed] * 8
    job = await grid.submit(sweep(grid, *map(str, range(20))))
    await until(lambda: len(grid.engine.orders) == 8)
    await grid.master.cancel(Cancel((job,), "KILL"))
    await grid.wait(job)
    assert await grid.master.retry([job], failed=True) == 20
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(20, 0)


async def test_a_job_is_retried_with_a_fresh_budget(grid: ScriptedGrid) -> None:
    grid.engine.coming[:0] = [NodeUnfit("h1", "gone")] * 3
    job = await grid.submit()
    assert (await grid.wait(job)).state == "NODE_FAIL"
    grid.engine.coming[:0] = [NodeUnfit("h1", "gone")] * 2
    assert await grid.master.retry([job], failed=True) == 1
    line = await grid.wait(job)
    assert (line.state, line.attempt) == ("COMPLETED", 6)


async def test_progress_counts_every_task_once(grid: ScriptedGrid) -> None:
    job = await grid.submit(sweep(grid, *map(str, range(200))))
    async with grid.master.job_queries.watch(WatchSweep(job, output=False)) as events, asyncio.timeout(20):
        async for event, _ in events:
            if isinstance(event, SweepProgress):
                assert event.tasks == event.ended + event.running + event.waiting + event.left == 200
    final = grid.master.job_queries.progress(job)
    assert (final.ended, final.failed, final.running, final.waiting) == (200, 0, 0, 0)


async def test_removing_a_sweep_removes_its_tasks_and_outputs(
    grid: ScriptedGrid, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    job = await grid.submit(sweep(grid, "a", "b"))
    await grid.wait(job)
    assert (grid.folder / "spool" / "out" / str(job)).exists()
    await grid.master.remove([job])
    assert grid.store.jobs.tasks(job) == []
    assert not (grid.folder / "spool" / "out" / str(job)).exists()
    assert DROPPED not in caplog.text


@pytest.mark.parametrize(
    ("values", "plan", "args", "words"),
    [
        (("a",), {"tasks": 2}, (), "has 2 tasks"),
        (("a", "b"), {"at_once": 0}, (), "at least one task at a time"),
        (("a", "b"), {}, (b"{y}",), "y"),
        (("a", "b"), {"chosen": "3"}, (), "3"),
    ],
)
async def test_an_invalid_sweep_is_a_usage_error(
    grid: ScriptedGrid, values: tuple[str, ...], plan: dict[str, object], args: tuple[bytes, ...], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        await grid.submit(sweep(grid, *values, args=args, **plan))


async def test_a_task_alone_cannot_be_removed(grid: ScriptedGrid) -> None:
    job = await grid.submit(sweep(grid, "a", "b"))
    await grid.wait(job)
    with pytest.raises(NotAllowed, match=f"{job}.1 is a task, and is removed with its sweep"):
        await grid.master.remove([task_id(job, 1)])
    assert len(grid.store.jobs.tasks(job)) == 2


# --- many with one start ----------------------------------------------------------------------------------------------


async def test_short_tasks_share_a_start(grid: ScriptedGrid) -> None:
    job = await grid.submit(sweep(grid, *map(str, range(1, 501))))
    tasks, output, _ = await watch(grid, job, keep_order=True)
    assert [task.number for task in tasks] == list(range(1, 501))
    assert output.split() == [b"%d" % number for number in range(1, 501)]
    assert verdict(grid, job) == SweepDone(500, 0)
    assert len(grid.engine.orders) == 500
    assert max(map(len, grid.engine.batches.runs.values())) > 10
    in_batches = [run for batch in grid.engine.batches.runs.values() for run in batch]
    assert len(in_batches) == len(set(in_batches)) > 400
    await until(lambda: {order.run for order in grid.engine.orders} <= set(grid.engine.discarded))


async def test_tasks_with_a_process_limit_do_not_share_a_start(grid: ScriptedGrid) -> None:
    await grid.wait(await grid.submit(alone(sweep(grid, *map(str, range(50))))))
    assert len(grid.engine.orders) == 50
    assert grid.engine.batches.runs == {}


async def test_long_tasks_do_not_share_a_start(grid: ScriptedGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "LONG_SECONDS", estimates.SHORTEST_SECONDS / 2)
    await grid.wait(await grid.submit(sweep(grid, *map(str, range(50)))))
    assert len(grid.engine.orders) == 50
    # The first few started as batches of one: their runtime was not known.
    assert max(map(len, grid.engine.batches.runs.values())) == 1
    assert len(grid.engine.batches.runs) <= 8


async def in_a_batch(grid: ScriptedGrid) -> tuple[JobId, list[str]]:
    """A sweep of 200 tasks, of which one hangs in the middle of a batch; and the runs of that batch."""
    grid.engine.coming[:0] = [_prints_its_arguments] * 60 + [_until_killed]
    job = await grid.submit(sweep(grid, *map(str, range(1, 201)), at_once=1))
    await until(lambda: len(grid.engine.orders) == 61)
    run = grid.engine.orders[-1].run
    batch = next(batch for batch in grid.engine.batches.runs.values() if run in batch)
    assert len(batch) > 2
    return job, batch


async def test_a_watcher_of_a_task_in_a_batch_gets_output_while_it_runs(grid: ScriptedGrid) -> None:
    follows, received = asyncio.Event(), asyncio.Event()

    async def speaks_and_waits(stage: Stage) -> Exited:
        await follows.wait()
        await stage.say(b"so far\n")
        await received.wait()
        return Exited(0)

    grid.engine.coming[:0] = [_prints_its_arguments] * 60 + [speaks_and_waits]
    job = await grid.submit(sweep(grid, *map(str, range(1, 201)), at_once=1))
    await until(lambda: len(grid.engine.orders) == 61)
    task = grid.engine.orders[-1]
    assert any(len(batch) > 2 and task.run in batch for batch in grid.engine.batches.runs.values())
    async with asyncio.timeout(10), grid.master.job_queries.watch(Logs(task.attempt.job, follow=True)) as events:
        first = asyncio.create_task(anext(events))
        await grid.scheduler_steps()
        assert not first.done()  # it waits for output
        follows.set()
        _, piece = await first
        assert piece == b"so far\n"
        received.set()
        assert [piece async for _, piece in events if piece] == []
    await grid.wait(job)


async def test_a_new_master_continues_a_batch(grid: ScriptedGrid) -> None:
    job, batch = await in_a_batch(grid)
    await grid.end()
    grid.engine.batches.runs.clear()
    await grid.begin()
    await until(lambda: any(set(rest) <= set(batch) for rest in grid.engine.batches.runs.values()))
    for stage in list(grid.engine.stages.values()):
        stage.send("TERM")
    tasks, _, _ = await watch(grid, job)
    assert sorted(task.number for task in tasks) == list(range(1, 201))
    assert [task.number for task in tasks if task.exit_status] == [61]


async def test_the_rest_of_a_batch_on_a_lost_host_runs_elsewhere(grid: ScriptedGrid) -> None:
    job, _ = await in_a_batch(grid)
    lost = grid.engine.ran_on[-1]
    grid.node(lost).go_down()
    grid.engine.lose(lost)
    tasks, output, _ = await watch(grid, job, keep_order=True)
    assert output.split() == [b"%d" % number for number in range(1, 201)]
    assert verdict(grid, job) == SweepDone(200, 0)
    assert {task.attempt for task in tasks} == {1, 2}
    assert all(task.attempt == 1 for task in tasks[:60])


async def test_a_cancelled_sweep_ends_its_batch(grid: ScriptedGrid) -> None:
    job, batch = await in_a_batch(grid)
    await grid.master.cancel(Cancel((job,), "KILL"), "ann")
    await grid.wait(job)
    assert verdict(grid, job) == Cancelled("KILL by ann")
    assert len(grid.engine.orders) == 61
    ended = {task.verdict for task in grid.store.jobs.tasks(job)[60:]}
    assert ended == {Cancelled("KILL by ann")}
    await until(lambda: set(batch) <= set(grid.engine.discarded))


async def test_the_folder_of_a_batch_that_never_started_is_kept_against_a_late_start(
    grid: ScriptedGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[BatchSpec] = []
    run_batch = grid.engine.batches.run

    async def run(batch: BatchSpec, sink: BatchSink, *, resume: bool = False) -> None:
        if not lost:
            lost.append(batch)
            raise NeverBegan(batch.attempt.node, "the run is not there")
        await run_batch(batch, sink, resume=resume)

    monkeypatch.setattr(grid.engine.batches, "run", run)
    job = await grid.submit(sweep(grid, *map(str, range(100))))
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(100, 0)
    (batch,) = lost
    assert batch.run in grid.node(batch.attempt.node).cleanup.claims
    assert batch.run not in grid.engine.discarded


async def test_a_batch_is_one_slot_of_its_owner(grid: ScriptedGrid) -> None:
    job, _ = await in_a_batch(grid)
    assert grid.active_jobs.slots_in_use().by_owner().get("ann", 0) == 1
    progress = grid.master.job_queries.progress(job)
    assert (progress.ended, progress.running, progress.waiting) == (60, 1, 139)
    await until(lambda: grid.master.job_queries.progress(job).slowest is not None)  # once its program runs
    slowest = grid.master.job_queries.progress(job).slowest
    assert slowest is not None
    assert slowest.number == 61
    await grid.run()
    await grid.master.cancel(Cancel((job,), "KILL"))
    await grid.wait(job)


@pytest.mark.parametrize("lost", [0, 1])
async def test_a_sweep_with_lost_parameters_ends_and_other_jobs_run(grid: ScriptedGrid, lost: int) -> None:
    count = 20
    given = dict.fromkeys(range(1, count + 1), b"x")
    asked = with_inputs(grid, sweep(grid, *map(str, range(count)), at_once=1), given)
    assert asked.sweep is not None
    table = asked.sweep.uploads[lost].sha256
    grid.master.pause()
    job = await grid.submit(asked)
    await grid.end()
    grid.spool.blobs.path(table).unlink()
    await grid.begin()
    assert (await grid.wait(job)).reason == "its parameters or inputs are no longer in the spool beside the queue"
    assert (await grid.run()).state == "COMPLETED"


async def test_a_master_whose_memory_differs_from_the_queue_stops_and_the_next_one_continues(
    grid: ScriptedGrid, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: JobId) -> None:
        raise RuntimeError("a bug of ours")

    grid.engine.coming[:0] = [_until_killed]
    job = await grid.submit(sweep(grid, "a", "b", at_once=1))
    await until(lambda: bool(grid.engine.stages))
    monkeypatch.setattr(grid.active_jobs.notifications, "notify", fails)
    next(iter(grid.engine.stages.values())).send("TERM")
    with pytest.raises(StoreError, match="differ from the queue"):
        await grid.working
    assert "a bug of ours" in caplog.text
    caplog.clear()
    await grid.end()
    await grid.begin()
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(2, 1)
