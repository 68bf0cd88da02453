"""Every engine passes the contract: the scripted one, and the one that runs programs on a real (local) node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest

from sshgrid.engines import Engine
from sshgrid.model import Exited, Node, RetryPolicy
from sshgrid.nodes import NodePool
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing
from sshgrid.testing import CHECKS, Bench, Check, MakeBench, ScriptedEngine, check_engine, imitate, until
from sshgrid.testing.contract import GRID, IMITATIONS, RUN_CHECKS, checks_of, until_clean
from tests.service.engines.test_engine_parts import OnlyRuns


class ScriptedBench:
    """Programs are imitated."""

    node = "n1"

    def __init__(self, folder: Path) -> None:
        self.spool = Spool(folder / "spool")
        self.scripted = ScriptedEngine(*[imitate] * 100, blob=self.spool.blobs.read)
        self.engine: Engine = self.scripted

    async def left(self) -> Sequence[str]:
        return [*self.scripted.stages, *self.scripted.refused]


class DirectBench:
    """Programs really run, on this machine as a node."""

    node = "here"

    def __init__(self, folder: Path, pool: NodePool) -> None:
        self.spool = pool.shared.spool
        self.engine = pool.nodes[self.node].engine
        self._work = folder / "work"

    async def left(self) -> Sequence[str]:
        mark = f"SSHGRID_RUN={GRID}-".encode()
        processes = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    if mark in (entry / "environ").read_bytes():
                        processes.append(f"process {entry.name}")
                except OSError:
                    continue
        return [*(run.name for run in (self._work / "runs").iterdir()), *processes]


def scripted(folder: Path) -> MakeBench:
    @asynccontextmanager
    async def make() -> AsyncIterator[ScriptedBench]:
        bench = ScriptedBench(folder)
        yield bench
        await bench.scripted.close()
        bench.spool.close()

    return make


def direct(folder: Path) -> MakeBench:
    @asynccontextmanager
    async def make() -> AsyncIterator[DirectBench]:
        with Spool(folder / "spool") as spool:
            # Another grid than that of the runs: these have no job, so their own pool would remove them as strays.
            pool = NodePool("pool", spool, Dialing(), Random(1), lambda: None)
            node = Node("here", connection="local", slots=4, workdir=str(folder / "work"))
            try:
                await pool.use_inventory([node], (), RetryPolicy())
                await until(lambda: pool.nodes["here"].up, lambda: pool.nodes["here"].connection.reason)
                yield DirectBench(folder, pool)
            finally:
                await pool.close()

    return make


ENGINES = {"scripted": scripted, "direct": direct}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.usefixtures("quiet_log")
async def test_an_engine_keeps_the_contract(tmp_path: Path, engine: str, check: Check) -> None:
    async with ENGINES[engine](tmp_path)() as bench:
        await check(bench)
        # It must be possible to discard every run that a check leaves.
        for name in await bench.left():
            if name.startswith(GRID):
                await bench.engine.runs.discard(name)
        await until_clean(bench)


async def test_check_engine_runs_the_whole_contract(tmp_path: Path) -> None:
    await check_engine(scripted(tmp_path))


async def test_an_engine_is_checked_for_the_parts_that_it_offers(tmp_path: Path) -> None:
    bench = ScriptedBench(tmp_path)
    assert checks_of(bench.engine) == CHECKS
    assert checks_of(OnlyRuns(bench.engine.runs)) == RUN_CHECKS


async def test_an_engine_of_single_runs_passes_the_contract(tmp_path: Path) -> None:
    @asynccontextmanager
    async def make() -> AsyncIterator[Bench]:
        async with scripted(tmp_path)() as bench:
            bench.engine = OnlyRuns(bench.engine.runs)
            yield bench

    await check_engine(make)


async def test_check_engine_fails_for_an_engine_that_breaks_a_promise(tmp_path: Path) -> None:
    @asynccontextmanager
    async def liar() -> AsyncIterator[ScriptedBench]:
        bench = ScriptedBench(tmp_path)
        bench.scripted.coming = [Exited(0)] * 100
        yield bench
        await bench.scripted.close()

    with pytest.raises(AssertionError):
        await check_engine(liar)


def test_every_program_of_the_contract_has_an_imitation() -> None:
    assert len(IMITATIONS) == 9
