"""What the master promises about a job: where it runs, how often, how it ends, and which submissions are refused."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from sshgrid.errors import Dropped, NoNodeLeft, NoSuchJob, UnknownLanguage, UsageError
from sshgrid.model import (
    CompileFailed,
    Exited,
    Group,
    JobId,
    Limits,
    Node,
    OnHostLoss,
    Outcome,
    OutOfMemory,
    OutputLimit,
    Phase,
    SourceFile,
    Step,
    TimedOut,
    ToolchainBroken,
)
from sshgrid.protocol.messages import Cancel, Explain, Jobs, Nodes, Toolchains
from sshgrid.scheduler import scheduler, waiting_jobs
from sshgrid.testing import Stage, after, until, until_killed
from tests.service.conftest import Grids

pytestmark = pytest.mark.usefixtures("quiet_log")


async def loses_its_host(stage: Stage) -> Outcome:
    await stage.enter(Step.RUNNING)
    raise Dropped(stage.node, "reset")


# --- how a job ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "state", "status"),
    [
        (Exited(0), "COMPLETED", 0),
        (Exited(3), "FAILED", 3),
        (Exited(255), "FAILED", 255),
        (CompileFailed(1), "COMPILE_ERROR", 126),
        (TimedOut(2.0), "TIMEOUT", 124),
        (OutOfMemory(1 << 20), "OUT_OF_MEMORY", 137),
        (OutputLimit(1 << 20), "FAILED", 153),
    ],
)
async def test_an_exit_of_the_program_is_final_after_one_attempt(
    grids: Grids, outcome: Outcome, state: str, status: int
) -> None:
    grid = await grids(outcome)
    line = await grid.run()
    assert (line.state, line.exit_status, grid.engine.ran_on) == (state, status, ["n1"])


async def test_a_job_moves_to_another_node_when_its_host_drops(grids: Grids) -> None:
    grid = await grids(Dropped("n1", "reset"), Exited(0))
    line = await grid.run()
    assert (line.state, line.exit_status) == ("COMPLETED", 0)
    assert [attempt.node for attempt in line.attempts] == grid.engine.ran_on == ["n1", "n2"]
    assert line.attempts[0].outcome == "host-lost: reset"


async def test_used_up_retries_exit_with_125_and_list_the_outcome_of_each_attempt(grids: Grids) -> None:
    grid = await grids(Dropped("", "reset"), Dropped("", "no answer for 10 s"), Dropped("", "disk full"))
    line = await grid.run()
    assert (line.state, line.exit_status, grid.engine.ran_on) == ("NODE_FAIL", 125, ["n1", "n2", "n3"])
    for words in ("attempt 1 on n1: reset", "attempt 2 on n2: no answer for 10 s", "attempt 3 on n3: disk full"):
        assert words in line.reason


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2), (4, 5)])
async def test_retries_counts_further_attempts(grids: Grids, retries: int, attempts: int) -> None:
    grid = await grids(*[Dropped("", "reset")] * 9)
    line = await grid.run(grid.submission(retries=retries))
    assert (line.exit_status, len(grid.engine.ran_on), line.attempts_allowed) == (125, attempts, attempts)


async def test_a_job_with_on_host_loss_fail_is_not_retried(grids: Grids) -> None:
    grid = await grids(Dropped("n1", "reset"))
    line = await grid.run(grid.submission(on_host_loss=OnHostLoss.FAIL))
    assert (line.exit_status, grid.engine.ran_on) == (125, ["n1"])


async def test_a_job_is_retried_on_the_only_node(grids: Grids) -> None:
    grid = await grids(Dropped("n1", "reset"), Exited(0), nodes=("n1",))
    line = await grid.run()
    assert (line.exit_status, grid.engine.ran_on) == (0, ["n1", "n1"])


async def test_a_broken_toolchain_is_retried_once_on_another_node(grids: Grids) -> None:
    grid = await grids(*[ToolchainBroken("gcc crashed")] * 3)
    line = await grid.run()
    assert (line.state, line.exit_status, grid.engine.ran_on) == ("NODE_FAIL", 125, ["n1", "n2"])
    assert "gcc crashed" in line.reason


async def test_a_broken_toolchain_does_not_count_as_a_retry(grids: Grids) -> None:
    grid = await grids(ToolchainBroken("gcc crashed"), Dropped("", "reset"), Exited(4))
    line = await grid.run(grid.submission(retries=1))
    assert (line.exit_status, grid.engine.ran_on) == (4, ["n1", "n2", "n3"])


async def test_F38_a_job_that_loses_three_nodes_while_it_runs_is_held(grids: Grids) -> None:
    grid = await grids(*[loses_its_host] * 3, nodes=("n1", "n2", "n3", "n4"))
    job = await grid.submit(grid.submission(retries=9))
    await until(lambda: grid.job(job).held, lambda: grid.job(job))
    line = grid.line(job)
    assert (line.state, len(grid.engine.ran_on)) == ("PENDING", 3)
    assert "lost 3 nodes while running" in line.reason


async def test_an_internal_error_ends_the_job_and_is_logged(grids: Grids, caplog: pytest.LogCaptureFixture) -> None:
    async def bug(_: Stage) -> Outcome:
        raise NotImplementedError

    grid = await grids()

    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("our bug")

    grid.engine.run = broken  # type: ignore[method-assign, assignment]
    line = await grid.run()
    assert (line.state, line.exit_status) == ("FAILED", 125)
    assert "a bug in sshgrid: ZeroDivisionError: our bug" in line.reason
    assert "Traceback" in caplog.text
    caplog.clear()


# --- no node is up ----------------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_jobs, "ALL_DOWN_SECONDS", 0.02)


@pytest.mark.usefixtures("impatient")
async def test_an_attached_job_fails_when_no_node_is_up(grids: Grids) -> None:
    grid = await grids(nodes=("n1", "n2"), down=("n1", "n2"))
    line = await grid.run()
    assert (line.exit_status, grid.engine.ran_on) == (125, [])
    assert "no node that can take the job is up" in line.reason
    assert "n2: no route to host" in line.reason


@pytest.mark.usefixtures("impatient")
async def test_a_detached_job_waits_for_its_nodes(grids: Grids) -> None:
    grid = await grids(nodes=("n1",), down=("n1",))
    waiting = await grid.submit(grid.submission(wait_for_nodes=True))
    assert (await grid.run(grid.submission(file="other.py"))).exit_status == 125
    assert (grid.line(waiting).state, grid.line(waiting).reason) == ("PENDING", "NodeDown")
    grid.node("n1").come_up()
    assert (await grid.wait(waiting)).exit_status == 0


@pytest.mark.usefixtures("impatient")
async def test_an_attached_job_fails_while_an_equal_detached_one_waits(grids: Grids) -> None:
    grid = await grids(nodes=("n1",), down=("n1",))
    detached = await grid.submit(grid.submission(wait_for_nodes=True))
    assert (await grid.run()).exit_status == 125
    assert grid.line(detached).state == "PENDING"


@pytest.mark.usefixtures("impatient")
async def test_a_job_waits_when_one_node_is_down_and_the_others_are_full(grids: Grids) -> None:
    grid = await grids(until_killed, nodes=(Node("n1", slots=1), "n2"), down=("n2",))
    first = await grid.submit()
    await grid.begun(first)
    second = await grid.submit()
    await until(lambda: grid.line(second).reason == "Resources", lambda: grid.line(second))
    await grid.master.cancel(Cancel((first,)))
    assert (await grid.wait(second)).exit_status == 0


# --- submissions that no node can ever run ----------------------------------------------------------------------------


async def test_a_language_that_no_node_has_exits_with_127(grids: Grids) -> None:
    grid = await grids(nodes=("n1",))
    await until(lambda: grid.node("n1").up)
    grid.node("n1").has("c")
    with pytest.raises(UnknownLanguage, match="no node has a working toolchain for python") as refused:
        await grid.submit(grid.submission(file="a.py"))
    assert refused.value.exit_status == 127
    assert grid.store.jobs.ids() == []


async def test_a_file_of_an_unknown_language_exits_with_127(grids: Grids) -> None:
    grid = await grids()
    with pytest.raises(UnknownLanguage):
        await grid.submit(grid.submission(file="a.unheard"))


@pytest.mark.parametrize("wish", [{"on": "n9"}, {"on": "@fast"}, {"limits": Limits(memory_bytes=1 << 60)}])
async def test_a_job_that_no_node_matches_exits_with_125(grids: Grids, wish: dict[str, Any]) -> None:
    grid = await grids()
    await until(lambda: all(node.facts for node in grid.pool.nodes.values()))
    with pytest.raises(NoNodeLeft) as refused:
        await grid.submit(grid.submission(**wish))
    assert refused.value.exit_status == 125


async def test_a_job_exits_with_125_when_its_last_possible_node_is_removed(grids: Grids) -> None:
    grid = await grids(nodes=("n1", Node("n2", slots=4, tags=frozenset({"fast"}))), down=("n2",))
    job = await grid.submit(grid.submission(on="@fast", wait_for_nodes=True))
    await grid.reaches(job, "PENDING")
    await grid.master.use_inventory(msgspec.structs.replace(grid.inventory, nodes=grid.inventory.nodes[:1]))
    assert (await grid.wait(job)).exit_status == 125


FILE = SourceFile("hello.sh", "0" * 64, 1)


@pytest.mark.parametrize(
    "wish",
    [
        {"language": "sh", "entry": "other.sh"},
        {"language": "sh", "entry": "../hello.sh"},
        {"language": "sh", "files": ()},
        {"files": (FILE,)},
        {"files": (SourceFile("hello.sh", "../../etc/passwd", 1),)},
        {"language": "sh", "args": (b"a\0b",)},
        {"language": "sh", "flags": ("-DA=\0",)},
        {"env": (("A;touch /tmp/pwned;B", b"1"),)},
        {"env": (("", b"1"),)},
        {"env": (("A", b"1\0"),)},
        {"limits": Limits(wall_seconds=-1.0)},
        {"limits": Limits(wall_seconds=1e308)},
        {"limits": Limits(memory_bytes=0)},
        {"limits": Limits(output_bytes=-5)},
        {"retries": -1},
        {"priority": 1 << 70},
        {"on": "node[01-"},
        {"on": ",,"},
        {"version": "nonsense"},
    ],
    ids=str,
)
async def test_A9_A10_an_invalid_submission_is_refused_and_leaves_no_job(grids: Grids, wish: dict[str, Any]) -> None:
    grid = await grids()
    with pytest.raises((UsageError, NoNodeLeft)):
        await grid.submit(grid.submission(**wish))
    assert grid.store.jobs.ids() == []


async def test_an_empty_or_long_key_is_refused(grids: Grids) -> None:
    grid = await grids()
    for key in ("", "k" * 1000):
        with pytest.raises(UsageError):
            await grid.master.submit(grid.submission(), key)


# --- one key, one job -------------------------------------------------------------------------------------------------


async def test_the_same_submission_sent_twice_is_one_job(grids: Grids) -> None:
    grid = await grids(until_killed)
    first = await grid.submit(key="k")
    assert await grid.submit(key="k") == first
    await grid.begun(first)
    assert await grid.submit(key="k") == first
    assert grid.store.jobs.ids() == [first]


async def test_the_same_submission_sent_by_many_at_once_is_one_job(grids: Grids) -> None:
    grid = await grids()
    jobs = await asyncio.gather(*(grid.submit(key="k") for _ in range(20)))
    assert set(jobs) == set(grid.store.jobs.ids()) == {jobs[0]}
    await grid.wait(jobs[0])
    assert grid.engine.ran_on == ["n1"]


async def test_the_same_key_of_two_owners_is_two_jobs(grids: Grids) -> None:
    grid = await grids()
    assert await grid.submit(key="k", owner="ann") != await grid.submit(key="k", owner="bob")


async def test_the_same_submission_after_a_restart_is_the_same_job(grids: Grids) -> None:
    grid = await grids()
    job = await grid.submit(key="k")
    await grid.wait(job)
    await grid.end()
    again = await grids()
    assert await again.submit(key="k") == job
    assert (await again.wait(job)).exit_status == 0
    assert (grid.engine.ran_on, again.engine.ran_on) == (["n1"], [])


async def test_a_repeated_submission_is_the_same_job_when_no_node_can_take_it_now(grids: Grids) -> None:
    grid = await grids(nodes=("n1",))
    asked = grid.submission(on="n1")
    job = await grid.submit(asked, key="k")
    await grid.wait(job)
    await grid.master.use_inventory(msgspec.structs.replace(grid.inventory, nodes=(Node("n2", slots=1),)))
    assert await grid.submit(asked, key="k") == job


# --- the order of starts ----------------------------------------------------------------------------------------------


async def test_many_jobs_of_one_user_delay_a_job_of_another_by_one_slot(grids: Grids) -> None:
    grid = await grids(until_killed, nodes=(Node("n1", slots=1),))
    blocker = await grid.submit(owner="ann")
    await grid.begun(blocker)
    many = [await grid.submit(owner="ann") for _ in range(5)]
    single = await grid.submit(owner="bob")
    await grid.master.cancel(Cancel((blocker,)))
    await asyncio.gather(*(grid.wait(job) for job in (*many, single)))
    order = [stage.attempt.job for stage in grid.engine.orders]
    assert order.index(single) <= 2, order
    assert [job for job in order if job in many] == many


async def test_priority_goes_before_age(grids: Grids) -> None:
    grid = await grids(until_killed, nodes=(Node("n1", slots=1),))
    blocker = await grid.submit()
    await grid.begun(blocker)
    low, high = await grid.submit(grid.submission(priority=-1)), await grid.submit(grid.submission(priority=5))
    await grid.master.cancel(Cancel((blocker,)))
    await asyncio.gather(grid.wait(low), grid.wait(high))
    assert [order.attempt.job for order in grid.engine.orders] == [blocker, high, low]


async def test_a_node_runs_at_most_as_many_jobs_as_it_has_slots(grids: Grids) -> None:
    at_once: list[int] = []
    running = 0
    three = asyncio.Barrier(3)  # each run ends when three have started

    async def count(stage: Stage) -> Outcome:
        nonlocal running
        running += 1
        at_once.append(running)
        await three.wait()
        running -= 1
        return Exited(0)

    grid = await grids(*[count] * 12, nodes=(Node("n1", slots=3),))
    jobs = [await grid.submit() for _ in range(12)]
    await asyncio.gather(*(grid.wait(job) for job in jobs))
    assert max(at_once) == 3


# --- hold, release, remove --------------------------------------------------------------------------------------------


async def test_a_held_job_waits_until_it_is_released(grids: Grids) -> None:
    grid = await grids(until_killed, nodes=(Node("n1", slots=1),))
    first = await grid.submit()
    await grid.begun(first)
    held, free = await grid.submit(), await grid.submit()
    assert await grid.master.hold([held], release=False) == 1
    await grid.master.cancel(Cancel((first,)))
    await grid.wait(free)
    assert (grid.line(held).state, grid.line(held).reason) == ("PENDING", "HeldByUser")
    await grid.master.hold([held], release=True)
    assert (await grid.wait(held)).exit_status == 0


async def test_a_held_job_is_still_held_by_the_next_master(grids: Grids) -> None:
    grid = await grids(down=("n1", "n2", "n3"))
    job = await grid.submit(grid.submission(wait_for_nodes=True))
    await grid.master.hold([job], release=False)
    await grid.end()
    again = await grids()
    other = await again.submit(key="other")
    assert (await again.wait(other)).exit_status == 0
    assert again.line(job).reason == "HeldByUser"


async def test_a_held_job_can_be_cancelled(grids: Grids) -> None:
    grid = await grids(down=("n1", "n2", "n3"))
    job = await grid.submit(grid.submission(wait_for_nodes=True))
    await grid.master.hold([job], release=False)
    assert await grid.master.cancel(Cancel((job,))) == 1
    assert (await grid.wait(job)).state == "CANCELLED"


async def test_a_running_job_that_was_held_keeps_the_master_from_being_idle(grids: Grids) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    await grid.begun(job)
    await grid.master.hold([job], release=False)
    assert not grid.active_jobs.idle


async def test_a_removed_job_is_gone_with_its_output(grids: Grids) -> None:
    grid = await grids(after(b"words\n", Exited(0)), until_killed)
    done = await grid.submit()
    await grid.wait(done)
    running = await grid.submit()
    await grid.begun(running)
    assert grid.kept(done) == b"words\n"
    with pytest.raises(UsageError, match="only finished jobs"):
        await grid.master.remove([running])
    assert await grid.master.remove([done]) == 1
    assert (grid.spool.outputs.jobs(), grid.store.jobs.ids()) == ([], [running]) or grid.spool.outputs.jobs() == [
        running
    ]
    with pytest.raises(NoSuchJob):
        await grid.watch(done)
    with pytest.raises(NoSuchJob):
        await grid.master.remove([done])


# --- the inventory changes --------------------------------------------------------------------------------------------


async def test_a_new_node_gets_the_jobs_that_wait(grids: Grids) -> None:
    grid = await grids(until_killed, nodes=(Node("n1", slots=1),))
    first = await grid.submit()
    await grid.begun(first)
    second = await grid.submit()
    await grid.master.use_inventory(
        msgspec.structs.replace(grid.inventory, nodes=(*grid.inventory.nodes, Node("n2", slots=1)))
    )
    assert (await grid.wait(second)).node == "n2"


async def test_a_removed_node_gets_no_new_job_and_finishes_its_run(grids: Grids) -> None:
    grid = await grids(until_killed, nodes=("n1", "n2"))
    job = await grid.submit()
    await grid.begun(job)
    await grid.master.use_inventory(msgspec.structs.replace(grid.inventory, nodes=grid.inventory.nodes[1:]))
    assert {line.name: line.state for line in grid.master.node_queries.select(Nodes())} == {
        "n1": "DRAINING",
        "n2": "IDLE",
    }
    assert (await grid.run()).node == "n2"
    await grid.master.drop_removed_nodes()
    assert "n1" in grid.pool.nodes
    await grid.master.cancel(Cancel((job,)))
    assert (await grid.wait(job)).node == "n1"
    await grid.master.drop_removed_nodes()
    assert [line.name for line in grid.master.node_queries.select(Nodes())] == ["n2"]


async def test_an_idle_node_is_dropped_when_it_is_removed(grids: Grids) -> None:
    grid = await grids(nodes=("n1", "n2"))
    await grid.run()
    await grid.master.use_inventory(msgspec.structs.replace(grid.inventory, nodes=grid.inventory.nodes[1:]))
    assert [line.name for line in grid.master.node_queries.select(Nodes())] == ["n2"]


# --- questions --------------------------------------------------------------------------------------------------------


async def test_jobs_are_listed_by_state_user_and_selector(grids: Grids) -> None:
    grid = await grids(Exited(0), Exited(1), until_killed)
    first, second = await grid.submit(owner="ann"), await grid.submit(owner="bob")
    await asyncio.gather(grid.wait(first), grid.wait(second))
    third = await grid.submit(owner="bob")
    await grid.begun(third)

    async def ids(query: Jobs) -> list[int]:
        return [line.id for line in grid.master.job_queries.select(query)]

    assert await ids(Jobs()) == [first, second, third]
    assert await ids(Jobs(user="bob")) == [second, third]
    assert await ids(Jobs(states=("FAILED",))) == [second]
    assert await ids(Jobs(active_only=True)) == [third]
    assert await ids(Jobs(selector="last")) == [third]
    assert grid.master.job_queries.counts() == {"COMPLETED": 1, "FAILED": 1, "RUNNING": 1}
    with pytest.raises(NoSuchJob):
        await ids(Jobs(selector="99"))


async def test_explain_names_the_node_and_queues_nothing(grids: Grids) -> None:
    grid = await grids(nodes=("n1", Node("n2", drained=True)))
    await until(lambda: grid.node("n1").facts)
    reply = await grid.master.explain(grid.submission())
    assert (reply.chosen, [name for name, _ in reply.scores]) == ("n1", ["n1"])
    assert [(line.node, line.reason) for line in reply.why] == [("n2", "NodeDown: drained")]
    assert grid.store.jobs.ids() == []
    assert isinstance(Explain(grid.submission()), Explain)


async def test_toolchains_list_what_each_node_has(grids: Grids) -> None:
    grid = await grids(nodes=("n1", "n2"))
    await until(lambda: all(managed.facts for managed in grid.pool.nodes.values()))
    grid.node("n2").has("c")
    lines = {line.language: line for line in grid.master.node_queries.toolchains(Toolchains().selector)}
    assert [node for node, _ in lines["c"].nodes] == ["n1", "n2"]
    assert [node for node, _ in lines["java"].nodes] == ["n1"]


@pytest.mark.parametrize("job", [0, -1, 99, 1 << 62, 1 << 63, 10**30])
async def test_every_request_about_a_missing_job_raises_no_such_job(grids: Grids, job: int) -> None:
    grid = await grids()
    number = JobId(job)
    for asked in (
        grid.master.cancel(Cancel((number,))),
        grid.master.hold([number], release=False),
        grid.master.remove([number]),
        grid.watch(number),
    ):
        with pytest.raises(NoSuchJob):
            await asked


async def test_other_tasks_run_while_many_jobs_start(grids: Grids, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "STEP_SECONDS", 0.0)
    grid = await grids(*[until_killed] * 6)
    grid.master.pause()
    jobs = [await grid.submit() for _ in range(6)]
    grid.master.scheduler.paused = False
    grid.active_jobs.wake.set()
    seen = set[int]()

    def all_run() -> bool:
        seen.add(len(grid.active_jobs.in_phase(Phase.RUNNING)))
        return len(jobs) in seen

    await until(all_run, lambda: seen)
    assert len(seen - {0, len(jobs)}) >= 3
    await grid.master.cancel(Cancel(tuple(jobs)))
    for job in jobs:
        await grid.wait(job)


async def test_a_paused_master_starts_no_job(grids: Grids) -> None:
    grid = await grids()
    grid.master.pause()
    job = await grid.submit()
    other = asyncio.create_task(grid.watch(job))
    await until(lambda: grid.line(job).state == "PENDING")
    assert grid.engine.ran_on == []
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        ({"args": (b"ok", b"x" * 131_072)}, "argument 2 has 131,072 bytes"),
        ({"env": (("LONG", b"x" * 131_072),)}, "LONG and its value"),
        ({"args": (b"x" * 100_000,) * 21}, "2,100,000 bytes"),
    ],
)
async def test_A11_arguments_longer_than_exec_allows_are_refused(
    grids: Grids, wishes: dict[str, Any], words: str
) -> None:
    grid = await grids()
    with pytest.raises(UsageError, match=words):
        await grid.submit(grid.submission(**wishes))


async def test_the_limit_of_a_group_applies_to_each_user(grids: Grids) -> None:
    grid = await grids(until_killed, until_killed, until_killed, nodes=("n1", "n2"))
    grid.inventory = msgspec.structs.replace(grid.inventory, groups=(Group("lab", frozenset({"n1", "n2"}), 1),))
    await grid.master.use_inventory(grid.inventory)
    first, second = await grid.submit(owner="ann"), await grid.submit(owner="ann")
    await grid.begun(first)
    other = await grid.submit(owner="bob")
    await grid.begun(other)
    line = grid.line(second)
    assert (line.state, line.reason) == ("PENDING", "UserLimit")
    assert {why.reason for why in line.why} == {"UserLimit: the user runs 1 of at most 1 jobs in group lab"}
    await grid.master.cancel(Cancel((first,), "KILL"))
    await grid.begun(second)
    await grid.master.cancel(Cancel((second, other), "KILL"))
    await grid.wait(second)
    await grid.wait(other)
