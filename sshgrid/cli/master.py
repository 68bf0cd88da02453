"""`master start`, `stop`, `status`, `logs` and `backup`.

An inventory has one master: `start` does nothing when it runs.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from sshgrid.cli.base import Verbs, pass_session
from sshgrid.client.session import Session
from sshgrid.daemon import IDLE_EXIT, idle_seconds
from sshgrid.errors import MasterGone, UsageError

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.gateway.address import GatewayAddress
    from sshgrid.paths import Places
    from sshgrid.protocol.messages import StatusReply

LOG_POLL_SECONDS = 0.2  # of logs --follow


@click.group(cls=Verbs)
def master() -> None:
    """Start, stop and inspect the master.

    Each inventory has one master. `run` starts it if it is missing, and it exits when it has been idle.
    """


@master.command()
@click.option("--foreground", is_flag=True, help="Run in the foreground and log to stderr.")
@click.option("--state-dir", metavar="D", help="Folder for the queue, the outputs and the socket.")
@click.option(
    "--listen",
    metavar="ADDR|none",
    help="Open the SSH gateway at this address, now and at later starts; 0.0.0.0: all addresses; none: close it.",
)
@click.option("--ssh-port", metavar="N", type=click.IntRange(0, 65535), help="Port of the SSH gateway (default: 4200).")
@click.option(
    "--idle-exit", metavar="D|never", default=IDLE_EXIT, help=f"Exit after this idle time (default: {IDLE_EXIT})."
)
@pass_session
def start(
    session: Session,
    foreground: bool,
    state_dir: str | None,
    listen: str | None,
    ssh_port: int | None,
    idle_exit: str,
) -> int:
    """Start the master of this inventory, unless it runs. With --listen, users connect with `ssh -p 4200 NAME@ADDR`."""
    from sshgrid.client.start import start_master_if_missing
    from sshgrid.gateway import address

    seconds = idle_seconds(idle_exit)
    places = session.places(state_dir=state_dir)
    if listen is not None or ssh_port is not None or foreground:
        from sshgrid.paths import private_dir

        private_dir(places.state_dir)
        gateway = address.choose(listen, ssh_port, places.state_dir)
        _check_same_gateway(places, gateway)
    if foreground:
        from sshgrid.daemon import server

        return server.run(places, seconds, gateway)
    connection = start_master_if_missing(places, (idle_exit,))
    with connection:
        _show_status(session, _status(connection), verb="runs")
    return 0


@master.command()
@click.option("--drain", is_flag=True, help="Wait until running jobs have ended; start no others.")
@pass_session
def stop(session: Session, drain: bool) -> int:
    """Stop the master. Running jobs continue, and the next master follows them."""
    from sshgrid.client.connection import START_SECONDS
    from sshgrid.client.start import find_any_version, wait_until_left
    from sshgrid.protocol.messages import Done, Stop

    places = session.places()
    connection = find_any_version(places)
    if connection is None:
        session.warn("no master is running")
        return 0
    with connection:
        connection.request(Stop(drain), Done)
    wait_until_left(places.socket, None if drain else START_SECONDS)
    session.show(lambda: {"schema": 1, "stopped": True}, str)
    return 0


@master.command()
@click.argument("file", metavar="FILE")
@pass_session
def backup(session: Session, file: str) -> int:
    """Copy the queue to FILE while the master runs.

    To restore: stop the master, remove queue.db, queue.db-wal and queue.db-shm from its state folder, and copy FILE to
    queue.db there. Programs and outputs are not in FILE but in the folder spool beside it.
    """
    from sshgrid.protocol.messages import Backup, Done

    target = os.path.abspath(file)
    with session.connect() as connection:
        connection.request(Backup(target), Done)
    session.show(lambda: {"schema": 1, "backup": target}, str)
    return 0


@master.command()
@pass_session
def status(session: Session) -> int:
    """Show the state of the master. Exits with 1 if it does not run.

    It prints the number of jobs, and the memory and CPU that the master uses.
    """
    from sshgrid.client.start import find_any_version

    connection = find_any_version(session.places())
    if connection is None:
        raise _NotRunning("no master is running for this inventory", "sshgrid master start")
    with connection:
        _show_status(session, _status(connection))
    return 0


def _check_same_gateway(places: Places, gateway: GatewayAddress | None) -> None:
    """Raise UsageError when a master runs whose SSH gateway listens at another port."""
    from sshgrid.client.start import find_any_version

    connection = find_any_version(places)
    if connection is None:
        return
    with connection:
        has = _status(connection).gateway
    expected = f":{gateway.port}" if gateway else ""
    if has.endswith(expected) if expected else not has:
        return
    raise UsageError(
        "the SSH gateway address is saved, but the running master still uses the previous one",
        "sshgrid master stop, then sshgrid master start",
    )


class _NotRunning(MasterGone):
    exit_status = 1


def _status(connection: Connection) -> StatusReply:
    from sshgrid.protocol.messages import Status, StatusReply

    return connection.request(Status(), StatusReply)


def _show_status(session: Session, reply: StatusReply, verb: str = "") -> None:
    if verb:
        gateway = f"SSH gateway at {reply.gateway}, host key {reply.gateway_key}\n" if reply.gateway else ""
        session.show(lambda: _status_object(reply), lambda: f"master {verb}, pid {reply.pid}\n{gateway}")
        return
    session.show(lambda: _status_object(reply), lambda: _status_text(session, reply))


def _status_object(reply: StatusReply) -> dict[str, object]:
    import msgspec

    value: dict[str, object] = msgspec.to_builtins(reply)
    del value["type"]
    return {"schema": 1, **value, "uptime": reply.uptime_seconds, "jobs": reply.jobs_by_state}


def _status_text(session: Session, reply: StatusReply) -> str:
    from sshgrid.notation.quantities import format_duration, format_size
    from sshgrid.terminal.render import pairs

    jobs = " ".join(f"{state} {count}" for state, count in sorted(reply.jobs_by_state.items()) if count)
    rows = (
        ("pid", str(reply.pid)),
        ("version", reply.version),
        ("socket", reply.socket),
        ("state", reply.state_dir),
        ("inventory", reply.inventory),
        ("problem", reply.inventory_error),
        ("uptime", format_duration(reply.uptime_seconds)),
        ("nodes", str(reply.nodes)),
        ("jobs", jobs or "none"),
        ("gateway", reply.gateway),
        ("gateway key", reply.gateway_key),
        ("clients", str(reply.clients)),
        ("memory", format_size(reply.memory_bytes)),
        ("cpu", format_duration(reply.cpu_seconds)),
    )
    return pairs(rows, session.out)


@master.command("logs")
@click.option("-f", "--follow", is_flag=True, help="Continue to print new lines.")
@click.option("--tail", metavar="N", type=click.IntRange(0), default=100, help="Print the last N lines (default: 100).")
@pass_session
def master_logs(session: Session, follow: bool, tail: int) -> int:
    """Print the log of the master."""
    from sshgrid.client.session import write_or_leave
    from sshgrid.terminal.render import write_out

    path = session.places().log
    try:
        with open(path, encoding="utf-8", errors="replace") as log:
            for text in _log_pieces(log.read(), tail, log.read if follow else None):
                write_or_leave(write_out, session.out.safe(text))
    except FileNotFoundError:
        raise _NotRunning(f"no log yet: {path}", "sshgrid master start") from None
    return 0


def _log_pieces(text: str, tail: int, more: object) -> Iterator[str]:
    yield "".join(text.splitlines(keepends=True)[-tail:] if tail else ())
    while callable(more):
        piece = more()
        if piece:
            yield piece
        else:
            time.sleep(LOG_POLL_SECONDS)
