"""The connection of a node: when it is dialled, when it is given up, and who is woken."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import cast

import pytest

from sshgrid.errors import Dropped, HostError, LoginRefused, Unreachable
from sshgrid.node.connection import SILENCE_SECONDS, SUSPECT_SECONDS, NodeConnection
from sshgrid.node.liveness import Liveness
from sshgrid.node.shared import Shared
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing
from sshgrid.ssh.link import Link
from sshgrid.testing import until
from tests.service.node.fake_link import FakeLink
from tests.service.node.manual_clock import ManualClock


class Other:
    """Another node of the pool."""

    def __init__(self, up: bool) -> None:
        self.up = up
        self.needed_runs: set[str] = set()


class OneNode:
    """A connection whose dials have the given results; with none left, a dial waits."""

    def __init__(
        self, spool: Spool, *results: FakeLink | HostError, others: tuple[Other, ...] = (Other(True),)
    ) -> None:
        self.time = ManualClock()
        self.changes = 0
        pool = {f"o{number}": other for number, other in enumerate(others)}
        self.shared = Shared("grid", spool, Dialing(), Random(1), pool, self._changed, self.time.clock)
        self.liveness = Liveness(self.time.clock)
        self.has_runs = False
        self.results = list(results)
        self.dials = 0
        self.connection = NodeConnection("n1", self.shared, self.liveness, self._open, lambda: self.has_runs)

    def _changed(self) -> None:
        self.changes += 1

    async def _open(self) -> Link:
        self.dials += 1
        if not self.results:
            await asyncio.get_running_loop().create_future()
        result = self.results.pop(0)
        if isinstance(result, HostError):
            raise result
        return cast("Link", result)

    async def up(self) -> Link:
        link = await self.connection.dial()
        assert link is not None
        self.connection.use(link)
        return link


@pytest.fixture
async def spool(tmp_path: Path) -> AsyncIterator[Spool]:
    with Spool(tmp_path / "spool") as spool:
        yield spool


async def test_successful_dial_is_up_and_counts_as_a_sign_of_life(spool: Spool) -> None:
    node = OneNode(spool, FakeLink())
    node.time.now += 100
    link = await node.up()
    assert (node.connection.up, node.connection.link, node.connection.reason) == (True, link, "")
    assert (node.liveness.silent_seconds(), node.liveness.uptime_now()) == (0.0, 70.0)
    assert node.connection.next_dial_seconds() is None


async def test_failed_dial_has_a_reason_and_a_time_for_the_next_one(spool: Spool) -> None:
    node = OneNode(spool, LoginRefused("n1", "no key was accepted"))
    assert await node.connection.dial() is None
    assert (node.connection.up, node.connection.tried, node.connection.reason) == (False, True, "no key was accepted")
    assert node.connection.next_dial_seconds() == pytest.approx(60.0, rel=0.5)
    assert node.changes == 1


async def test_dial_waits_for_the_breaker_and_dial_now_does_not(spool: Spool) -> None:
    node = OneNode(spool, LoginRefused("n1", "no key was accepted"), FakeLink())
    await node.connection.dial()
    second = asyncio.create_task(node.connection.dial())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(second), 0.05)
    assert node.dials == 1
    node.connection.dial_now()
    assert not node.connection.tried
    assert await second is not None


async def test_node_that_runs_wait_for_is_dialled_again_soon(spool: Spool) -> None:
    node = OneNode(spool, *(Unreachable("n1", "no route") for _ in range(8)))
    node.has_runs = True
    for _ in range(8):
        await node.connection.dial()
        pause = node.connection.next_dial_seconds()
        assert pause is not None
        assert pause <= 1.0
        node.time.now += 1.0


async def test_lost_connection_ends_the_watch_with_its_reason(spool: Spool) -> None:
    node = OneNode(spool, FakeLink())
    link = await node.up()
    watch = asyncio.create_task(node.connection.watch(link))
    await asyncio.sleep(0)
    cast("FakeLink", link).lose("reset by peer")
    assert await watch is None
    assert (node.connection.up, node.connection.reason) == (False, "reset by peer")


async def test_F1_silent_connection_is_closed(spool: Spool) -> None:
    node = OneNode(spool, FakeLink())
    link = await node.up()
    node.time.now += SILENCE_SECONDS + 1
    assert await node.connection.watch(link) is None
    assert (link.lost.done(), node.connection.reason) == (True, "no answer for 6 s")


async def test_F16_silent_node_with_runs_gets_a_second_connection_that_replaces_the_first(spool: Spool) -> None:
    node = OneNode(spool, FakeLink(), FakeLink())
    first = await node.up()
    node.has_runs = True
    node.time.now += SUSPECT_SECONDS + 1
    second = await node.connection.watch(first)
    assert second is not None
    assert second is not first
    assert (first.lost.done(), second.lost.done(), node.dials) == (True, False, 2)
    assert node.connection.reason == "silent, while a new connection is answered"


async def test_F39_second_dial_is_cancelled_when_the_node_is_not_silent_any_more(spool: Spool) -> None:
    node = OneNode(spool, FakeLink())
    link = await node.up()
    node.has_runs = True
    node.time.now += SUSPECT_SECONDS + 1
    watch = asyncio.create_task(node.connection.watch(link))
    await until(lambda: node.dials == 2)
    node.liveness.seen(80.0)
    cast("FakeLink", link).lose()
    assert await watch is None


async def test_cancelled_watch_closes_a_second_connection_that_has_just_opened(spool: Spool) -> None:
    second = FakeLink()
    node = OneNode(spool, FakeLink())
    link = await node.up()
    node.has_runs = True
    node.time.now += SUSPECT_SECONDS + 1
    answer = asyncio.Event()

    async def slow() -> Link:
        await answer.wait()
        watch.cancel()
        return cast("Link", second)

    node.connection._open_link = slow
    watch = asyncio.create_task(node.connection.watch(link))
    answer.set()
    with pytest.raises(asyncio.CancelledError):
        await watch
    assert second.lost.done()


# --- connected --------------------------------------------------------------------------------------------------------


async def test_connected_without_patience_raises_at_once(spool: Spool) -> None:
    node = OneNode(spool)
    with pytest.raises(Dropped, match="not connected"):
        await node.connection.connected(0)


async def test_connected_raises_when_the_node_was_silent_for_longer_than_patience(spool: Spool) -> None:
    node = OneNode(spool)
    node.time.now += 30
    with pytest.raises(Dropped, match="no answer for 30 s"):
        await node.connection.connected(30)


async def test_connected_returns_as_soon_as_the_node_is_up(spool: Spool) -> None:
    node = OneNode(spool, FakeLink())
    waiting = [asyncio.create_task(node.connection.connected(math.inf)) for _ in range(3)]
    await asyncio.sleep(0)
    link = await node.up()
    node.connection.announce()
    assert await asyncio.gather(*waiting) == [link] * 3


async def test_patience_does_not_end_while_every_node_is_silent(spool: Spool) -> None:
    node = OneNode(spool, others=(Other(False), Other(False)))
    node.time.now += 30
    waiting = asyncio.create_task(node.connection.connected(10))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(waiting), 0.05)
    waiting.cancel()


async def test_bug_is_shown_as_the_reason(spool: Spool) -> None:
    node = OneNode(spool)
    node.connection.fail(ZeroDivisionError("division by zero"))
    assert node.connection.reason == "a bug in sshgrid: ZeroDivisionError: division by zero"
    assert node.connection.tried
