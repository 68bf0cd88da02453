"""`inventory` and `node`: the file that says which machines there are, shown, checked and edited by command.

Everything heavy (pydantic, yaml) is imported inside the functions. Refuses to trust a host key that nobody confirmed.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from sshgrid.cli.base import Verbs, complete_nodes, pass_session
from sshgrid.cli.session import Session
from sshgrid.errors import InventoryError, MasterGone, SshgridError, UsageError

if TYPE_CHECKING:
    from sshgrid.inventory import Inventory
    from sshgrid.model import Node
    from sshgrid.paths import Places
    from sshgrid.wire import NodeLine

_ADDRESS = re.compile(
    r"(?:(?P<user>[^@]+)@)?(?:\[(?P<ipv6>[0-9A-Fa-f:.%\w]+)\]|(?P<host>[^:@\[\]]+))(?::(?P<port>\d+))?"
)
MAX_JUMPS = 8  # each host on the way has a key
_LOGIN_REFUSED = "login refused"
_UNKNOWN_KEY = "unknown host key"  # how HostKeyUnknown begins


class NodeIll(SshgridError):
    """A node that was asked about does not work."""

    code = "node-down"
    exit_status = 1


# --- inventory -------------------------------------------------------------------------------------------------------


@click.group("inventory", cls=Verbs)
def inventory_group() -> None:
    """Check and show inventory.yaml."""


@inventory_group.command()
@pass_session
def check(session: Session) -> int:
    """Read the inventory and say everything that is wrong with it. Exit 1 when something is."""
    try:
        found = _load(session.places())
    except InventoryError as error:
        error.exit_status = 1  # that was the question; elsewhere it is why nothing could be done
        raise
    session.show(
        lambda: {"schema": 1, "path": found.path, "valid": True, "nodes": len(found.nodes), "digest": found.digest},
        lambda: f"{found.path}: {len(found.nodes)} node{'s' * (len(found.nodes) != 1)}, no errors\n",
    )
    return 0


@inventory_group.command("show")
@pass_session
def show_inventory(session: Session) -> int:
    """Print what is in force: ranges expanded, defaults merged."""
    from sshgrid import inventory

    found = _load(session.places())
    session.show(lambda: inventory.show(found), lambda: inventory.show_yaml(found))
    return 0


@inventory_group.command()
@pass_session
def path(session: Session) -> int:
    """Print which file is used."""
    places = session.places(must_exist=False)
    session.show(
        lambda: {"schema": 1, "path": places.inventory, "source": places.inventory_source},
        lambda: f"{places.inventory}\n",
    )
    return 0


@inventory_group.command()
@pass_session
def schema(session: Session) -> int:
    """Print the JSON Schema of the file, for editors."""
    import json

    from sshgrid import inventory

    found = inventory.json_schema()
    session.show(lambda: found, lambda: json.dumps(found, indent=2) + "\n")
    return 0


def _load(places: Places) -> Inventory:
    from pathlib import Path

    from sshgrid import inventory

    return inventory.load(Path(places.inventory))


def _edit(session: Session, change: Callable[[str], str], *, create: bool = False) -> Places:
    """Change the file and tell the master, if one runs; it would see it by itself a little later."""
    from pathlib import Path

    from sshgrid import client
    from sshgrid.inventory import edit as inventory_edit
    from sshgrid.wire import Done, Reload

    places = session.places(must_exist=not create)
    if create:
        os.makedirs(os.path.dirname(places.inventory), mode=0o700, exist_ok=True)
    inventory_edit.edit_file(Path(places.inventory), change, create)
    try:
        with client.connect(places, start=False, say=session.warn) as connection:
            connection.ask(Reload(), Done)
    except MasterGone:
        pass  # whoever starts next reads the new file
    return places


# --- node ------------------------------------------------------------------------------------------------------------


@click.group("node", cls=Verbs)
def node_group() -> None:
    """Edit the nodes of the inventory; every comment in it stays."""


@node_group.command()
@click.argument("name")
@click.argument("address", metavar="[[USER@]HOST[:PORT]]", required=False)
@click.option("--ssh-config", metavar="ALIAS", help="A Host of your ssh_config.")
@click.option("--tag", metavar="T", multiple=True, help="For --on @T; may be given often.")
@click.option("--slots", metavar="N", type=click.IntRange(1), help="Runs at a time; as many as it has cores.")
@click.option("--local", is_flag=True, help="This machine itself, without sshd.")
@click.option("--accept-new", is_flag=True, help="Trust the key of a host never seen before, without asking.")
@click.option("--copy-key", is_flag=True, help="Install your public key there with ssh-copy-id, which asks a password.")
@pass_session
def add(session: Session, /, name: str, address: str | None, accept_new: bool, copy_key: bool, **fields: Any) -> int:
    """Add a node to the inventory, see whether it works, and confirm its host key."""
    from sshgrid.inventory import edit as inventory_edit

    written = node_fields(address, **fields)
    places = _edit(session, lambda text: inventory_edit.add_node(text, name, written), create=True)
    session.say(f"{name} is in {places.inventory}")
    return _checked(session, name, accept_new=accept_new, added=True, copy_key=copy_key)


def node_fields(
    address: str | None, ssh_config: str | None, tag: Sequence[str], slots: int | None, *, local: bool
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
    if slots is not None:
        fields["slots"] = slots
    if tag:
        fields["tags"] = list(tag)
    return fields


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


@node_group.command("rm")
@click.argument("selector", metavar="SEL", shell_complete=complete_nodes)
@pass_session
def remove(session: Session, selector: str) -> int:
    """Take nodes out of the inventory; what runs there may end."""
    from sshgrid.inventory import edit as inventory_edit

    names = _names(session, selector)
    _edit(session, lambda text: inventory_edit.remove_nodes(text, names))
    return _changed(session, names)


@node_group.command()
@click.argument("selector", metavar="SEL", shell_complete=complete_nodes)
@pass_session
def drain(session: Session, selector: str) -> int:
    """Start nothing more on these nodes; what runs there may end."""
    return set_drained(session, selector, drained=True)


@node_group.command()
@click.argument("selector", metavar="SEL", shell_complete=complete_nodes)
@pass_session
def resume(session: Session, selector: str) -> int:
    """Undo `drain`."""
    return set_drained(session, selector, drained=False)


def set_drained(session: Session, selector: str, *, drained: bool) -> int:
    """Write into the inventory that these nodes take no more jobs, or take them again."""
    from sshgrid.inventory import edit as inventory_edit

    names = _names(session, selector)
    _edit(session, lambda text: inventory_edit.set_all_drained(text, names, drained))
    return _changed(session, names)


def _changed(session: Session, names: Sequence[str]) -> int:
    if session.json:
        session.show(lambda: {"schema": 1, "nodes": list(names)}, str)
    return 0


def _names(session: Session, selector: str) -> tuple[str, ...]:
    return tuple(node.name for node in _nodes(session, selector))


def _nodes(session: Session, selector: str) -> tuple[Node, ...]:
    from sshgrid import selectors

    return selectors.nodes(selector, _load(session.places()).nodes)


@node_group.command("check")
@click.argument("selector", metavar="SEL", default="", shell_complete=complete_nodes)
@click.option("--accept-new", is_flag=True, help="Trust the keys of hosts never seen before, without asking.")
@pass_session
def check_nodes(session: Session, selector: str, accept_new: bool) -> int:
    """Connect to nodes now, and say what each one is and has. Exit 1 when one does not work."""
    return _checked(session, selector, accept_new=accept_new)


def _checked(session: Session, selector: str, *, accept_new: bool, added: bool = False, copy_key: bool = False) -> int:
    from sshgrid.cli.query import show_nodes

    lines = _ask_nodes(session, selector)
    unknown = [line for line in lines if _UNKNOWN_KEY in line.reason]
    asked = accept_new or (added and not session.no_input and session.err.terminal)
    if unknown and asked and _accept_keys(session, unknown, ask=not accept_new):
        lines = _ask_nodes(session, selector)
    if copy_key and any(_LOGIN_REFUSED in line.reason for line in lines):
        _copy_key(session, selector)
        lines = _ask_nodes(session, selector)
    show_nodes(session, list(lines))
    ill = [line for line in lines if line.state in ("DOWN", "UNKNOWN")]
    if ill and not session.json:
        raise _ill(ill[0], added=added)
    return int(bool(ill))


def _ill(line: NodeLine, *, added: bool) -> NodeIll:
    was_added = "is in the inventory now, but " if added else ""
    accept = " --accept-new" if _UNKNOWN_KEY in line.reason else ""
    return NodeIll(f"{line.name} {was_added}does not work: {line.reason}", f"sshgrid node check {line.name}{accept}")


def _ask_nodes(session: Session, selector: str) -> tuple[NodeLine, ...]:
    from sshgrid.wire import CheckNodes, NodesReply

    with session.connect() as connection:
        return connection.ask(CheckNodes(selector), NodesReply).nodes


def _accept_keys(session: Session, lines: Sequence[NodeLine], *, ask: bool) -> bool:
    """Show each unknown key on the way to these nodes; write down those that are confirmed. True when there was one."""
    from sshgrid.dial import dialing, unknown_host_key

    places, accepted = session.places(), False
    how = dialing(places.config_dir, os.environ)
    for node in _nodes(session, ",".join(line.name for line in lines)):
        known_hosts = os.path.expanduser(node.known_hosts or os.path.join(places.config_dir, "known_hosts"))
        for _ in range(MAX_JUMPS):
            found = unknown_host_key(node, how)
            if found is None:
                break
            fingerprint, line = found
            session.warn(f"{node.name}: host key {fingerprint} of {line.split()[0]}")
            if ask and not session.confirm("Is this the key of that machine?", "sshgrid node check NAME --accept-new"):
                break
            remember_key(known_hosts, line)
            accepted = True
    return accepted


def _copy_key(session: Session, selector: str) -> None:
    """The user's public key onto the node, by OpenSSH's own tool: the password is asked there and never seen here."""
    import subprocess

    if session.no_input:
        raise UsageError("--copy-key asks for a password, and --no-input forbids that")
    known_hosts = os.path.join(session.places().config_dir, "known_hosts")
    for node in _nodes(session, selector):
        target = node.ssh_config or (f"{node.user}@{node.host}" if node.user else node.host)
        command = ["ssh-copy-id", "-o", f'UserKnownHostsFile="{known_hosts}" ~/.ssh/known_hosts']
        command += ["-p", str(node.port)] if node.port else []
        command += ["-i", os.path.expanduser(node.identity_file)] if node.identity_file else []
        if subprocess.run([*command, "--", target], check=False).returncode != 0:
            raise UsageError(f"ssh-copy-id could not install your key on {target}", f"ssh-copy-id {target}")


def remember_key(known_hosts: str, line: str) -> None:
    """Append one line, durably; the file is ours alone (0600)."""
    os.makedirs(os.path.dirname(known_hosts), mode=0o700, exist_ok=True)
    descriptor = os.open(known_hosts, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, line.strip().encode() + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
