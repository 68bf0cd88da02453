"""The toolchain checks of a node: what its records are worth, and which toolchain is checked first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import cast

import msgspec
import pytest

from sshgrid.engines import AttemptResult, Sink
from sshgrid.engines.launch import RunSpec
from sshgrid.errors import Dropped, HostError
from sshgrid.model import Exited
from sshgrid.node import toolchain_check
from sshgrid.node.shared import Shared
from sshgrid.node.toolchain_check import QUIET_SECONDS, RETRY_SECONDS, NodeToolchains
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing
from sshgrid.ssh.link import Link
from sshgrid.testing import until
from sshgrid.toolchains import LANGUAGES, commands
from tests.service.node.fake_link import FakeLink
from tests.service.node.manual_clock import ManualClock

ROWS = [row for row in LANGUAGES if row.name in ("sh", "python")]
TOOLS = sorted({name for row in ROWS for name in commands(row)})


class CheckRuns:
    """Single runs of smoke tests: each prints `hello`, or has the next of `results`."""

    def __init__(self) -> None:
        self.languages: list[str] = []
        self.results: list[int | HostError] = []

    async def run(self, order: RunSpec, sink: Sink, *, resume: bool = False) -> AttemptResult:
        self.languages.append(order.program.language)
        result = self.results.pop(0) if self.results else 0
        if isinstance(result, HostError):
            raise result
        await sink.output("stdout", b"hello\n" if result == 0 else b"no such module\n")
        return AttemptResult(Exited(result))

    async def signal(self, run: str, name: str) -> bool:
        raise AssertionError(f"signal {name} to {run}")

    async def refuse(self, run: str) -> bool:
        raise AssertionError(f"{run} was refused")

    async def discard(self, run: str) -> None:
        """Nothing of a run is kept."""


class CheckedNode:
    def __init__(self, spool: Spool) -> None:
        self.time = ManualClock()
        self.runs = CheckRuns()
        self.is_idle = True
        self.changes = 0
        self.leftovers: set[str] = set()
        shared = Shared("grid", spool, Dialing(), Random(1), {}, lambda: None, self.time.clock)
        shared.languages = ROWS
        self.toolchains = NodeToolchains("n1", shared, self.runs, self.leftovers, lambda: self.is_idle, self._changed)
        self.link = FakeLink(TOOLS)

    def _changed(self) -> None:
        self.changes += 1

    def learn(self, link: FakeLink | None = None) -> None:
        self.toolchains.learn(cast("Link", link or self.link))

    def start(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.toolchains.check_all(cast("Link", self.link)))

    async def end(self, task: asyncio.Task[None]) -> None:
        self.link.lose()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[CheckedNode]:
    with Spool(tmp_path / "spool") as spool:
        yield CheckedNode(spool)


async def test_wanted_toolchain_is_checked_at_once_and_recorded_on_the_node(node: CheckedNode) -> None:
    node.learn()
    assert node.toolchains.untested == {"sh", "python"}
    task = node.start()
    node.toolchains.want("python")
    await until(lambda: "python" in node.toolchains.working)
    await until(lambda: node.link.maintenance.checks)
    assert set(node.runs.languages) == {"python"}
    assert (sorted(node.toolchains.untested), node.changes) == (["sh"], 1)
    await node.end(task)
    later = FakeLink(TOOLS, tuple(node.link.maintenance.checks.values()))
    node.learn(later)
    assert (list(node.toolchains.working), sorted(node.toolchains.untested)) == (["python"], ["sh"])


async def test_common_toolchains_are_checked_when_the_node_is_idle_for_a_while(node: CheckedNode) -> None:
    node.learn()
    node.time.now += QUIET_SECONDS  # the first pause is measured from the start of the task
    task = node.start()
    await asyncio.sleep(0)
    assert node.runs.languages == []
    node.time.now += QUIET_SECONDS
    node.toolchains._requested.set()
    common = {row.name for row in ROWS if row.default}
    await until(lambda: common <= node.toolchains.working.keys(), lambda: node.toolchains.working)
    await node.end(task)


async def test_node_with_runs_checks_only_what_is_wanted(node: CheckedNode) -> None:
    node.learn()
    node.is_idle = False
    task = node.start()
    node.time.now += 10 * QUIET_SECONDS
    node.toolchains._requested.set()
    node.toolchains.want("sh")
    await until(lambda: "sh" in node.toolchains.working)
    assert set(node.runs.languages) == {"sh"}
    await node.end(task)


async def test_failed_smoke_test_is_a_problem_with_its_output(node: CheckedNode) -> None:
    node.learn()
    row = next(row for row in ROWS if row.name == "python")
    node.runs.results = [*([0] if row.version else []), 1]
    task = node.start()
    node.toolchains.want("python")
    await until(lambda: node.toolchains.problems)
    assert node.toolchains.problems == {"python": "its smoke test failed: no such module"}
    assert "python" not in node.toolchains.working
    await node.end(task)


async def test_failing_connection_leaves_the_toolchain_untested(node: CheckedNode) -> None:
    node.learn()
    node.runs.results = [Dropped("n1", "reset")]
    task = node.start()
    node.toolchains.want("sh")
    await until(lambda: node.runs.languages)
    await until(lambda: not node.runs.results)
    assert (sorted(node.toolchains.untested), node.toolchains.problems) == (["python", "sh"], {})
    assert len(node.leftovers) == 1, "the run is to be removed later"
    node.time.now += RETRY_SECONDS
    node.toolchains.want("sh")
    await until(lambda: "sh" in node.toolchains.working)
    await node.end(task)


@pytest.mark.parametrize("change", ["tool", "row"])
async def test_record_counts_as_long_as_tools_and_row_are_the_same(node: CheckedNode, change: str) -> None:
    node.learn()
    task = node.start()
    node.toolchains.want("sh")
    await until(lambda: node.link.maintenance.checks)
    await node.end(task)
    later = FakeLink(TOOLS, tuple(node.link.maintenance.checks.values()))
    if change == "tool":
        changed = dict.fromkeys(later.found.signatures, "8 1 2 3")
        later.found = msgspec.structs.replace(later.found, signatures=changed)
    else:
        rows = [msgspec.structs.replace(row, hello=f"{row.hello}\n# changed") for row in ROWS]
        node.toolchains._shared.languages = rows
    node.learn(later)
    assert (sorted(node.toolchains.untested), list(node.toolchains.working)) == (["python", "sh"], [])


async def test_languages_that_the_inventory_does_not_allow_are_ignored(node: CheckedNode) -> None:
    node.link.node = msgspec.structs.replace(node.link.node, toolchains=frozenset({"sh"}))
    node.learn()
    assert node.toolchains.untested == {"sh"}


def test_lines_of_another_form_are_no_records() -> None:
    assert toolchain_check.check_records(["c\tf\t12", "", "a\tb\tc\td\te", "sh\tf00d\t1\t"]).keys() == {"sh"}
