"""`node add`: check a machine, add it to the inventory, and print the new entry.

A machine that cannot run jobs is not added, unless `--no-check` skips the check.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sshgrid.client.session import Session
from sshgrid.errors import HostError, HostKeyUnknown, LoginRefused, UsageError
from sshgrid.model import Struct

if TYPE_CHECKING:
    from sshgrid.model import Node
    from sshgrid.paths import Places
    from sshgrid.protocol.messages import NodeLine
    from sshgrid.ssh.connect import Dialing

_ADDRESS = re.compile(
    r"(?:(?P<user>[^@]+)@)?(?:\[(?P<ipv6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:@\[\]]+))(?::(?P<port>\d+))?"
)


class Trust(Struct, frozen=True):
    """What `node add` may do to log in."""

    accept_new: bool = False  # accept an unknown host key without asking
    copy_key: bool = False  # install the user's key in authorized_keys


# --- the entry -------------------------------------------------------------------------------------------------------


def node_fields(
    address: str | None,
    ssh_config: str | None,
    tag: Sequence[str],
    slots: int | None,
    identity_file: str | None = None,
    *,
    local: bool,
) -> dict[str, object]:
    """The fields of the entry. UsageError when the options name no machine, or two."""
    if sum((address is not None, ssh_config is not None, local)) != 1:
        raise UsageError("expected one of HOST, --ssh-config ALIAS and --local", "sshgrid node add n1 HOST")
    fields: dict[str, object] = {}
    if local:
        fields["connection"] = "local"
    elif ssh_config is not None:
        fields["ssh_config"] = ssh_config
    elif address is not None:
        fields |= parse_address(address)
    if identity_file is not None:
        fields["identity_file"] = _absolute(identity_file)
    if slots is not None:
        fields["slots"] = slots
    if tag:
        fields["tags"] = list(tag)
    return fields


def _absolute(path: str) -> str:
    """An absolute path, as the master runs in another folder."""
    return path if path.startswith("~") else os.path.abspath(path)


def parse_address(text: str) -> dict[str, object]:
    """Parse [USER@]HOST[:PORT]; an IPv6 address needs brackets when a port follows. Raises UsageError."""
    if text.count(":") > 1 and "[" not in text:
        user, _, host = text.rpartition("@")
        return {"host": host, "user": user} if user else {"host": host}
    match = _ADDRESS.fullmatch(text)
    if match is None or (match["port"] and not 0 < int(match["port"]) < 65536):
        raise UsageError(f"not an address: {text!r}", "write it as [USER@]HOST[:PORT]")
    fields: dict[str, object] = {"host": match["ipv6"] or match["host"]}
    if match["user"]:
        fields["user"] = match["user"]
    if match["port"]:
        fields["port"] = int(match["port"])
    return fields


# --- the check -----------------------------------------------------------------------------------------------------


def check(session: Session, name: str, fields: Mapping[str, object], trust: Trust) -> None:
    """Check that each machine of the entry can be reached and can run jobs. Raises HostError."""
    from sshgrid.ssh.connect import dialing_from_environ

    places = session.places(must_exist=False)
    dialing = dialing_from_environ(places.config_dir, os.environ)
    passwords: list[str] = []  # one for all machines of a range; dropped at the end of this call
    for node in _new_nodes(places, name, fields):
        try:
            _check_node(session, node, dialing, trust, passwords)
        except HostError as error:
            error.exit_status = 1
            if not isinstance(error, HostKeyUnknown):  # a key that the user declined must not be used by another way
                error.hint = error.hint or _see_with_ssh(node)
            raise


def _see_with_ssh(node: Node) -> str:
    from sshgrid.cli import keys

    command = keys.ssh_command(node)
    return (f"check with: {command}; " if command else "") + "--no-check adds the node without this check"


def _new_nodes(places: Places, name: str, fields: Mapping[str, object]) -> list[Node]:
    """The nodes of the new entry, with the defaults of the inventory. UsageError for a name that exists."""
    from pathlib import Path

    from sshgrid import inventory
    from sshgrid.inventory import edit as inventory_edit
    from sshgrid.notation import selectors

    path = Path(places.inventory)
    text = inventory.read_file(path).decode("utf-8", "replace") if path.exists() else ""
    found = inventory.parse(inventory_edit.add_node(text, name, fields).encode(), places.inventory)
    names = set(selectors.expand(name))
    return [node for node in found.nodes if node.name in names]


def _check_node(session: Session, node: Node, dialing: Dialing, trust: Trust, passwords: list[str]) -> None:
    from sshgrid.cli import keys
    from sshgrid.ssh import probe

    copied = False
    for _ in range(keys.MAX_JUMPS + 2):
        try:
            probe.first_contact(node, dialing)
            return
        except HostKeyUnknown as error:
            if not trust.accept_new and not _can_prompt(session):
                error.hint = "compare it with the key of the machine, then repeat the command with --accept-new"
                raise
            keys.confirm(session, node, error.fingerprint, error.line, prompt=not trust.accept_new)
        except LoginRefused as error:
            if copied:
                error.reason += "; your public key is in authorized_keys there, but sshd does not accept it"
                raise LoginRefused(node.name, error.reason, "ask the administrator of that machine") from error
            if not trust.copy_key:
                error.hint = error.hint or "repeat the command with --copy-key to install your key"
                raise
            keys.copy(session, node, dialing, passwords)
            copied = True


def _can_prompt(session: Session) -> bool:
    return not session.no_input and session.err.terminal


# --- the file --------------------------------------------------------------------------------------------------------


def write(session: Session, name: str, fields: Mapping[str, object]) -> list[str]:
    """Add the entry to the inventory; returns the new lines."""
    from sshgrid.client.inventory_change import edit_inventory
    from sshgrid.inventory import edit as inventory_edit

    return edit_inventory(session, lambda text: inventory_edit.add_node(text, name, fields), create=True)


def show(session: Session, lines: Sequence[str], nodes: Sequence[NodeLine]) -> int:
    """Print the new lines and the state of the nodes. NodeFailed when one of them does not work."""
    from sshgrid.terminal import render

    places = session.places()
    session.show(
        lambda: {
            "schema": 1,
            "path": places.inventory,
            "written": list(lines),
            "nodes": [render.node_object(node) for node in nodes],
        },
        lambda: written_text(places.inventory, lines) + ("\n" + _table(session, nodes) if nodes else ""),
    )
    failed = [node for node in nodes if node.state in ("DOWN", "UNKNOWN")]
    if failed and not session.json:
        from sshgrid.client.inventory_change import NodeFailed

        what = f"{failed[0].name} was added to the inventory, but does not work: {failed[0].reason}"
        raise NodeFailed(what, f"sshgrid node check {failed[0].name}")
    return int(bool(failed))


def written_text(path: str, lines: Sequence[str]) -> str:
    """The text that reports new lines in the inventory."""
    return f"written to {path}:\n" + "".join(f"{line}\n" for line in lines)


def _table(session: Session, nodes: Sequence[NodeLine]) -> str:
    from sshgrid.terminal import render

    return render.table(render.NODE_HEADER, map(render.node_row, nodes), session.out, right=render.NODE_RIGHT)
