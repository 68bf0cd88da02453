"""Change the inventory file and tell the running master."""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sshgrid.client.session import Session
from sshgrid.errors import MasterGone, SshgridError

if TYPE_CHECKING:
    from sshgrid.model import Node

if TYPE_CHECKING:
    from sshgrid.inventory import Inventory
    from sshgrid.paths import Places


def load(places: Places) -> Inventory:
    """The inventory of these places."""
    from pathlib import Path

    from sshgrid import inventory

    return inventory.load(Path(places.inventory))


def edit_inventory(session: Session, change: Callable[[str], str], *, create: bool = False) -> list[str]:
    """Change the file and tell the master, if one runs; the lines that came into it."""
    from pathlib import Path

    from sshgrid.inventory import edit as inventory_edit

    places = session.places(must_exist=not create)
    if create:
        os.makedirs(os.path.dirname(places.inventory), mode=0o700, exist_ok=True)
    written: list[str] = []

    def noted(before: str) -> str:
        after = change(before)
        written[:] = inventory_edit.new_lines(before, after)
        return after

    inventory_edit.edit_file(Path(places.inventory), noted, create)
    reload_master(session, places)
    return written


def reload_master(session: Session, places: Places) -> None:
    """The file has changed; a master that runs would see it by itself a little later."""
    from sshgrid.client.start import connect
    from sshgrid.protocol.messages import Done, Reload

    try:
        with connect(places, start=False, say=session.warn) as connection:
            connection.request(Reload(), Done)
    except MasterGone:
        pass  # whoever starts next reads the new file


UNKNOWN_HOST_KEY = "unknown host key"  # how HostKeyUnknown begins


class NodeFailed(SshgridError):
    """A node that was asked about does not work."""

    code = "node-down"
    exit_status = 1


def set_drained(session: Session, selector: str, *, drained: bool) -> int:
    """Write into the inventory that these nodes take no more jobs, or take them again."""
    from sshgrid.inventory import edit as inventory_edit

    names = select_names(session, selector)
    edit_inventory(session, lambda text: inventory_edit.set_drained(text, names, drained))
    return print_changed(session, names)


def print_changed(session: Session, names: Sequence[str]) -> int:
    if session.json:
        session.show(lambda: {"schema": 1, "nodes": list(names)}, str)
    return 0


def select_names(session: Session, selector: str) -> tuple[str, ...]:
    return tuple(node.name for node in select_nodes(session, selector))


def select_nodes(session: Session, selector: str) -> tuple[Node, ...]:
    from sshgrid.notation import selectors

    return selectors.nodes(selector, load(session.places()).nodes)
