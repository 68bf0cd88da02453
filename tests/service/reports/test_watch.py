"""Watchers of a job get every event, in order and once, whenever they begin and however often the job moves."""

from __future__ import annotations

import asyncio

import pytest

from sshgrid.errors import Dropped, UsageError
from sshgrid.model import CompileFailed, Exited, JobId, Node, Outcome, Step
from sshgrid.protocol.messages import (
    Cancel,
    Ended,
    Event,
    Logs,
    NodeReason,
    Notice,
    Output,
    Progress,
    Restarted,
    Waiting,
    Watch,
)
from sshgrid.queue.notifications import NOTICES_KEPT, Notifications
from sshgrid.reports.watch import PIECE_BYTES
from sshgrid.testing import ScriptedGrid, Stage, after, until, until_killed
from tests.service.conftest import Grids

pytestmark = pytest.mark.usefixtures("quiet_log")

Seen = list[tuple[Event, bytes]]


def screen(seen: Seen, stream: str = "stdout") -> bytes:
    """The text on the screen of a client that clears it at each `Restarted`."""
    text = b""
    for event, piece in seen:
        if isinstance(event, Restarted) and event.stream == stream:
            text = b""
        elif isinstance(event, Output) and event.stream == stream:
            text += piece
    return text


def of(seen: Seen, *kinds: type[Event]) -> list[Event]:
    return [event for event, _ in seen if isinstance(event, kinds)]


def notices(seen: Seen) -> list[str]:
    return [event.text for event, _ in seen if isinstance(event, Notice)]


class Watcher:
    """Watches a job in a task."""

    def __init__(self, grid: ScriptedGrid, job: JobId, request: Watch | Logs | None = None) -> None:
        self.seen: Seen = []
        self.task = asyncio.create_task(self._watch(grid, request or Watch(job)))

    async def _watch(self, grid: ScriptedGrid, request: Watch | Logs) -> Seen:
        async with grid.master.job_queries.watch(request) as events:
            async for event in events:
                self.seen.append(event)
        return self.seen

    async def sees(self, *kinds: type[Event], text: bytes = b"") -> None:
        await until(lambda: of(self.seen, *kinds) if kinds else text in screen(self.seen), lambda: self.seen)

    async def end(self) -> Seen:
        async with asyncio.timeout(10):
            return await self.task


# --- one attempt ------------------------------------------------------------------------------------------------------


async def test_the_events_of_a_job_from_its_waiting_to_its_end(grids: Grids) -> None:
    gate = asyncio.Event()

    async def steps(stage: Stage) -> Outcome:
        await stage.enter(Step.COMPILING)
        await gate.wait()
        await stage.enter(Step.RUNNING)
        await stage.say(b"hello\n")
        await stage.say(b"oops\n", "stderr")
        return Exited(3)

    grid = await grids(until_killed, steps, nodes=(Node("n1", slots=1),))
    first = await grid.submit()
    await grid.begun(first)
    watcher = Watcher(grid, job := await grid.submit())
    await watcher.sees(Waiting)
    await grid.master.cancel(Cancel((first,)))
    await grid.begun(job)
    await until(lambda: Progress(1, 3, "n1", "compiling") in of(watcher.seen, Progress), lambda: watcher.seen)
    gate.set()
    seen = await watcher.end()
    waiting = of(seen, Waiting)[0]
    assert isinstance(waiting, Waiting)
    assert (waiting.reason, waiting.why) == ("Resources", (NodeReason("n1", "Resources: 1 of 1 slots busy"),))
    steps_seen = [event.step for event in of(seen, Progress) if isinstance(event, Progress)]
    assert "compiling" in steps_seen
    assert steps_seen == [step for step in ("uploading", "compiling", "running") if step in steps_seen]
    assert (screen(seen), screen(seen, "stderr")) == (b"hello\n", b"oops\n")
    last = seen[-1][0]
    assert isinstance(last, Ended)
    assert (last.job.state, last.job.exit_status) == ("FAILED", 3)
    assert len(of(seen, Ended)) == 1


