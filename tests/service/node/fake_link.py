"""A link without a connection, for the parts of a node: it records what is asked of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sshgrid.errors import Dropped, HostError, NodeUnfit
from sshgrid.model import Facts, Node
from sshgrid.ssh.parsers import Found

FACTS = Facts("Linux", "x86_64", "glibc 2.36", 4, 8 << 30, "boot", 1000, "/w", "session", uptime_seconds=70.0)


class FakeRuns:
    def __init__(self) -> None:
        self.folders: list[str] = []
        self.stuck: set[str] = set()  # folders that cannot be removed
        self.listed = asyncio.Event()

    async def names_of_grid(self, grid: str) -> list[str]:
        self.listed.set()
        return list(self.folders)

    async def clean(self, runs: Sequence[str]) -> None:
        self.folders = [run for run in self.folders if run not in runs or run in self.stuck]
        if left := self.stuck & set(runs):
            raise NodeUnfit("n1", f"cannot remove {left}")


class FakeMaintenance:
    def __init__(self) -> None:
        self.checks: dict[str, str] = {}
        self.prunes = 0

    async def record_check(self, name: str, line: str) -> None:
        self.checks[name] = line

    async def prune(self, days: int, most_bytes: int) -> None:
        self.prunes += 1


class FakeLink:
    """What the parts of a node use of a Link."""

    def __init__(self, tools: Sequence[str] = (), checks: Sequence[str] = ()) -> None:
        self.node = Node("n1", host="h1")
        self.facts = FACTS
        paths = {name: f"/usr/bin/{name}" for name in tools}
        self.found = Found(FACTS, paths, dict.fromkeys(paths.values(), "7 1 2 3"), tuple(checks), "/usr/bin")
        self.lost: asyncio.Future[HostError] = asyncio.get_running_loop().create_future()
        self.runs = FakeRuns()
        self.maintenance = FakeMaintenance()

    def lose(self, reason: str = "reset") -> None:
        self.lost.set_result(Dropped("n1", reason))

    async def close(self, error: HostError | None = None) -> None:
        if not self.lost.done():
            self.lost.set_result(error or Dropped("n1", "closed"))
