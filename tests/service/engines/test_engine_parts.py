"""A grid whose nodes have an engine without batches and without conversations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest

from sshgrid.engines import Runs
from sshgrid.model import SweepDone
from sshgrid.testing.grid import ScriptedGrid, inventory
from tests.service.scheduler.test_sweeps import sweep, verdict


class OnlyRuns(NamedTuple):
    runs: Runs
    batches: None = None
    conversations: None = None


@pytest.fixture
async def grid(tmp_path: Path) -> AsyncIterator[ScriptedGrid]:
    grid = await ScriptedGrid(tmp_path, inventory("n1")).begin()
    grid.node("n1").engine = OnlyRuns(grid.engine)
    yield grid
    await grid.end()


async def test_each_task_of_a_sweep_starts_alone_without_batches(grid: ScriptedGrid) -> None:
    job = await grid.submit(sweep(grid, *["go"] * 40))
    await grid.wait(job)
    assert verdict(grid, job) == SweepDone(40, 0)
    assert {record.batch for task in grid.store.jobs.tasks(job) for record in task.attempts} == {""}
    assert grid.engine.batches.runs == {}


@pytest.mark.usefixtures("quiet_log")
async def test_an_interactive_job_fails_without_conversations(grid: ScriptedGrid) -> None:
    line = await grid.run(grid.submission(interactive=True))
    assert (line.state, line.exit_status, grid.engine.ran_on) == ("NODE_FAIL", 125, [])
    assert "n1 cannot run interactive programs" in line.reason
