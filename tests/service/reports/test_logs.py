"""`logs -f`: one stream without gaps, across attempts, and from where a client of an earlier master was."""

from __future__ import annotations

import asyncio

import pytest

from sshgrid.errors import Dropped
from sshgrid.model import Exited, Outcome
from sshgrid.protocol.messages import Logs, Output, Restarted, Seen
from sshgrid.testing import ScriptedGrid, Stage, after, until
from tests.service.conftest import Grids

pytestmark = pytest.mark.usefixtures("quiet_log")


Shown = list[tuple[str, int, int, bytes]]


async def shown(grid: ScriptedGrid, request: Logs, found: Shown) -> Shown:
    """Follow the stream stdout; append (kind, attempt, offset, bytes) of each event to `found`."""
    async with asyncio.timeout(10), grid.master.job_queries.watch(request) as events:
        async for event, piece in events:
            if isinstance(event, Output) and event.stream == "stdout":
                found.append(("output", event.attempt, event.offset, piece))
            elif isinstance(event, Restarted):
                found.append(("restarted", event.attempt, 0, b""))
    return found


async def followed_over_a_move(grids: Grids, second: bytes) -> Shown:
    gate = asyncio.Event()

    async def first(stage: Stage) -> Outcome:
        await stage.say(b"one\n")
        await gate.wait()
        raise Dropped("n1", "reset")

    grid = await grids(first, after(second, Exited(0)))
    job = await grid.submit()
    found: Shown = []
    following = asyncio.create_task(shown(grid, Logs(job, follow=True), found))
    await until(lambda: found)
    gate.set()
    return await following


async def test_followed_logs_continue_with_the_next_attempt(grids: Grids) -> None:
    assert await followed_over_a_move(grids, b"one\ntwo\n") == [("output", 1, 0, b"one\n"), ("output", 2, 4, b"two\n")]


async def test_followed_logs_restart_when_the_next_attempt_differs(grids: Grids) -> None:
    assert (await followed_over_a_move(grids, b"uno\n"))[1:] == [("restarted", 2, 0, b""), ("output", 2, 0, b"uno\n")]


@pytest.mark.parametrize(("seen", "rest"), [(Seen("stdout", 1, 4), b"two\nsix\n"), (Seen("stdout", 2, 8), b"six\n")])
async def test_F10_logs_continue_after_the_bytes_that_the_client_has(grids: Grids, seen: Seen, rest: bytes) -> None:
    grid = await grids(after(b"one\ntwo\n", Dropped("n1", "reset")), after(b"one\ntwo\nsix\n", Exited(0)))
    job = await grid.submit()
    await grid.wait(job)
    found = await shown(grid, Logs(job, follow=True, tail_lines=1, seen=(seen,)), [])
    assert [(kind, attempt) for kind, attempt, _, _ in found] == [("output", 2)]
    assert found[0][3] == rest
