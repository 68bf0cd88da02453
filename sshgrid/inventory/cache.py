"""The inventory as it was parsed last, kept beside the queue: a master that starts need not read the same YAML again.

Parsing pulls in pydantic and PyYAML, a fifth of a second that a cold `run` would wait for. The cache counts only for
the very same text and version; whatever is wrong with it is mended by parsing anew.
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


class _Kept(Struct, frozen=True):
    version: str
    inventory: Inventory


def load(path: Path, cache: Path) -> Inventory:
    """The inventory in `path`. Raises InventoryError."""
    return _kept(path, cache) or _parsed(path, cache)


def _kept(path: Path, cache: Path) -> Inventory | None:
    """None when the file is another one than was kept, or cannot be read at all: then parsing says why."""
    try:
        if path.stat().st_size > MAX_BYTES:
            return None
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        kept = msgspec.json.decode(cache.read_bytes(), type=_Kept)
    except (OSError, msgspec.MsgspecError):
        return None
    same = kept.version == VERSION and kept.inventory.digest == digest and kept.inventory.path == str(path)
    return kept.inventory if same else None


def _parsed(path: Path, cache: Path) -> Inventory:
    from sshgrid import inventory

    found = inventory.load(path)
    try:
        descriptor, aside = disk.create_temporary(cache.parent, f"{cache.name}.")
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(_Kept(VERSION, found)))
        aside.replace(cache)
    except (OSError, StoreError) as error:
        log.warning("the parsed inventory could not be kept: %s", error)
    return found
