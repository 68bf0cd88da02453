"""The nodes of the inventory, and what they share.

Takes up a changed inventory: new nodes join, changed ones dial anew, removed ones leave once their runs have. What one
node does is in node/managed_node.py. Refuses to decide where jobs go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from random import Random

import msgspec

from sshgrid import toolchains
from sshgrid.model import Language, Node, RetryPolicy
from sshgrid.node.build_check import BuildCheck
from sshgrid.node.managed_node import ManagedNode
from sshgrid.node.shared import Shared
from sshgrid.policy.placement import NodeView
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing


class NodePool:
    """All nodes of the inventory."""

    def __init__(self, grid: str, spool: Spool, dialing: Dialing, rng: Random, changed: Callable[[], None]) -> None:
        self.nodes: dict[str, ManagedNode] = {}
        self.shared = Shared(grid, spool, dialing, rng, self.nodes, changed)
        self.shared.builds.verify = BuildCheck(self.nodes).check
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def follow(self, nodes: Iterable[Node], languages: Sequence[Language], retry: RetryPolicy) -> None:
        """Take up an inventory: new nodes join, changed ones dial anew, removed ones leave once their runs have."""
        self.shared.retry = retry
        rows_changed = tuple(languages) != tuple(self.shared.languages)
        self.shared.languages = languages
        self.shared.tools = toolchains.tools(languages)
        wanted = {node.name: node for node in nodes}
        for name, managed in list(self.nodes.items()):
            node = wanted.get(name)
            if node is None:
                managed.config = msgspec.structs.replace(managed.config, drained=True)
                if not managed.running:
                    await self._drop(name)
            elif _same_road(managed.config, node) and not rows_changed:
                managed.config = node
            else:
                await self._redial(name, node)
        for name, node in wanted.items():
            if name not in self.nodes:
                self._join(ManagedNode(node, self.shared))
        self.shared.changed()

    async def _redial(self, name: str, node: Node) -> None:
        """Same member, as runs may be on it; another connection."""
        managed = self.nodes[name]
        managed.config = node
        await self._end_task(name)
        managed.tried = False
        self._keep(managed)

    def _join(self, node: ManagedNode) -> None:
        self.nodes[node.name] = node
        self._keep(node)

    def _keep(self, node: ManagedNode) -> None:
        task = asyncio.create_task(node.keep(), name=f"node {node.name}")
        task.add_done_callback(node.broken)
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
        """Is there a node that is still being dialled, or asked for this toolchain?"""
        return any(node.undecided or (node.up and language in node.untested) for node in self.nodes.values())

    def want(self, language: str) -> None:
        for node in self.nodes.values():
            node.want(language)

    def views(self) -> list[NodeView]:
        return [node.view() for node in self.nodes.values()]

    def renewed(self, views: Sequence[NodeView], name: str) -> list[NodeView]:
        """These, with that of one node as it is now."""
        return [self.nodes[name].view() if view.node.name == name else view for view in views]

    async def close(self) -> None:
        await asyncio.gather(*(self._end_task(name) for name in list(self._tasks)))


def _same_road(old: Node, new: Node) -> bool:
    """May the connection stay? Slots, tags, weight and the like change nothing about it."""

    def road(node: Node) -> Node:
        return msgspec.structs.replace(
            node, slots=None, weight=1.0, tags=frozenset(), max_load=None, drained=False, shared_builds=True
        )

    return road(old) == road(new)
