"""What a live view knows of the grid: asked of the master again and again, in a thread, over one connection.

Whoever shows it never waits for a master that is slow, stopped or gone: it shows the last answer and what is wrong.
Refuses to start a master, and to print anything.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from sshgrid.client.connection import Connection, to_error
from sshgrid.errors import MasterGone, SshgridError
from sshgrid.protocol.messages import (
    ClientLine,
    Clients,
    ClientsReply,
    Failure,
    JobLine,
    Jobs,
    JobsReply,
    NodeLine,
    Nodes,
    NodesReply,
    Request,
    Status,
    StatusReply,
)

ANSWER_SECONDS = 5.0
MOST_JOBS = 500  # that are not over; there may be a hundred thousand
T = TypeVar("T")


class Snapshot(msgspec.Struct, frozen=True):
    """The grid at one moment."""

    at: float
    status: StatusReply
    nodes: tuple[NodeLine, ...] = ()
    jobs: tuple[JobLine, ...] = ()
    clients: tuple[ClientLine, ...] = ()


def fetch_snapshot(connection: Connection) -> Snapshot:
    """Everything that the monitor shows, with one wait."""
    questions = (Status(), Nodes(history=True), Jobs(active_only=True, limit=MOST_JOBS), Clients())
    status, nodes, jobs, clients = request_all(
        connection, questions, (StatusReply, NodesReply, JobsReply, ClientsReply)
    )
    return Snapshot(time.time(), status, nodes.nodes, jobs.jobs, clients.clients)


def request_all(connection: Connection, questions: Sequence[Request], answers: Sequence[type[Any]]) -> list[Any]:
    """All at once, and an answer of its kind to each. MasterGone when the master is silent for too long."""
    for question in questions:
        connection.queue(question)
    connection.flush()
    deadline = time.monotonic() + ANSWER_SECONDS
    return [_answer(connection, kind, deadline) for kind in answers]


def _answer(connection: Connection, kind: type[Any], deadline: float) -> Any:
    while (found := next(connection.buffered(), None)) is None:
        if not connection.wait(deadline):
            raise MasterGone(f"the master does not answer (waited {ANSWER_SECONDS:.0f} s)")
        connection.read_once()
    message = found[0]
    if isinstance(message, Failure):
        raise to_error(message)
    if not isinstance(message, kind):
        raise MasterGone(f"the master answered {type(message).__name__} instead of {kind.__name__}")
    return message


class Poller(Generic[T]):
    """The newest answer of `ask`, and what is wrong when there is none. `changed` is called in the feed's thread."""

    def __init__(
        self,
        connect: Callable[[], Connection],
        ask: Callable[[Connection], T],
        every_seconds: float,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect, self._ask, self._every, self._changed = connect, ask, every_seconds, changed
        self.newest: T | None = None
        self.trouble = ""  # "" while the master answers
        self._left = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)

    def __enter__(self) -> Poller[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Without waiting: the thread may be waiting for a master that has stopped."""
        self._left = True
        self._wake.set()

    def again(self) -> None:
        """Ask now: something was changed."""
        self._wake.set()

    def _work(self) -> None:
        connection: Connection | None = None
        while not self._left:
            self._wake.clear()
            try:
                connection = connection or self._connect()
                self.newest, self.trouble = self._ask(connection), ""
            except (OSError, SshgridError) as error:
                if connection is not None:
                    connection.close()
                connection, self.trouble = None, str(error)
            if not self._left:
                self._changed()
                self._wake.wait(self._every)
        if connection is not None:
            connection.close()
