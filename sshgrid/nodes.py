"""The nodes of the inventory. A changed inventory adds nodes, dials changed ones again, and drops removed ones.

What one node does is in node/managed_node.py. Which node a job gets is decided by the scheduler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from random import Random

import msgspec

from sshgrid import toolchains
from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.model import Language, Node, RetryPolicy
from sshgrid.node.build_check import BuildCheck
from sshgrid.node.managed_node import ManagedNode
from sshgrid.node.shared import Shared
from sshgrid.policy.placement import NodeView
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing


class NodePool:
    """All nodes of the inventory. `changed` is called when placement may decide differently."""

    def __init__(
        self,
        grid: str,
        spool: Spool,
        dialing: Dialing,
        rng: Random,
        changed: Callable[[], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.nodes: dict[str, ManagedNode] = {}
        self.shared = Shared(grid, spool, dialing, rng, self.nodes, changed, clock)
        self.shared.builds.verify = BuildCheck(self.nodes).check
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def use_inventory(self, nodes: Iterable[Node], languages: Sequence[Language], retry: RetryPolicy) -> None:
        """Use this inventory from now on. A removed node leaves when its runs have ended; until then it is drained."""
        self.shared.retry = retry
        rows_changed = tuple(languages) != tuple(self.shared.languages)
        self.shared.languages = languages
        self.shared.tools = toolchains.tools(languages)
        wanted = {node.name: node for node in nodes}
        for name, managed in list(self.nodes.items()):
            node = wanted.get(name)
            if node is None:
                managed.config = msgspec.structs.replace(managed.config, drained=True)
                if not managed.slots.running:
                    await self._drop(name)
            elif _keeps_connection(managed.config, node) and not rows_changed:
                managed.config = node
            else:
                await self._reconnect(name, node)
        for name, node in wanted.items():
            if name not in self.nodes:
                self.nodes[name] = self._make_node(node)
                self._start(self.nodes[name])
        self.shared.changed()

    def _make_node(self, node: Node) -> ManagedNode:
        return ManagedNode(node, self.shared)

    async def _reconnect(self, name: str, node: Node) -> None:
        """Replace the connection of a node, and keep its runs."""
        managed = self.nodes[name]
        managed.config = node
        await self._end_task(name)
        managed.connection.tried = False
        self._start(managed)

    def _start(self, node: ManagedNode) -> None:
        task = asyncio.create_task(node.keep(), name=f"node {node.name}")
        task.add_done_callback(node.ended)
        self._tasks[node.name] = task

    async def _drop(self, name: str) -> None:
        await self._end_task(name)
        self.nodes.pop(name, None)

    async def _end_task(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def undecided(self, language: str) -> bool:
        """Return whether some node may still turn out to have this toolchain."""
        return any(node.undecided or (node.up and language in node.toolchains.untested) for node in self.nodes.values())

    def want(self, language: str) -> None:
        """On all nodes, check this toolchain next."""
        for node in self.nodes.values():
            node.toolchains.want(language)

    def views(self) -> list[NodeView]:
        """Return all nodes as placement sees them now."""
        return [node.view() for node in self.nodes.values()]

    def renewed(self, views: Sequence[NodeView], name: str) -> list[NodeView]:
        """Return these views, with a new view of one node."""
        return [self.nodes[name].view() if view.node.name == name else view for view in views]

    async def close(self) -> None:
        await asyncio.gather(*(self._end_task(name) for name in list(self._tasks)))


def _keeps_connection(old: Node, new: Node) -> bool:
    """Return whether a changed node can keep its connection: slots, tags, weight and the like do not concern it."""

    def connection_part(node: Node) -> Node:
        return msgspec.structs.replace(
            node, slots=None, weight=1.0, tags=frozenset(), max_load=None, drained=False, shared_builds=True
        )

    return connection_part(old) == connection_part(new)
