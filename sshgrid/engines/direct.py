"""The engine that runs programs on the node itself, over its SSH connection.

Runs start detached: they continue when the connection or the master is lost, and are found again.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.engines import AttemptResult, Sink
from sshgrid.engines.batch import DirectBatches
from sshgrid.engines.build_cache import BuildCache
from sshgrid.engines.conversations import DirectConversations
from sshgrid.engines.follow import Poller, RunFollower
from sshgrid.engines.hosts import EngineHost
from sshgrid.engines.launch import RunSpec
from sshgrid.engines.starter import RunStarter


class DirectEngine(NamedTuple):
    """All parts of an engine for one node."""

    runs: DirectRuns
    batches: DirectBatches
    conversations: DirectConversations


def direct_engine(
    host: EngineHost,
    blob: Callable[[str], Path],
    patience: Callable[[float], float],
    builds: BuildCache,
    clock: Clock = SYSTEM_CLOCK,
) -> DirectEngine:
    """Return the engine of a node.

    `blob` returns the path of a blob by its digest; `patience` returns how many seconds a silent host is waited for,
    given the seconds of work at stake.
    """
    starter = RunStarter(host, blob, patience, builds, clock)
    return DirectEngine(DirectRuns(starter), DirectBatches(starter), DirectConversations(starter))


class DirectRuns:
    """Single runs of one node."""

    def __init__(self, starter: RunStarter) -> None:
        self._starter = starter

    async def run(self, spec: RunSpec, sink: Sink, *, resume: bool = False) -> AttemptResult:
        def follower() -> RunFollower:
            poller = Poller(spec, sink, self._starter.wait(spec), self._starter.clock)
            return RunFollower(spec, sink, poller)

        return await self._starter.run(spec, sink, follower, resume=resume)

    async def signal(self, run: str, name: str) -> bool:
        link = await self._starter.host.connected(0)
        return await link.runs.signal(run, name)

    async def refuse(self, run: str) -> bool:
        return await self._starter.refuse(run)

    async def discard(self, run: str) -> None:
        self._starter.forget(run)
        link = await self._starter.host.connected(0)
        await link.runs.clean([run])
