"""The actions of the monitor's keys: cancel a job, drain a node, fetch a page of text.

Each is one short exchange with the master. Nothing is printed; the result is returned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import assert_never

from sshgrid.client.connection import Connection, to_error
from sshgrid.client.poll import ANSWER_SECONDS, Snapshot, request_all
from sshgrid.client.session import Session
from sshgrid.errors import MasterGone, SshgridError
from sshgrid.model import JobId
from sshgrid.monitor.draw import HELP
from sshgrid.monitor.view import Action, Command, Page
from sshgrid.notation.quantities import format_duration, format_size
from sshgrid.protocol.messages import Cancel, Done, Ended, Failure, Info, JobsReply, Logs, NodeLine, Output
from sshgrid.terminal import render

LOG_LINES = 500
LOG_BYTES = 256 * 1024


def perform(session: Session, command: Command, snapshot: Snapshot | None) -> Page | str:
    """A page to show, or a message about the result."""
    try:
        return _perform(session, command, snapshot)
    except SshgridError as error:
        return error.message
    except OSError as error:
        return str(error.strerror or error)


def _perform(session: Session, command: Command, snapshot: Snapshot | None) -> Page | str:
    subject = command.subject
    match command.action:
        case Action.HELP:
            return Page(command, "keys of the monitor", tuple(HELP.splitlines()))
        case Action.NODE:
            return _node_page(command, snapshot)
        case Action.JOB:
            from sshgrid.terminal.info import info_text

            with session.connect_running() as connection:
                reply: JobsReply = request_all(connection, [Info(JobId(int(subject)))], [JobsReply])[0]
            return Page(command, f"job {subject}", tuple(info_text(render.TextStyle(), reply.jobs[0]).splitlines()))
        case Action.LOGS:
            with session.connect_running() as connection:
                lines = read_output(connection, JobId(int(subject)))
            return Page(command, f"output of job {subject}", lines, None)
        case Action.KILL:
            with session.connect_running() as connection:
                cancelled: Done = request_all(connection, [Cancel((JobId(int(subject)),), "TERM")], [Done])[0]
            return f"job {subject} is being cancelled" if cancelled.count else f"job {subject} has already ended"
        case Action.DRAIN | Action.RESUME:
            return _drained(session, subject, command.action is Action.DRAIN)
        case Action.LEAVE:
            return ""
        case _:
            assert_never(command.action)


def _drained(session: Session, node: str, drained: bool) -> str:
    from sshgrid.client.inventory_change import set_drained

    set_drained(session, node, drained=drained)
    return f"{node} takes no more jobs" if drained else f"{node} takes jobs again"


def read_output(connection: Connection, job: JobId) -> tuple[str, ...]:
    """The last lines of the output of a job, and its state once it has ended."""
    kept = bytearray()
    connection.send(Logs(job, tail_lines=LOG_LINES, streams=("compile", "stdout", "stderr")))
    for message, payload in _events(connection):
        if isinstance(message, Output):
            kept += payload
            del kept[:-LOG_BYTES]
        elif isinstance(message, Ended):
            end = () if message.job.exit_status is None else ("", f"[{message.job.state}]")
            return (*kept.decode("utf-8", "replace").replace("\r\n", "\n").split("\n"), *end)
        elif isinstance(message, Failure):
            raise to_error(message)
    raise AssertionError("_events() ends by an exception")


def _events(connection: Connection) -> Iterator[tuple[object, bytes]]:
    while True:
        yield from connection.buffered()
        if not connection.wait(time.monotonic() + ANSWER_SECONDS):
            raise MasterGone(f"the master does not answer (waited {ANSWER_SECONDS:.0f} s)")
        connection.read_once()


def _node_page(command: Command, snapshot: Snapshot | None) -> Page | str:
    node = next((line for line in snapshot.nodes if line.name == command.subject), None) if snapshot else None
    if node is None:
        return f"{command.subject} is no longer in the inventory"
    return Page(command, f"node {node.name}", tuple(render.pairs(_about(node), render.TextStyle()).splitlines()))


def _about(node: NodeLine) -> list[tuple[str, str]]:
    again = node.next_try_seconds
    return [
        ("node", node.name),
        ("state", str(node.state)),
        ("reason", node.reason),
        ("next try", "" if again is None else f"in {format_duration(round(again))}"),
        ("last seen", render.local_time(node.last_seen)),
        ("cpu", "" if node.cpu is None else f"{node.cpu:.0%}"),
        ("load", "" if node.load is None else f"{node.load:.2f}"),
        ("memory", "" if node.memory_free is None else f"{format_size(node.memory_free)} free"),
        ("cores", str(node.cores or "")),
        ("runs", f"{node.running} of {'-' if node.slots is None else node.slots}"),
        ("tags", ", ".join(node.tags)),
        ("isolation", node.isolation),
        ("toolchains", ", ".join(node.toolchains)),
    ]
