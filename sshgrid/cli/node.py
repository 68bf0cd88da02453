"""`node`: add, remove, drain and check nodes of the inventory, and run commands on them.

Large modules (pydantic, yaml) are imported inside the functions. A host key is trusted only after the user confirms it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sshgrid.cli.base import DURATION, NODES_EPILOG, Verbs, pass_session
from sshgrid.cli.complete import complete_nodes
from sshgrid.client.inventory_change import (
    UNKNOWN_HOST_KEY,
    NodeFailed,
    edit_inventory,
    load,
    print_changed,
    select_names,
    select_nodes,
    set_drained,
)
from sshgrid.client.session import Session

if TYPE_CHECKING:
    from sshgrid.protocol.messages import NodeLine


@click.group("node", cls=Verbs)
def node_group() -> None:
    """Add, remove, check and drain nodes. Comments in the inventory stay."""


@node_group.command()
@click.argument("name")
@click.argument("address", metavar="[[USER@]HOST[:PORT]]", required=False)
@click.option("--ssh-config", metavar="ALIAS", help="Host alias of your ssh_config.")
@click.option("--tag", metavar="T", multiple=True, help="Tag for --on @T; can be repeated.")
@click.option(
    "--slots", metavar="N", type=click.IntRange(1), help="Number of simultaneous runs (default: number of cores)."
)
@click.option("--identity-file", metavar="FILE", help="Private key to log in with (default: your usual ones).")
@click.option("--local", is_flag=True, help="Add this machine, without sshd.")
@click.option("--accept-new", is_flag=True, help="Accept an unknown host key without asking.")
@click.option(
    "--copy-key", is_flag=True, help="Install your public key there; asks for the password of the account once."
)
@click.option("--no-check", is_flag=True, help="Add the node without connecting to it.")
@pass_session
def add(session: Session, /, name: str, address: str | None, **options: Any) -> int:
    """Check a machine and add it to the inventory.

    Connects to the machine and checks that it can run jobs. An unknown host key is shown for confirmation. If the check
    fails, the inventory is not changed.
    """
    from sshgrid.cli import node_add

    trust = node_add.Trust(options.pop("accept_new"), options.pop("copy_key"))
    checks = not options.pop("no_check")
    written = node_add.node_fields(address, **options)
    if checks:
        node_add.check(session, name, written, trust)
    lines = node_add.write(session, name, written)
    return node_add.show(session, lines, check_nodes_now(session, name) if checks else ())


@node_group.command("rm", epilog=NODES_EPILOG)
@click.argument("selector", metavar="SEL", shell_complete=complete_nodes)
@pass_session
def remove(session: Session, selector: str) -> int:
    """Remove nodes from the inventory. Jobs that run there continue to their end."""
    from sshgrid.inventory import edit as inventory_edit

    names = select_names(session, selector)
    edit_inventory(session, lambda text: inventory_edit.remove_nodes(text, names))
    return print_changed(session, names)


@node_group.command(epilog=NODES_EPILOG)
@click.argument("selector", metavar="SEL", shell_complete=complete_nodes)
@pass_session
def drain(session: Session, selector: str) -> int:
    """Start no more jobs on these nodes. Jobs that run there continue to their end."""
    return set_drained(session, selector, drained=True)


@node_group.command(epilog=NODES_EPILOG)
@click.argument("selector", metavar="SEL", shell_complete=complete_nodes)
@pass_session
def resume(session: Session, selector: str) -> int:
    """Start jobs on drained nodes again."""
    return set_drained(session, selector, drained=False)


@node_group.command("check", epilog=NODES_EPILOG)
@click.argument("selector", metavar="SEL", default="", shell_complete=complete_nodes)
@click.option("--accept-new", is_flag=True, help="Accept unknown host keys without asking.")
@pass_session
def check_nodes(session: Session, selector: str, accept_new: bool) -> int:
    """Connect to nodes and show their state and toolchains. Exits with 1 if one does not work."""
    return _check(session, selector, accept_new=accept_new)


def _check(session: Session, selector: str, *, accept_new: bool) -> int:
    from sshgrid.cli import keys
    from sshgrid.cli.query import show_nodes

    lines = check_nodes_now(session, selector)
    unknown = [line.name for line in lines if UNKNOWN_HOST_KEY in line.reason]
    if unknown and accept_new:
        keys.accept(session, select_nodes(session, ",".join(unknown)))
        lines = check_nodes_now(session, selector)
    show_nodes(session, list(lines))
    failed = [line for line in lines if line.state in ("DOWN", "UNKNOWN")]
    if failed and not session.json:
        raise NodeFailed(f"{failed[0].name} does not work: {failed[0].reason}", _remedy(session, failed[0]))
    return int(bool(failed))


def _remedy(session: Session, line: NodeLine) -> str:
    """The hint for a node that does not work; "" without one."""
    from sshgrid.cli import keys

    if UNKNOWN_HOST_KEY in line.reason:
        return f"sshgrid node check {line.name} --accept-new"
    if session.master:
        return ""  # the inventory and known_hosts are on the machine of that master
    nodes = [node for node in load(session.places()).nodes if node.name == line.name]
    return keys.remedy(nodes[0], line.reason) if nodes else ""


def check_nodes_now(session: Session, selector: str) -> tuple[NodeLine, ...]:
    """The state of these nodes after the master has connected to them again."""
    from sshgrid.protocol.messages import CheckNodes, NodesReply

    with session.connect() as connection:
        return connection.request(CheckNodes(selector), NodesReply).nodes


@node_group.command("exec", epilog=NODES_EPILOG)
@click.argument("selector", metavar="SEL", shell_complete=complete_nodes)
@click.argument("argv", metavar="-- CMD..", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option(
    "--time-limit", metavar="D", type=DURATION, default="60s", help="Stop the command after this time (default: 60s)."
)
@pass_session
def execute(session: Session, selector: str, argv: tuple[str, ...], time_limit: float) -> int:
    """Run a command on several nodes and print equal outputs once.

    CMD is a program and its arguments, not a line for a shell; for a pipe, use `-- sh -c 'a | b'`. Its standard input
    is empty. Exits with 0 if the command exits with 0 on every node, else with 1.
    """
    from sshgrid.cli import node_exec

    return node_exec.execute(session, selector, argv, time_limit)
