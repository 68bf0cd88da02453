"""The parsed inventory, stored beside the queue, so that a starting master need not parse the same YAML again.

Parsing imports pydantic and PyYAML, which takes 0.2 s; the first `run` waits for it. The stored inventory is used only
for the same text and the same version of sshgrid; otherwise, and when it is damaged, the file is parsed.
"""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import msgspec

from sshgrid.errors import StoreError
from sshgrid.model import Inventory, Struct
from sshgrid.spool import disk
from sshgrid.version import VERSION

log = logging.getLogger(__name__)

MAX_BYTES = 1024 * 1024


class _StoredInventory(Struct, frozen=True):
    version: str
    inventory: Inventory


def load(path: Path, cache: Path) -> Inventory:
    """The inventory in the file `path`. Raises InventoryError."""
    return _stored(path, cache) or _parsed(path, cache)


def _stored(path: Path, cache: Path) -> Inventory | None:
    """The stored inventory; None when it is that of another text, or the file cannot be read (parsing says why)."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        stored = msgspec.json.decode(cache.read_bytes(), type=_StoredInventory)
    except (OSError, msgspec.MsgspecError):
        return None
    same = stored.version == VERSION and stored.inventory.digest == digest and stored.inventory.path == str(path)
    return stored.inventory if same else None


def _parsed(path: Path, cache: Path) -> Inventory:
    from sshgrid import inventory

    found = inventory.load(path)
    try:
        descriptor, temporary = disk.create_temporary(cache.parent, f"{cache.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_StoredInventory(VERSION, found)))
        temporary.replace(cache)
    except (OSError, StoreError) as error:
        log.warning("cannot store the parsed inventory: %s", error)
    return found
