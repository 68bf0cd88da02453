"""The cleanup of a node: which run folders it removes, which it spares, and when it prunes the cache."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import cast

import pytest

from sshgrid.node import cleanup
from sshgrid.node.cleanup import FIRST_PRUNE_SECONDS, STRAYS_AGAIN_SECONDS, Cleanup
from sshgrid.node.shared import Shared
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing
from sshgrid.ssh.link import Link
from sshgrid.testing import until
from tests.service.node.fake_link import FakeLink
from tests.service.node.manual_clock import ManualClock


class CleanedNode:
    """A node whose cleanup looks again and again without a pause."""

    up = True

    def __init__(self, spool: Spool) -> None:
        self.time = ManualClock()
        self.running: dict[str, int] = {}
        self.others: set[str] = set()  # what another node of the pool needs
        shared = Shared("grid", spool, Dialing(), Random(1), {"n1": self}, lambda: None, self.time.clock)
        self.cleanup = Cleanup("n1", shared, self.running.keys())
        self.link = FakeLink()

    @property
    def needed_runs(self) -> set[str]:
        return {*self.running, *self.others, *self.cleanup.claims}

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.cleanup.run(cast("Link", self.link)))


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CleanedNode]:
    monkeypatch.setattr(cleanup, "LEFTOVERS_SECONDS", 0.001)
    monkeypatch.setattr(cleanup, "IDLE_SECONDS", 0.001)
    with Spool(tmp_path / "spool") as spool:
        yield CleanedNode(spool)


async def ended(node: CleanedNode, task: asyncio.Task[None]) -> None:
    node.link.lose()
    async with asyncio.timeout(5):
        await task


async def test_run_of_an_earlier_master_is_removed_and_needed_ones_stay(node: CleanedNode) -> None:
    node.link.runs.folders = ["stray", "running", "claimed", "shared"]
    node.running["running"] = 1
    node.cleanup.claims.add("claimed")
    node.others.add("shared")  # of a node with the same working folder
    task = node.start()
    await until(lambda: "stray" not in node.link.runs.folders)
    assert node.link.runs.folders == ["running", "claimed", "shared"]
    node.others.clear()
    await until(lambda: "shared" not in node.link.runs.folders)
    await ended(node, task)


async def test_late_start_of_an_earlier_connection_is_found_by_a_second_look(node: CleanedNode) -> None:
    task = node.start()
    await node.link.runs.listed.wait()
    node.link.runs.folders = ["late"]
    node.time.now += STRAYS_AGAIN_SECONDS
    await until(lambda: not node.link.runs.folders)
    await ended(node, task)


async def test_leftovers_are_removed_while_the_node_is_connected(node: CleanedNode) -> None:
    task = node.start()
    await node.link.runs.listed.wait()
    node.link.runs.folders = ["left"]
    node.cleanup.leftovers.add("left")
    await until(lambda: not node.link.runs.folders and not node.cleanup.leftovers)
    await ended(node, task)


async def test_folder_that_cannot_be_removed_is_not_tried_for_ever(node: CleanedNode) -> None:
    node.link.runs.folders, node.link.runs.stuck = ["stuck"], {"stuck"}
    task = node.start()
    await node.link.runs.listed.wait()
    await until(lambda: not node.cleanup.leftovers)
    await ended(node, task)


async def test_cache_is_pruned_a_minute_after_the_connection_was_opened(node: CleanedNode) -> None:
    task = node.start()
    await node.link.runs.listed.wait()
    assert node.link.maintenance.prunes == 0
    node.time.now += FIRST_PRUNE_SECONDS
    await until(lambda: node.link.maintenance.prunes == 1)
    await ended(node, task)


async def test_leftovers_are_removed_when_the_master_leaves(node: CleanedNode) -> None:
    node.link.runs.folders = ["left", "running"]
    node.running["running"] = 1
    node.cleanup.leftovers.update(("left", "running"))
    await node.cleanup.leave(cast("Link", node.link))
    assert node.link.runs.folders == ["running"]


async def test_node_that_does_not_answer_delays_the_leave_only_so_long(
    node: CleanedNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(runs: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(cleanup, "LEAVE_SECONDS", 0.01)
    monkeypatch.setattr(node.link.runs, "clean", never)
    node.cleanup.leftovers.add("left")
    async with asyncio.timeout(5):
        await node.cleanup.leave(cast("Link", node.link))
    assert node.cleanup.leftovers == {"left"}
