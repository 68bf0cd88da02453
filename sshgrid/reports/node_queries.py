"""Questions about nodes: their state, their toolchains, what is wrong on them, and a command on many of them.

`check`, `execute` and `diagnose` dial the selected nodes first, so that a node that was down is tried now.
"""

from __future__ import annotations

from collections.abc import Callable

from sshgrid.clock import Clock
from sshgrid.model import Inventory
from sshgrid.node import fanout
from sshgrid.node.managed_node import ManagedNode
from sshgrid.nodes import NodePool
from sshgrid.notation import selectors
from sshgrid.protocol.messages import (
    Execute,
    ExecuteReply,
    NodeFindings,
    NodeLine,
    NodeReason,
    Nodes,
    ToolchainLine,
)
from sshgrid.queue.notifications import Notifications
from sshgrid.reports.lines import node_line

DIAL_SECONDS = 20  # beyond its connect timeout, for the first questions to a node
LOOK_SECONDS = 0.5


class NodeQueries:
    """Answers questions about the nodes of a master. A selector that names an unknown node raises NoSuchNode."""

    def __init__(
        self, pool: NodePool, notifications: Notifications, inventory: Callable[[], Inventory], clock: Clock
    ) -> None:
        self._pool = pool
        self._notifications = notifications
        self._inventory = inventory
        self._clock = clock

    def _selected(self, selector: str) -> list[ManagedNode]:
        nodes = self._pool.nodes
        return [nodes[config.name] for config in selectors.nodes(selector, [each.config for each in nodes.values()])]

    def select(self, query: Nodes) -> list[NodeLine]:
        """The selected nodes as they are now."""
        return [_line(node, query.history) for node in self._selected(query.selector)]

    def toolchains(self, selector: str) -> tuple[ToolchainLine, ...]:
        """The languages of the inventory, and what the selected nodes have for each."""
        selected = [(node.name, node.toolchains) for node in self._selected(selector)]
        return tuple(
            ToolchainLine(
                row.name,
                row.match,
                tuple((name, found) for name, each in selected if (found := each.working.get(row.name))),
                tuple(NodeReason(name, why) for name, each in selected if (why := each.problems.get(row.name))),
            )
            for row in self._inventory().languages
        )

    async def check(self, selector: str) -> list[NodeLine]:
        """Dial the selected nodes now; return them when each has answered or failed."""
        selected = self._selected(selector)
        for node in selected:
            node.connection.dial_now()
        patience = max((node.config.connect_timeout_seconds + DIAL_SECONDS for node in selected), default=0)
        deadline = self._clock.monotonic() + patience
        while any(not node.connection.tried for node in selected) and self._clock.monotonic() < deadline:
            await self._notifications.changed(None, LOOK_SECONDS)
        return self.select(Nodes(selector))

    async def execute(self, request: Execute) -> ExecuteReply:
        """Run a command on all selected nodes at once. Raises UsageError."""
        fanout.check_request(request)
        return await fanout.execute(await self._dialled(request.selector), request, self._clock)

    async def diagnose(self, selector: str) -> tuple[NodeFindings, ...]:
        """Look for settings that break runs on the selected nodes. For a node that is down, the finding says why."""
        return await fanout.diagnose(await self._dialled(selector), self._clock)

    async def _dialled(self, selector: str) -> list[ManagedNode]:
        names = [line.name for line in await self.check(selector)]
        return [self._pool.nodes[name] for name in names if name in self._pool.nodes]


def _line(node: ManagedNode, history: bool) -> NodeLine:
    seen = node.liveness.last_seen if node.facts else None
    return node_line(node.view(), seen, node.load.busy_minute if history else ())
