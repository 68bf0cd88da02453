"""One node of the pool, composed of its parts: connection, liveness, slots, toolchains and cleanup.

`keep` dials the node, works on it while it is connected, and dials again. Which jobs run there is decided by the
scheduler.
"""

from __future__ import annotations

import asyncio
import logging

from sshgrid.engines import Engine
from sshgrid.engines.table import DEFAULT_ENGINE, ENGINES, MakeEngine
from sshgrid.model import Facts, Node, Sample
from sshgrid.node.cleanup import Cleanup
from sshgrid.node.connection import NodeConnection
from sshgrid.node.liveness import Liveness, LoadHistory
from sshgrid.node.shared import Shared
from sshgrid.node.slots import SlotUse
from sshgrid.node.smoke_test import SmokeTest
from sshgrid.node.toolchain_check import NodeToolchains
from sshgrid.policy.breaker import Quarantine
from sshgrid.policy.placement import NodeView
from sshgrid.policy.retry import patience
from sshgrid.ssh.link import Link

log = logging.getLogger(__name__)

QUARANTINED = "quarantined after losing several runs"


class ManagedNode:
    """One node, kept connected for as long as `keep` runs."""

    def __init__(self, config: Node, shared: Shared, make_engine: MakeEngine = ENGINES[DEFAULT_ENGINE]) -> None:
        clock = shared.clock
        self.config = config
        self.name = config.name
        self.facts: Facts | None = None  # of the latest connection
        self.quarantine = Quarantine()
        self.slots = SlotUse(clock)
        self.load = LoadHistory()
        self.liveness = Liveness(clock)
        self.connection = NodeConnection(self.name, shared, self.liveness, self._open_link, self._has_runs)
        self.engine: Engine = make_engine(
            self, shared.spool.blobs.path, lambda worked: patience(shared.retry, worked), shared.builds, clock
        )
        self.cleanup = Cleanup(self.name, shared, self.slots.running.keys())
        self.toolchains = NodeToolchains(
            self.name,
            shared,
            self.engine.runs,
            self.cleanup.leftovers,
            is_idle=lambda: not self._has_runs(),
            changed=lambda: self.connection.announce(),
        )
        self._shared = shared

    # --- what placement sees

    def view(self) -> NodeView:
        """Return the node as placement sees it now."""
        connection, slots, sample = self.connection, self.slots, self.load.sample
        slot_limit, up = self.quarantine.slot_limit(self._shared.clock.monotonic()), connection.up
        since = self.liveness.seen_at if sample else 0.0
        return NodeView(
            node=self.config,
            slot_limit=slot_limit if up else None,
            up=up and slot_limit != 0,
            reason=connection.reason or ("" if slot_limit != 0 else QUARANTINED),
            facts=self.facts,
            toolchains=self.toolchains.working,
            untested=self.toolchains.untested,
            sample=sample,
            running=slots.in_use,
            gpus_in_use=slots.gpus_in_use,
            started_since_sample=slots.taken_since(since),
            ended_since_sample=slots.freed_since(since),
            next_try_seconds=None if up else connection.next_dial_seconds(),
        )

    @property
    def up(self) -> bool:
        return self.connection.up

    @property
    def undecided(self) -> bool:
        """Whether the first dial has not ended, or the first load sample has not arrived."""
        return not self.connection.tried or (self.up and self.load.sample is None)

    @property
    def needed_runs(self) -> set[str]:
        """The names of the runs and run folders that must not be removed from the node."""
        return {*self.slots.running, *self.cleanup.claims}

    def lost_a_run(self) -> None:
        """Count a program that was lost with the node."""
        self.quarantine = self.quarantine.run_lost(self._shared.clock.monotonic())

    def _has_runs(self) -> bool:
        return bool(self.slots.running)

    # --- for engines

    async def connected(self, patience_seconds: float) -> Link:
        """Return the live connection. Raises Dropped when the node has been silent for `patience_seconds`."""
        return await self.connection.connected(patience_seconds)

    def silent_seconds(self) -> float:
        """Return the seconds since the node's last sign of life."""
        return self.liveness.silent_seconds()

    def uptime_now(self) -> float:
        """Return the node's uptime in seconds, extrapolated from its last load sample."""
        return self.liveness.uptime_now()

    # --- for the build check

    def toolchain_kind(self, language: str) -> str:
        """Return what the nodes with the same tools for this language have in common; "" without a toolchain."""
        found = self.toolchains.working.get(language)
        return found.kind if found else ""

    async def run_smoke_test(self, language: str, maker: str) -> SmokeTest:
        """Run the smoke test that the node `maker` builds, on this node. Raises HostError when it does not answer."""
        return await self.toolchains.run_smoke_test(language, maker, await self.connected(0))

    # --- kept connected

    async def keep(self) -> None:
        """Keep the node connected until cancelled."""
        try:
            while True:
                link = await self.connection.dial()
                while link is not None:
                    self._opened(link)
                    link = await self._work(link)
        finally:
            if self.connection.link is not None:
                await self.cleanup.leave(self.connection.link)
            await self.connection.close()

    async def _open_link(self) -> Link:
        shared, limits = self._shared, self._shared.dial_limits
        # The server's limit first: a node that waits for a slow server must not keep others from theirs.
        async with limits.server(self.config), limits.handshakes:
            return await Link.open(self.config, limits.dialing, shared.tools, self._sampled, shared.clock)

    def _opened(self, link: Link) -> None:
        facts = self.facts = link.facts
        self.connection.use(link)
        self.toolchains.learn(link)
        log.info("%s is up: %s %s, %d cores", self.name, facts.system, facts.architecture, facts.cores)
        self.connection.announce()

    def _sampled(self, sample: Sample) -> None:
        is_news = self.load.add(sample)
        self.liveness.seen(sample.uptime_seconds)
        if is_news:  # only the first samples decide whether a waiting job may choose
            self._shared.changed()

    async def _work(self, link: Link) -> Link | None:
        """Check toolchains and clean up while the connection lasts. Return the next one, if it is open by then."""
        async with asyncio.TaskGroup() as tasks:
            background = [
                tasks.create_task(self.toolchains.check_all(link)),
                tasks.create_task(self.cleanup.run(link)),
            ]
            successor = await self.connection.watch(link)
            for task in background:
                task.cancel()
        self.load.clear()
        self.connection.announce()
        await link.close()
        return successor

    def ended(self, task: asyncio.Task[None]) -> None:
        """Show a bug that has ended `keep`: the node must not look as if it had never been dialed."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        log.error("%s is no longer kept connected", self.name, exc_info=error)
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        self.connection.fail(error)
