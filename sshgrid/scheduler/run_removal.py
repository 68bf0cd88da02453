"""Removes the folders of ended runs and batches from their nodes."""

from __future__ import annotations

import asyncio
import logging

from sshgrid.errors import HostError
from sshgrid.node.managed_node import ManagedNode
from sshgrid.scheduler.attempt_tasks import AttemptTasks

log = logging.getLogger(__name__)

# How long the claimed folder of a run that never began stays, so that a delayed start finds it: longer than a node
# accepts a late start.
CLAIM_KEPT_SECONDS = 20.0


class RunRemoval:
    """Starts removals. `in_progress` holds those that a master which exits should wait for."""

    def __init__(self, tasks: AttemptTasks) -> None:
        self._tasks = tasks
        self.in_progress: set[asyncio.Task[None]] = set()

    def start(self, node: ManagedNode, run: str, *, never_began: bool) -> None:
        """Remove a run or batch. The folder of one that never began stays for CLAIM_KEPT_SECONDS as a claim."""
        pause = CLAIM_KEPT_SECONDS if never_began else 0.0
        removal = self._tasks.start(self._remove(node, run, pause), f"clean {run}")
        if not pause:
            self.in_progress.add(removal)
            removal.add_done_callback(self.in_progress.discard)

    async def _remove(self, node: ManagedNode, run: str, pause: float) -> None:
        node.cleanup.claims.add(run)
        await asyncio.sleep(pause)
        node.cleanup.claims.discard(run)
        try:
            await node.engine.runs.discard(run)
        except HostError as error:
            log.info("%s: cannot clean %s yet: %s", node.name, run, error.reason)
            node.cleanup.leftovers.add(run)
