"""`node add`: a machine is tried first and written down last, and what was written is shown.

Refuses to write an entry for a machine that cannot be a node, unless `--no-check` says that nobody is to look.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

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
    """What may be done so that a machine lets us in."""

    accept_new: bool = False  # its host key, without asking
    copy_key: bool = False  # our key into its authorized_keys


# --- the words -------------------------------------------------------------------------------------------------------


def node_fields(
    address: str | None,
    ssh_config: str | None,
    tag: Sequence[str],
    slots: int | None,
    identity_file: str | None = None,
    *,
    local: bool,
) -> dict[str, object]:
    """What is to stand in the file. UsageError when the words say no machine, or two."""
    if sum((address is not None, ssh_config is not None, local)) != 1:
        raise UsageError(
            "say where the node is: one of HOST, --ssh-config ALIAS and --local", "sshgrid node add n1 HOST"
        )
    fields: dict[str, object] = {}
    if local:
        fields["connection"] = "local"
    elif ssh_config is not None:
        fields["ssh_config"] = ssh_config
    elif address is not None:
        fields |= parse_address(address)
    if identity_file is not None:
        fields["identity_file"] = _lasting(identity_file)
    if slots is not None:
        fields["slots"] = slots
    if tag:
        fields["tags"] = list(tag)
    return fields


def _lasting(path: str) -> str:
    """The master does not stand in the folder of this command."""
    return path if path.startswith("~") else os.path.abspath(path)


def parse_address(text: str) -> dict[str, object]:
    """[USER@]HOST[:PORT]; an IPv6 address stands in brackets when a port follows."""
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


# --- the machine -----------------------------------------------------------------------------------------------------


def prove(session: Session, name: str, fields: Mapping[str, object], trust: Trust) -> None:
    """Each machine of the entry answers, is trusted, lets us in and can work; or a HostError says what is wrong."""
    from sshgrid.ssh.connect import dialing

    places = session.places(must_exist=False)
    how = dialing(places.config_dir, os.environ)
    try:
        passwords: list[str] = []  # one for all machines of a range, kept for no longer than this call
        for node in _nodes_to_be(places, name, fields):
            _prove_one(session, node, how, trust, passwords)
    except HostError as error:
        error.exit_status = 1
        error.hint = error.hint or "the same with --no-check writes it all the same"
        raise


def _nodes_to_be(places: Places, name: str, fields: Mapping[str, object]) -> list[Node]:
    """The nodes as they would be: what the file's `defaults` say counts for them too. UsageError for a known name."""
    from pathlib import Path

    from sshgrid import inventory
    from sshgrid.inventory import edit as inventory_edit
    from sshgrid.notation import selectors

    path = Path(places.inventory)
    text = inventory.read_file(path).decode("utf-8", "replace") if path.exists() else ""
    found = inventory.parse(inventory_edit.add_node(text, name, fields).encode(), places.inventory)
    names = set(selectors.expand(name))
    return [node for node in found.nodes if node.name in names]


def _prove_one(session: Session, node: Node, how: Dialing, trust: Trust, passwords: list[str]) -> None:
    from sshgrid.cli import keys
    from sshgrid.ssh import probe

    copied = False
    for _ in range(keys.MAX_JUMPS + 2):
        try:
            probe.first_contact(node, how)
            return
        except HostKeyUnknown as error:
            if not trust.accept_new and not _can_ask(session):
                error.hint = "compare it with the machine's own, then say the same with --accept-new"
                raise
            keys.confirm(session, node, error.fingerprint, error.line, ask=not trust.accept_new)
        except LoginRefused as error:
            if copied:
                error.reason += "; your public key is in its authorized_keys, but sshd does not take it from there"
                raise LoginRefused(node.name, error.reason, "ask whoever runs that machine") from error
            if not trust.copy_key:
                error.hint = error.hint or "the same with --copy-key lets your key in"
                raise
            keys.copy(session, node, how, passwords)
            copied = True


def _can_ask(session: Session) -> bool:
    return not session.no_input and session.err.terminal


# --- the file --------------------------------------------------------------------------------------------------------


def write(session: Session, name: str, fields: Mapping[str, object]) -> list[str]:
    """The entry into the file; the lines that came into it."""
    from sshgrid.client.inventory_change import edit_inventory
    from sshgrid.inventory import edit as inventory_edit

    return edit_inventory(session, lambda text: inventory_edit.add_node(text, name, fields), create=True)


def show(session: Session, lines: Sequence[str], nodes: Sequence[NodeLine]) -> int:
    """What was written, and the nodes as the master now has them. NodeIll when one of them does not work."""
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
    ill = [node for node in nodes if node.state in ("DOWN", "UNKNOWN")]
    if ill and not session.json:
        from sshgrid.client.inventory_change import NodeFailed

        what = f"{ill[0].name} is in the inventory now, but does not work: {ill[0].reason}"
        raise NodeFailed(what, f"sshgrid node check {ill[0].name}")
    return int(bool(ill))


def written_text(path: str, lines: Sequence[str]) -> str:
    """What a command has put into the file, for people."""
    return f"written to {path}:\n" + "".join(f"{line}\n" for line in lines)


def _table(session: Session, nodes: Sequence[NodeLine]) -> str:
    from sshgrid.terminal import render

    return render.table(render.NODE_HEADER, map(render.node_row, nodes), session.out, right=render.NODE_RIGHT)
