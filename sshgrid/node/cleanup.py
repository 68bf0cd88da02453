"""Removes from one node what no job needs: ended runs, and old files of its object and build cache."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Set

from sshgrid.errors import HostError, NodeUnfit
from sshgrid.node.shared import Shared
from sshgrid.ssh.link import Link

log = logging.getLogger(__name__)

STRAYS_AGAIN_SECONDS = 20.0  # longer than a node accepts a late start
LEFTOVERS_SECONDS = 1.0  # between two tries to remove leftovers
IDLE_SECONDS = 5.0  # between two looks for leftovers, while there are none
# Objects and builds on a node: unused ones of this age are removed, then the least recently used above this size.
PRUNE_DAYS = 14
PRUNE_BYTES = 10 << 30
FIRST_PRUNE_SECONDS = 60.0  # after the connection was opened: not while a user waits for a first run
PRUNE_SECONDS = 6 * 3600.0
LEAVE_SECONDS = 2.0  # for the last removal, when the master leaves the node


class Cleanup:
    """The cleanup of one node. `running` holds the names of the runs that the node has now."""

    def __init__(self, name: str, shared: Shared, running: Set[str]) -> None:
        self.leftovers: set[str] = set()  # ended runs that could not be removed yet
        self.claims: set[str] = set()  # run folders that keep a run from starting late: not to be removed
        self._name = name
        self._shared = shared
        self._running = running

    async def run(self, link: Link) -> None:
        """Clean the node until the connection is lost."""
        await self._find_strays(link)
        clock = self._shared.clock
        # A start that an earlier connection still holds back can arrive until the node refuses it as too late.
        strays_at = clock.monotonic() + STRAYS_AGAIN_SECONDS
        prune_at = clock.monotonic() + FIRST_PRUNE_SECONDS
        while not link.lost.done():
            await self._remove_leftovers(link)
            if clock.monotonic() >= strays_at:
                await self._find_strays(link)
                strays_at = math.inf
            if clock.monotonic() >= prune_at:
                await self._prune(link)
                prune_at = clock.monotonic() + PRUNE_SECONDS
            await asyncio.wait([link.lost], timeout=LEFTOVERS_SECONDS if self.leftovers else IDLE_SECONDS)

    async def leave(self, link: Link) -> None:
        """Remove the leftovers once more, within LEAVE_SECONDS: perhaps no master connects to the node again."""
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._remove_leftovers(link)
        except TimeoutError:
            log.info("%s: leftovers stay: %s", self._name, ", ".join(sorted(self.leftovers)))

    async def _find_strays(self, link: Link) -> None:
        """Add the runs of this grid that no node needs to the leftovers: an earlier master was killed before the end.

        Nodes may share a working folder: `_remove_leftovers` spares what another node runs.
        """
        try:
            found = await link.runs.names_of_grid(self._shared.grid)
        except HostError as error:
            log.info("%s: cannot list its runs: %s", self._name, error.reason)
            return
        self.leftovers |= set(found) - self._running - self.claims - self._shared.smoke_runs.names

    async def _remove_leftovers(self, link: Link) -> None:
        # Called often for each node: the runs of all nodes are gathered only when there is something to compare.
        runs = sorted(self.leftovers - self._shared.known_runs()) if self.leftovers else []
        if not runs:
            return
        try:
            await link.runs.clean(runs)
        except NodeUnfit as error:
            log.warning("%s: %s", self._name, error.reason)
        except HostError as error:
            log.info("%s: cannot remove leftovers yet: %s", self._name, error.reason)
            return
        self.leftovers.difference_update(runs)

    async def _prune(self, link: Link) -> None:
        try:
            await link.maintenance.prune(PRUNE_DAYS, PRUNE_BYTES)
        except HostError as error:
            log.info("%s: cannot prune its cache: %s", self._name, error.reason)
