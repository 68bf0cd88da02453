"""`sshgrid monitor`: nodes, jobs and clients on the whole screen, or once as text.

The screen's contents are values (view, draw) and its keys and colours are prompt_toolkit's (screen). Refuses a screen
where there is no terminal.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from sshgrid.client.poll import Snapshot, ask_picture
from sshgrid.errors import UsageError

if TYPE_CHECKING:
    from sshgrid.client.session import Session


def print_once(session: Session) -> int:
    """One picture to stdout: text, or one value with --json."""
    from sshgrid.monitor.draw import plain

    with session.connect() as connection:
        picture = ask_picture(connection)
    look = session.out
    session.show(lambda: as_object(picture), lambda: plain(picture, look.columns))
    return 0


def look_on(session: Session) -> int:
    """Until the person leaves. Starts the master when there is none; later only waits for one."""
    from sshgrid.monitor.screen import MonitorScreen

    if sys.stdin is None or not sys.stdin.isatty() or not session.out.terminal:
        raise UsageError("the monitor needs a terminal", "sshgrid monitor --once")
    session.connect().close()
    MonitorScreen(session).run()
    return 0


def as_object(picture: Snapshot) -> dict[str, object]:
    """For --json."""
    from sshgrid.terminal import render

    status = picture.status
    nodes = [render.node_object(node) | {"cpu_minute": list(node.cpu_minute)} for node in picture.nodes]
    return {
        "schema": render.SCHEMA,
        "at": render.iso(picture.at),
        "version": status.version,
        "uptime_seconds": status.uptime_seconds,
        "inventory_error": status.inventory_error,
        "jobs_by_state": status.jobs_by_state,
        "ended_last_minute": status.ended_last_minute,
        "nodes": nodes,
        "jobs": [render.job_object(job, full=False) for job in picture.jobs],
        "clients": [render.client_object(client) for client in picture.clients],
    }
