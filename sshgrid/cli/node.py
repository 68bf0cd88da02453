"""`node`: nodes of the inventory added, removed, drained, checked, and commands run on them.

Everything heavy (pydantic, yaml) is imported inside the functions. Refuses to trust a host key that nobody confirmed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from sshgrid.cli.base import Verbs, pass_session
from sshgrid.cli.completion import complete_nodes
from sshgrid.cli.options import DURATION
from sshgrid.client.inventory_change import (
    UNKNOWN_HOST_KEY,
    NodeFailed,
    edit_inventory,
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
    """Edit the nodes of the inventory; every comment in it stays."""


@node_group.command()
@click.argument("name")
@click.argument("address", metavar="[[USER@]HOST[:PORT]]", required=False)
@click.option("--ssh-config", metavar="ALIAS", help="A Host of your ssh_config.")
@click.option("--tag", metavar="T", multiple=True, help="For --on @T; may be given often.")
@click.option("--slots", metavar="N", type=click.IntRange(1), help="Runs at a time; as many as it has cores.")
@click.option("--identity-file", metavar="FILE", help="The private key to log in with; your usual ones.")
@click.option("--local", is_flag=True, help="This machine itself, without sshd.")
@click.option("--accept-new", is_flag=True, help="Trust the key of a host never seen before, without asking.")
@click.option("--copy-key", is_flag=True, help="Let your public key in there; asks that account's password once.")
@click.option("--no-check", is_flag=True, help="Write the entry without connecting.")
@pass_session
def add(session: Session, /, name: str, address: str | None, **words: Any) -> int:
    """Connect to a machine, see whether it can work, and write it into the inventory.

    An unknown host key is shown, and asked about once. Nothing is written when the machine cannot be a node.
    """
    from sshgrid.cli import node_add

    trust = node_add.Trust(words.pop("accept_new"), words.pop("copy_key"))
    check = not words.pop("no_check")
    written = node_add.node_fields(address, **words)
    if check:
        node_add.prove(session, name, written, trust)
    lines = node_add.write(session, name, written)
    return node_add.show(session, lines, check_nodes_now(session, name) if check else ())


@node_group.command("rm")
@click.argument("selector", metavar="SEL", shell_complete=complete_nodes)
@pass_session
def remove(session: Session, selector: str) -> int:
    """Take nodes out of the inventory; what runs there may end."""
    from sshgrid.inventory import edit as inventory_edit

    names = select_names(session, selector)
    edit_inventory(session, lambda text: inventory_edit.remove_nodes(text, names))
    return print_changed(session, names)


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


@node_group.command("check")
@click.argument("selector", metavar="SEL", default="", shell_complete=complete_nodes)
@click.option("--accept-new", is_flag=True, help="Trust the keys of hosts never seen before, without asking.")
@pass_session
def check_nodes(session: Session, selector: str, accept_new: bool) -> int:
    """Connect to nodes now, and say what each one is and has. Exit 1 when one does not work."""
    return _checked(session, selector, accept_new=accept_new)


def _checked(session: Session, selector: str, *, accept_new: bool) -> int:
    from sshgrid.cli import keys
    from sshgrid.cli.query import show_nodes

    lines = check_nodes_now(session, selector)
    unknown = [line.name for line in lines if UNKNOWN_HOST_KEY in line.reason]
    if unknown and accept_new:
        keys.accept(session, select_nodes(session, ",".join(unknown)))
        lines = check_nodes_now(session, selector)
    show_nodes(session, list(lines))
    ill = [line for line in lines if line.state in ("DOWN", "UNKNOWN")]
    if ill and not session.json:
        accept = " --accept-new" if UNKNOWN_HOST_KEY in ill[0].reason else ""
        raise NodeFailed(f"{ill[0].name} does not work: {ill[0].reason}", f"sshgrid node check {ill[0].name}{accept}")
    return int(bool(ill))


def check_nodes_now(session: Session, selector: str) -> tuple[NodeLine, ...]:
    """The master's view of these nodes, once it has dialled them anew."""
    from sshgrid.protocol.messages import CheckNodes, NodesReply

    with session.connect() as connection:
        return connection.request(CheckNodes(selector), NodesReply).nodes


@node_group.command("exec")
@click.argument("selector", metavar="SEL", shell_complete=complete_nodes)
@click.argument("words", metavar="-- CMD..", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--time-limit", metavar="D", type=DURATION, default="60s", help="End it after this time (60s).")
@pass_session
def execute(session: Session, selector: str, words: tuple[str, ...], time_limit: float) -> int:
    """Run a command on nodes at once, and show what they said, alike answers once.

    CMD is a program and its arguments, not a line for a shell: `-- sh -c 'a | b'` is one. Its standard input is empty.
    Exit 0 when it ended with 0 on every node, else 1.
    """
    from sshgrid.cli import node_exec as execution

    return execution.execute(session, selector, words, time_limit)
