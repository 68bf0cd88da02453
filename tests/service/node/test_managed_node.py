"""A node as a whole, over fake links: what is known while it is up, and what ends `keep`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import cast

import pytest

from sshgrid.model import Node, Sample
from sshgrid.node.managed_node import QUARANTINED, ManagedNode
from sshgrid.node.shared import Shared
from sshgrid.node.slots import Share
from sshgrid.policy.breaker import LOSSES
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing
from sshgrid.ssh.link import Link
from sshgrid.testing import until
from tests.service.node.fake_link import FakeLink
from tests.service.node.manual_clock import ManualClock


class DialledNode(ManagedNode):
    """A node whose dials return fake links."""

    def __init__(self, spool: Spool) -> None:
        pool: dict[str, ManagedNode] = {}
        self.time = ManualClock()
        shared = Shared("grid", spool, Dialing(), Random(1), pool, lambda: None, self.time.clock)
        super().__init__(Node("n1", host="h1"), shared)
        pool["n1"] = self
        self.links: list[FakeLink] = []

    async def _open_link(self) -> Link:
        self.links.append(FakeLink())
        return cast("Link", self.links[-1])


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[DialledNode]:
    with Spool(tmp_path / "spool") as spool:
        node = DialledNode(spool)
        task = asyncio.create_task(node.keep())
        task.add_done_callback(node.ended)
        yield node
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_node_has_facts_while_it_is_up_and_is_undecided_until_its_first_sample(node: DialledNode) -> None:
    await until(lambda: node.up)
    assert node.facts == node.links[0].facts
    assert node.undecided
    node._sampled(Sample(1.0, 71.0, 0.5, 0.1, 1 << 30))
    assert not node.undecided
    view = node.view()
    assert (view.up, view.reason, view.sample, view.next_try_seconds) == (True, "", node.load.sample, None)


async def test_lost_connection_clears_the_load_and_is_replaced(node: DialledNode) -> None:
    await until(lambda: node.up)
    node._sampled(Sample(1.0, 71.0, 0.5, 0.1, 1 << 30))
    node.links[0].lose()
    await until(lambda: len(node.links) == 2 and node.up)
    assert (node.load.sample, list(node.load.busy_minute)) == (None, [])
    assert not node.links[1].lost.done()


async def test_view_counts_slots_taken_since_the_last_sample(node: DialledNode) -> None:
    await until(lambda: node.up)
    node.slots.begin("a", Share(2, (1,)))
    node._sampled(Sample(1.0, 71.0, 0.5, 0.1, 1 << 30))
    node.time.now += 1
    node.slots.begin("b", Share(3))
    view = node.view()
    assert (view.running, sorted(view.gpus_in_use), view.started_since_sample) == (5, [1], 3)
    assert node.needed_runs == {"a", "b"}


async def test_quarantined_node_takes_no_runs_and_says_why(node: DialledNode) -> None:
    await until(lambda: node.up)
    for _ in range(LOSSES):
        node.time.now += 10
        assert node.view().up
        node.lost_a_run()
    view = node.view()
    assert (view.up, view.reason) == (False, QUARANTINED)


@pytest.mark.parametrize("part", ["toolchains", "cleanup"])
async def test_bug_in_a_part_ends_keep_and_is_shown_as_the_reason(
    node: DialledNode, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: node.up)

    async def fail(_: Link) -> None:
        raise ZeroDivisionError("our bug")

    method = {"toolchains": "check_all", "cleanup": "run"}[part]
    monkeypatch.setattr(getattr(node, part), method, fail)
    node.links[0].lose()
    await until(lambda: node.connection.reason.startswith("a bug"), lambda: node.connection.reason)
    assert node.connection.reason == "a bug in sshgrid: ZeroDivisionError: our bug"
    assert all(link.lost.done() for link in node.links)
    assert not node.view().up


async def test_leftovers_are_removed_at_the_end_of_keep(tmp_path: Path) -> None:
    with Spool(tmp_path / "spool") as spool:
        node = DialledNode(spool)
        task = asyncio.create_task(node.keep())
        await until(lambda: node.up)
        node.links[0].runs.folders = ["left"]
        node.cleanup.leftovers.add("left")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert node.links[0].runs.folders == []
