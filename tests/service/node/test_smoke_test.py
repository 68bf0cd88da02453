"""Smoke tests of a toolchain that end early: nothing of them stays on the node."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest

from sshgrid.clock import SYSTEM_CLOCK
from sshgrid.engines import AttemptResult, Runs, Sink
from sshgrid.engines.launch import RunSpec
from sshgrid.errors import Dropped
from sshgrid.model import Exited, Toolchain
from sshgrid.node.shared import Shared
from sshgrid.node.smoke_test import SmokeTester
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing
from sshgrid.testing import FACTS
from sshgrid.toolchains.table import LANGUAGES

PYTHON = next(row for row in LANGUAGES if row.name == "python")
FOUND = Toolchain("python", "", dict.fromkeys((PYTHON.run[0], PYTHON.version[0]), "/usr/bin/python3"), "p-1")


class ShortRuns(Runs):
    """Runs that end as `play` does, and are removed unless `removal` fails."""

    def __init__(self, play: Callable[[], Awaitable[AttemptResult]], removal: Dropped | None = None) -> None:
        self.play = play
        self.removal = removal
        self.started: list[str] = []
        self.has_started = asyncio.Event()
        self.removed: list[str] = []

    async def run(self, order: RunSpec, sink: Sink, *, resume: bool = False) -> AttemptResult:
        self.started.append(order.run)
        self.has_started.set()
        return await self.play()

    async def discard(self, run: str) -> None:
        if self.removal:
            raise self.removal
        self.removed.append(run)

    async def signal(self, run: str, name: str) -> bool:
        raise AssertionError(f"{name} for {run}")

    async def refuse(self, run: str) -> bool:
        raise AssertionError(run)


async def success() -> AttemptResult:
    return AttemptResult(Exited(0))


async def lost_connection() -> AttemptResult:
    raise Dropped("h1", "connection lost")


async def no_end() -> AttemptResult:
    await asyncio.get_running_loop().create_future()
    raise AssertionError


@pytest.fixture
def shared(tmp_path: Path) -> Shared:
    return Shared("0" * 8, Spool(tmp_path / "spool"), Dialing(), Random(1), {}, lambda: None, SYSTEM_CLOCK)


@pytest.mark.parametrize(
    "runs",
    [ShortRuns(lost_connection), ShortRuns(success, removal=Dropped("h1", "connection lost"))],
    ids=["connection lost in the run", "connection lost at its removal"],
)
async def test_run_of_a_smoke_test_that_could_not_be_removed_is_a_leftover(shared: Shared, runs: ShortRuns) -> None:
    leftovers: set[str] = set()
    with pytest.raises(Dropped):
        await SmokeTester(shared, runs, leftovers).check(PYTHON, FOUND, FACTS)
    assert leftovers == set(runs.started)
    assert shared.smoke_runs.names == set()  # else the cleanup would spare it


async def test_run_of_a_cancelled_smoke_test_is_a_leftover(shared: Shared) -> None:
    runs, leftovers = ShortRuns(no_end), set[str]()
    check = asyncio.create_task(SmokeTester(shared, runs, leftovers).check(PYTHON, FOUND, FACTS))
    await runs.has_started.wait()
    check.cancel()
    with pytest.raises(asyncio.CancelledError):
        await check
    assert leftovers == set(runs.started)


async def test_run_of_a_smoke_test_that_was_removed_is_no_leftover(shared: Shared) -> None:
    runs, leftovers = ShortRuns(success), set[str]()
    await SmokeTester(shared, runs, leftovers).check(PYTHON, FOUND, FACTS)
    assert runs.removed == runs.started
    assert leftovers == set()
