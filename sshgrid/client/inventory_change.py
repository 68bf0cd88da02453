"""Change the inventory file, and make the running master read it.

Used by the commands `node` and `inventory` and by the monitor. The file is replaced as a whole, and only by a text that
is a valid inventory.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sshgrid.client.session import Session
from sshgrid.errors import MasterGone, SshgridError

if TYPE_CHECKING:
    from sshgrid.inventory import Inventory
    from sshgrid.model import Node
    from sshgrid.paths import Places

UNKNOWN_HOST_KEY = "unknown host key"  # the start of the message of HostKeyUnknown


def load(places: Places) -> Inventory:
    """Read the inventory. Raises InventoryError."""
    from pathlib import Path

    from sshgrid import inventory

    return inventory.load(Path(places.inventory))


def edit_inventory(session: Session, change: Callable[[str], str], *, create: bool = False) -> list[str]:
    """Apply `change` to the text of the inventory and reload the master; returns the new lines."""
    from pathlib import Path

    from sshgrid.inventory import edit as inventory_edit

    places = session.places(must_exist=not create)
    if create:
        os.makedirs(os.path.dirname(places.inventory), mode=0o700, exist_ok=True)
    written: list[str] = []

    def apply(before: str) -> str:
        after = change(before)
        written[:] = inventory_edit.new_lines(before, after)
        return after

    inventory_edit.edit_file(Path(places.inventory), apply, create)
    reload_master(session, places)
    return written


def reload_master(session: Session, places: Places) -> None:
    """Make a running master read the changed file now; it would notice the change a little later."""
    from sshgrid.client.start import connect
    from sshgrid.protocol.messages import Done, Reload

    try:
        with connect(places, start=False, warn=session.warn) as connection:
            connection.request(Reload(), Done)
    except MasterGone:
        pass  # a master that starts later reads the new file


class NodeFailed(SshgridError):
    """A checked node does not work."""

    code = "node-down"
    exit_status = 1


def set_drained(session: Session, selector: str, *, drained: bool) -> int:
    """Mark these nodes in the inventory as drained (no new jobs), or remove the mark."""
    from sshgrid.inventory import edit as inventory_edit

    names = select_names(session, selector)
    edit_inventory(session, lambda text: inventory_edit.set_drained(text, names, drained))
    return print_changed(session, names)


def print_changed(session: Session, names: Sequence[str]) -> int:
    """Print the names of changed nodes with --json; returns 0."""
    if session.json:
        session.show(lambda: {"schema": 1, "nodes": list(names)}, str)
    return 0


def select_names(session: Session, selector: str) -> tuple[str, ...]:
    """The names of the nodes of the inventory that match."""
    return tuple(node.name for node in select_nodes(session, selector))


def select_nodes(session: Session, selector: str) -> tuple[Node, ...]:
    """The nodes of the inventory that match. UsageError when none does."""
    from sshgrid.notation import selectors

    return selectors.nodes(selector, load(session.places()).nodes)
