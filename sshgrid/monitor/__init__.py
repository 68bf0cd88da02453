"""`sshgrid monitor`: nodes, jobs and clients live on the full screen, or printed once as text.

The content of the screen is made of values (view, draw); its keys and colours are those of prompt_toolkit (screen). The
full screen needs a terminal.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sshgrid.client.poll import Snapshot, fetch_snapshot
from sshgrid.errors import UsageError

if TYPE_CHECKING:
    from sshgrid.client.session import Session


def print_once(session: Session) -> int:
    """Print one snapshot to stdout, as text or with --json as one value."""
    from sshgrid.monitor.draw import plain

    with session.connect() as connection:
        snapshot = fetch_snapshot(connection)
    style = session.out
    session.show(lambda: as_object(snapshot), lambda: plain(snapshot, style.columns))
    return 0


def run_live(session: Session) -> int:
    """Show the monitor until the user leaves. Starts the master once; later the monitor waits for one."""
    from sshgrid.monitor.screen import MonitorScreen

    if sys.stdin is None or not sys.stdin.isatty() or not session.out.terminal:
        raise UsageError("the monitor needs a terminal", "sshgrid monitor --once")
    session.connect().close()
    MonitorScreen(session).run()
    return 0


def as_object(snapshot: Snapshot) -> dict[str, object]:
    """The snapshot for --json."""
    from sshgrid.terminal import render

    status = snapshot.status
    nodes = [render.node_object(node) | {"cpu_minute": list(node.cpu_minute)} for node in snapshot.nodes]
    return {
        "schema": render.SCHEMA,
        "at": render.iso(snapshot.at),
        "version": status.version,
        "uptime_seconds": status.uptime_seconds,
        "inventory_error": status.inventory_error,
        "jobs_by_state": status.jobs_by_state,
        "ended_last_minute": status.ended_last_minute,
        "nodes": nodes,
        "jobs": [render.job_object(job, full=False) for job in snapshot.jobs],
        "clients": [render.client_object(client) for client in snapshot.clients],
    }
