"""`doctor`: all settings with their sources, and the problems of this machine and the nodes, each with a hint.

`doctor` changes nothing.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from sshgrid.cli.base import NODES_EPILOG, Verb, pass_session
from sshgrid.cli.complete import complete_nodes
from sshgrid.client.session import Session
from sshgrid.errors import NoSuchNode, SshgridError
from sshgrid.model import Struct

if TYPE_CHECKING:
    from sshgrid.paths import Places
    from sshgrid.protocol.messages import NodeFindings, NodeLine


class Setting(Struct, frozen=True):
    """One setting and the source of its value."""

    name: str
    value: str
    source: str


MIN_FREE_BYTES = 100 << 20  # with less free space, an upload or output may stop the master


class Check(Struct, frozen=True):
    """The result of one check; `hint` is a command that fixes the problem."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


@click.command(cls=Verb, epilog=NODES_EPILOG)
@click.argument("selector", metavar="[SEL]", default="", shell_complete=complete_nodes)
@pass_session
def doctor(session: Session, selector: str) -> int:
    """Show all settings and their sources, then check inventory, state folder, master and nodes.

    With SEL, check only these nodes and show every check. Exits with 1 if a check fails.
    """
    places = session.places(must_exist=False)
    values = [] if selector else list(_values(session, places))
    checks = [_check_inventory(places), _check_state(places), _check_disk(places)]
    if all(check.ok for check in checks):
        checks += _check_master(session, selector, whole=bool(selector))
    session.show(lambda: _doctor_object(values, checks), lambda: _doctor_text(session, values, checks))
    return 0 if all(check.ok for check in checks) else 1


def _values(session: Session, places: Places) -> Iterator[Setting]:
    from sshgrid.paths import PACKAGE_DIR
    from sshgrid.version import VERSION

    yield Setting("version", VERSION, PACKAGE_DIR)
    yield Setting("python", sys.version.split()[0], sys.executable)
    yield Setting("inventory", places.inventory, places.inventory_source)
    yield Setting("state_dir", places.state_dir, places.state_source)
    yield Setting("socket", places.socket, places.state_source)
    yield Setting("log", places.log, places.state_source)
    yield Setting("config_dir", places.config_dir, _config_source(session))
    yield Setting("color", session.color, _color_source(session))
    yield Setting("ssh_agent", session.environ.get("SSH_AUTH_SOCK", "none"), "SSH_AUTH_SOCK")


def _config_source(session: Session) -> str:
    return next((name for name in ("SSHGRID_HOME", "XDG_CONFIG_HOME") if session.environ.get(name)), "default")


def _color_source(session: Session) -> str:
    if session.color != "auto":
        return "--color"
    if session.environ.get("NO_COLOR"):
        return "NO_COLOR"
    return "TERM" if session.environ.get("TERM") == "dumb" else "default"


def _check_inventory(places: Places) -> Check:
    from pathlib import Path

    from sshgrid import inventory

    try:
        found = inventory.load(Path(places.inventory))
    except SshgridError as error:
        return Check("inventory", False, error.message, error.hint)
    return Check("inventory", True, f"{len(found.nodes)} nodes")


def _check_state(places: Places) -> Check:
    from sshgrid.paths import private_dir

    try:
        private_dir(places.state_dir)
        private_dir(os.path.dirname(places.socket))
    except SshgridError as error:
        return Check("state_dir", False, error.message, error.hint)
    return Check("state_dir", True, "private")


def _check_disk(places: Places) -> Check:
    """The free space of the state folder: the master stops when it cannot write its queue."""
    import psutil

    from sshgrid.notation.quantities import format_size

    try:
        free = psutil.disk_usage(places.state_dir).free
    except OSError as error:
        return Check("disk", False, f"{places.state_dir}: {error.strerror}", "sshgrid master start")
    enough = free >= MIN_FREE_BYTES
    return Check(
        "disk",
        enough,
        f"{format_size(free)} free",
        "" if enough else f"free some space on the disk of {places.state_dir}",
    )


def _check_master(session: Session, selector: str, *, whole: bool) -> Iterator[Check]:
    """Check the master and the nodes; `whole`: yield all checks of a node, not only those that failed."""
    from sshgrid.protocol.messages import Diagnose, DiagnoseReply, Nodes, NodesReply, Status, StatusReply

    try:
        with session.connect() as connection:
            reply = connection.request(Status(), StatusReply)
            # Diagnose dials: an unreachable node costs its connect_timeout once, not twice.
            found = connection.request(Diagnose(selector), DiagnoseReply).nodes
            lines = connection.request(Nodes(selector), NodesReply).nodes
    except NoSuchNode as error:
        yield Check(f"node {selector}", False, error.message, error.hint)
        return
    except SshgridError as error:
        yield Check("master", False, error.message, error.hint)
        return
    yield Check("master", True, f"pid {reply.pid}, version {reply.version}")
    for line in lines:
        yield _check_node(line)
        yield from _node_findings(line, found, whole=whole)


def _node_findings(line: NodeLine, found: Sequence[NodeFindings], *, whole: bool) -> Iterator[Check]:
    if line.state in ("DOWN", "UNKNOWN"):
        return  # the check of the node reports the reason
    for node in found:
        for each in node.findings if node.node == line.name else ():
            if whole or not each.ok:
                yield Check(f"node {line.name}: {each.name}", each.ok, each.detail, each.hint)


def _check_node(line: NodeLine) -> Check:
    down = line.state in ("DOWN", "UNKNOWN")
    detail = line.reason or ",".join(line.toolchains) or str(line.state)
    return Check(f"node {line.name}", not down, detail, f"sshgrid node check {line.name}" if down else "")


def _doctor_object(values: list[Setting], checks: list[Check]) -> dict[str, object]:
    import msgspec

    return {
        "schema": 1,
        "values": msgspec.to_builtins(values),
        "checks": msgspec.to_builtins(checks),
        "ok": all(check.ok for check in checks),
    }


def _doctor_text(session: Session, values: list[Setting], checks: list[Check]) -> str:
    from sshgrid.terminal.render import table

    style = session.out
    text = table(("SETTING", "VALUE", "FROM"), ((each.name, each.value, each.source) for each in values), style) + "\n"
    rows = [(each.name, "ok" if each.ok else "FAILED", each.detail, each.hint) for each in checks]
    return text * bool(values) + table(("CHECK", "RESULT", "DETAIL", "HINT"), rows, style)
