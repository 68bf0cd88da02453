"""Slots and GPUs belong to one run at a time, also after a change of the master."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sshgrid.errors import NoNodeLeft, UsageError
from sshgrid.model import Node, Phase
from sshgrid.protocol.messages import Cancel
from sshgrid.testing.engine import until_killed
from sshgrid.testing.grid import ScriptedGrid, inventory, until

pytestmark = pytest.mark.usefixtures("quiet_log")


@pytest.fixture
async def grid(tmp_path: Path) -> AsyncIterator[ScriptedGrid]:
    grid = ScriptedGrid(tmp_path, inventory(Node("h1", host="127.0.0.1", slots=4, gpus=3)), *[until_killed] * 9)
    await grid.begin()
    yield grid
    await grid.end()


def running(grid: ScriptedGrid) -> int:
    return len(grid.active_jobs.in_phase(Phase.RUNNING))


async def test_a_run_takes_as_many_slots_as_it_requested(grid: ScriptedGrid) -> None:
    wide = await grid.submit(grid.submission(slots=3))
    await grid.begun(wide)
    assert grid.node("h1").view().running == 3
    second = await grid.submit(grid.submission(slots=2))
    small = await grid.submit()
    await grid.begun(small)
    line = await grid.reaches(second, "PENDING")
    assert line.reason == "Resources"
    assert line.why[0].reason == "Resources: 4 of 4 slots busy, 2 needed"
    await grid.master.cancel(Cancel((wide,), "KILL"))
    await grid.begun(second)
    assert grid.node("h1").view().running == 3


async def test_gpus_are_given_to_one_run_at_a_time(grid: ScriptedGrid) -> None:
    first = await grid.submit(grid.submission(gpus=2))
    await grid.begun(first)
    second = await grid.submit(grid.submission(gpus=1))
    await grid.begun(second)
    third = await grid.submit(grid.submission(gpus=1))
    assert [order.gpus for order in grid.engine.orders] == [(0, 1), (2,)]
    assert (await grid.reaches(third, "PENDING")).why[0].reason == "Resources: 3 of 3 GPUs busy, 1 needed"
    await grid.master.cancel(Cancel((first,), "KILL"))
    await grid.begun(third)
    assert grid.engine.orders[-1].gpus == (0,)


async def test_a_new_master_knows_the_slots_and_gpus_of_running_jobs(grid: ScriptedGrid) -> None:
    wide = await grid.submit(grid.submission(slots=2, gpus=2))
    await grid.begun(wide)
    await grid.end()
    await grid.begin()
    await until(lambda: running(grid) == 1 and grid.node("h1").slots.running)
    view = grid.node("h1").view()
    assert (view.running, view.gpus_in_use) == (2, frozenset({0, 1}))


async def test_more_slots_or_gpus_than_any_node_has_are_refused(grid: ScriptedGrid) -> None:
    with pytest.raises(NoNodeLeft, match="5 slots needed, the node has 4"):
        await grid.submit(grid.submission(slots=5))
    with pytest.raises(NoNodeLeft, match="4 GPUs needed, the node has 3"):
        await grid.submit(grid.submission(gpus=4))
    with pytest.raises(UsageError):
        await grid.submit(grid.submission(slots=0))
    with pytest.raises(UsageError):
        await grid.submit(grid.submission(gpus=-1))
