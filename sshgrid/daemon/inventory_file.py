"""The inventory file that a master follows: a changed file is used, a file with errors changes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from sshgrid.daemon import inventory_cache
from sshgrid.errors import InventoryError
from sshgrid.model import Inventory

log = logging.getLogger(__name__)
audit = logging.getLogger("sshgrid.audit")


class InventoryFile:
    """Reads one inventory file. `inventory` is the last version without errors.

    `cache_path` keeps the parsed file for the next start. Raises InventoryError when the file has errors now.
    """

    def __init__(self, path: Path, cache_path: Path) -> None:
        self._path = path
        self._cache_path = cache_path
        self._reading = asyncio.Lock()  # two readers would use two lists of nodes at the same time
        self._stamp = self._read_stamp()
        self.error = ""
        self.inventory = inventory_cache.load(path, cache_path)

    async def reload_if_changed(self, use: Callable[[Inventory], Awaitable[None]]) -> None:
        """As `reload`, when the file was written since it was read."""
        if self._read_stamp() != self._stamp:
            await self.reload(use)

    async def reload(self, use: Callable[[Inventory], Awaitable[None]]) -> None:
        """Read the file, and call `use` when the inventory has changed. An error is logged and kept in `error`."""
        async with self._reading:
            self._stamp = self._read_stamp()
            try:
                inventory = inventory_cache.load(self._path, self._cache_path)
            except InventoryError as error:
                self.error = error.message
                log.warning("the inventory file has errors, so the earlier one stays in use:\n%s", error.message)
                return
            self.error = ""
            if inventory != self.inventory:
                log.info("the inventory has changed: %d nodes", len(inventory.nodes))
                audit.info("the inventory has changed: %d nodes", len(inventory.nodes))
                self.inventory = inventory
                await use(inventory)

    async def while_not_reading(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` when no reload is in progress."""
        async with self._reading:
            await work()

    def _read_stamp(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)