async def test_an_unchanged_state_is_reported_once(grids: Grids) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    watcher = Watcher(grid, job)
    await watcher.sees(text=b"ready\n")
    for _ in range(50):
        grid.active_jobs.nodes_changed()
        await asyncio.sleep(0)
    await grid.master.cancel(Cancel((job,)))
    seen = await watcher.end()
    told = [event for event, _ in seen]
    assert all(told.count(event) == 1 for event in told), told


@pytest.mark.parametrize("size", [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * 1024 * 1024])
async def test_output_of_every_size_arrives_complete_in_pieces(grids: Grids, size: int) -> None:
    text = bytes(range(251)) * (size // 251 + 1)
    grid = await grids(after(text[:size], Exited(0)))
    job = await grid.submit()
    seen = await Watcher(grid, job).end()
    assert screen(seen) == text[:size]
    assert all(isinstance(event, Output) and 0 < event.size == len(piece) <= PIECE_BYTES
               for event, piece in seen if isinstance(event, Output))  # fmt: skip


async def test_a_late_watcher_gets_the_output_from_its_beginning(grids: Grids) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    early = Watcher(grid, job)
    await early.sees(text=b"ready\n")
    middle = Watcher(grid, job)
    await middle.sees(text=b"ready\n")
    await grid.master.cancel(Cancel((job,)))
    first, second = await early.end(), await middle.end()
    late = await Watcher(grid, job).end()
    assert screen(first) == screen(second) == screen(late) == b"ready\n"
    assert first[-1] == second[-1] == late[-1]


async def test_many_watchers_get_the_same_events_and_leave_no_listener(grids: Grids) -> None:
    async def chatters(stage: Stage) -> Outcome:
        for number in range(200):
            await stage.say(b"%d\n" % number)
            await asyncio.sleep(0)
        return Exited(0)

    grid = await grids(chatters)
    job = await grid.submit()
    watchers = [Watcher(grid, job) for _ in range(40)]
    seen = [await watcher.end() for watcher in watchers]
    assert {screen(each) for each in seen} == {b"".join(b"%d\n" % number for number in range(200))}
    await until(lambda: not grid.active_jobs.notifications._waiters, lambda: grid.active_jobs.notifications._waiters)


async def test_a_watcher_without_output_gets_the_other_events(grids: Grids) -> None:
    grid = await grids(after(b"hello\n", Exited(0)))
    job = await grid.submit()
    seen = await Watcher(grid, job, Watch(job, output=False)).end()
    assert of(seen, Output) == []
    assert len(of(seen, Ended)) == 1


async def test_compiler_output_is_a_stream_of_its_own(grids: Grids) -> None:
    grid = await grids(after(b"a.c:1:1: error\n", CompileFailed(1), "compile"))
    seen = await Watcher(grid, await grid.submit()).end()
    assert (screen(seen, "compile"), screen(seen), screen(seen, "stderr")) == (b"a.c:1:1: error\n", b"", b"")


async def test_F1_a_silent_node_is_reported_as_disconnected(grids: Grids) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    watcher = Watcher(grid, job)
    await watcher.sees(text=b"ready\n")
    grid.node("n1").go_down("no answer for 5 s")
    await until(lambda: Progress(1, 3, "n1", "disconnected") in of(watcher.seen, Progress), lambda: watcher.seen)
    grid.node("n1").come_up()
    await grid.master.cancel(Cancel((job,)))
    await watcher.end()


# --- more than one attempt --------------------------------------------------------------------------------------------


async def moved(grids: Grids, before: bytes, again: bytes, end: Outcome | None = None) -> Seen:
    """A job whose first node is lost while it is watched."""
    let_die = asyncio.Event()

    async def dies(stage: Stage) -> Outcome:
        await stage.say(before)
        await let_die.wait()
        raise Dropped(stage.node, "no answer for 10 s")

    grid = await grids(dies, after(again, end or Exited(0)))
    job = await grid.submit()
    watcher = Watcher(grid, job)
    await watcher.sees(text=before)
    let_die.set()
    return await watcher.end()


async def test_a_move_to_another_node_is_a_notice(grids: Grids) -> None:
    seen = await moved(grids, b"one\n", b"one\ntwo\n")
    assert notices(seen) == ["n1 lost (no answer for 10 s), moved to n2 (attempt 2 of 3)"]


async def test_output_that_the_next_attempt_repeats_is_sent_once(grids: Grids) -> None:
    seen = await moved(grids, b"one\n", b"one\ntwo\n")
    assert (screen(seen), of(seen, Restarted)) == (b"one\ntwo\n", [])
    assert b"".join(piece for _, piece in seen) == b"one\ntwo\n"


async def test_different_output_of_the_next_attempt_restarts_the_stream(grids: Grids) -> None:
    seen = await moved(grids, b"pid 17\n", b"pid 99\n")
    assert (screen(seen), of(seen, Restarted)) == (b"pid 99\n", [Restarted("stdout", 2)])


@pytest.mark.parametrize("again", [b"on", b""])
async def test_shorter_output_of_the_last_attempt_restarts_the_stream(grids: Grids, again: bytes) -> None:
    seen = await moved(grids, b"one\n", again)
    assert (screen(seen), of(seen, Restarted)) == (again, [Restarted("stdout", 2)])


async def test_a_cancelled_attempt_does_not_restart_the_stream(grids: Grids) -> None:
    grid = await grids(after(b"one\n", Dropped("n1", "reset")), until_killed)
    job = await grid.submit()
    watcher = Watcher(grid, job)
    await grid.begun(job, 2)
    await watcher.sees(text=b"ready\n")
    await grid.master.cancel(Cancel((job,)))
    assert screen(await watcher.end()) == b"ready\n"


async def test_a_watcher_after_a_move_gets_the_newest_attempt_and_the_notice(grids: Grids) -> None:
    grid = await grids(after(b"old\n", Dropped("n1", "reset")), after(b"new\n", Exited(0)))
    job = await grid.submit()
    await grid.wait(job)
    seen = await Watcher(grid, job).end()
    assert (screen(seen), of(seen, Restarted)) == (b"new\n", [])
    assert notices(seen) == ["n1 lost (reset), moved to n2 (attempt 2 of 3)"]


# --- logs -------------------------------------------------------------------------------------------------------------


def pieces(seen: Seen) -> dict[str, bytes]:
    return {stream: screen(seen, stream) for stream in ("stdout", "stderr", "compile") if screen(seen, stream)}


async def logs(grid: ScriptedGrid, request: Logs) -> dict[str, bytes]:
    return pieces(await Watcher(grid, request.job, request).end())


async def test_logs_show_any_attempt_and_the_newest_by_default(grids: Grids) -> None:
    grid = await grids(after(b"old\n", Dropped("n1", "reset")), after(b"new\n", Exited(0)))
    job = await grid.submit()
    await grid.wait(job)
    assert await logs(grid, Logs(job)) == {"stdout": b"new\n"}
    assert await logs(grid, Logs(job, attempt=1)) == {"stdout": b"old\n"}
    assert await logs(grid, Logs(job, attempt=2)) == {"stdout": b"new\n"}
    assert await logs(grid, Logs(job, attempt=9)) == {}


@pytest.mark.parametrize(
    ("lines", "shown"), [(0, b""), (1, b"three"), (2, b"two\nthree"), (99, b"one\ntwo\nthree"), (1 << 40, None)]
)
async def test_logs_show_the_last_lines(grids: Grids, lines: int, shown: bytes | None) -> None:
    grid = await grids(after(b"one\ntwo\nthree", Exited(0)))
    job = await grid.submit()
    await grid.wait(job)
    expected = b"one\ntwo\nthree" if shown is None else shown
    assert (await logs(grid, Logs(job, tail_lines=lines))).get("stdout", b"") == expected


async def test_logs_show_the_requested_streams(grids: Grids) -> None:
    async def both(stage: Stage) -> Outcome:
        await stage.say(b"out\n")
        await stage.say(b"err\n", "stderr")
        return Exited(0)

    grid = await grids(both)
    job = await grid.submit()
    await grid.wait(job)
    assert await logs(grid, Logs(job)) == {"stdout": b"out\n", "stderr": b"err\n"}
    assert await logs(grid, Logs(job, streams=("stderr",))) == {"stderr": b"err\n"}
    assert await logs(grid, Logs(job, streams=())) == {}


@pytest.mark.parametrize(
    "hostile", [{"streams": ("../../queue.db",)}, {"streams": ("stdin",)}, {"attempt": -1}, {"attempt": 10**30}]
)
async def test_A10_logs_of_an_unknown_stream_are_refused(grids: Grids, hostile: dict[str, object]) -> None:
    grid = await grids(after(b"out\n", Exited(0)))
    job = await grid.submit()
    await grid.wait(job)
    request = Logs(job, **hostile)  # type: ignore[arg-type]
    if hostile == {"attempt": 10**30}:
        assert await logs(grid, request) == {}
        return
    with pytest.raises(UsageError):
        await logs(grid, request)


async def test_followed_logs_end_with_the_job(grids: Grids) -> None:
    grid = await grids(until_killed)
    job = await grid.submit()
    await grid.begun(job)
    watcher = Watcher(grid, job, Logs(job, follow=True))
    await watcher.sees(text=b"ready\n")
    stage = await grid.begun(job)
    await stage.say(b"more\n")
    await watcher.sees(text=b"more\n")
    stage.send("TERM")
    assert pieces(await watcher.end()) == {"stdout": b"ready\nmore\n"}


async def test_logs_of_a_waiting_job_are_empty_and_followed_ones_wait_for_output(grids: Grids) -> None:
    grid = await grids(after(b"word\n", Exited(0)), nodes=("n1",), down=("n1",))
    job = await grid.submit(grid.submission(wait_for_nodes=True))
    assert await logs(grid, Logs(job)) == {}
    watcher = Watcher(grid, job, Logs(job, follow=True))
    await asyncio.sleep(0)
    grid.node("n1").come_up()
    assert pieces(await watcher.end()) == {"stdout": b"word\n"}


# --- notifications ----------------------------------------------------------------------------------------------------


async def test_a_notification_wakes_listeners_of_the_job_and_of_all_jobs(grids: Grids) -> None:
    notifications = Notifications()
    mine, other, every = notifications.listen(JobId(1)), notifications.listen(JobId(2)), notifications.listen(None)
    notifications.notify(JobId(1))
    assert (mine.done(), other.done(), every.done()) == (True, False, True)
    notifications.notify_all()
    assert other.done()
    await asyncio.sleep(0)
    assert notifications._waiters == {}


async def test_a_cancelled_listener_is_removed() -> None:
    notifications = Notifications()
    notifications.listen(JobId(1)).cancel()
    await notifications.changed(JobId(1), 0.0)
    await asyncio.sleep(0)
    assert notifications._waiters == {}


def test_notices_are_limited_in_number_and_removed_with_the_job() -> None:
    notifications = Notifications()
    for number in range(NOTICES_KEPT * 3):
        notifications.add_notice(JobId(1), str(number))
    kept = notifications.notices(JobId(1))
    assert [text for _, text in kept] == [str(number) for number in range(NOTICES_KEPT * 2, NOTICES_KEPT * 3)]
    notifications.add_notice(JobId(1), "new")
    assert [text for _, text in notifications.notices(JobId(1), kept[-1][0])] == ["new"]
    notifications.drop_notices(JobId(1))
    assert notifications.notices(JobId(1)) == []
