"""Live views of the grid: requests to the master, repeated in a thread over one connection.

The user interface never waits for the master: it shows the newest reply and the current problem. Nothing here starts a
master or prints.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from sshgrid.client.connection import Connection, to_error
from sshgrid.clock import SYSTEM_CLOCK, Clock
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
MAX_JOBS = 500  # that have not ended; a queue may have 100,000
T = TypeVar("T")


class Snapshot(msgspec.Struct, frozen=True):
    """The grid at one moment."""

    at: float
    status: StatusReply
    nodes: tuple[NodeLine, ...] = ()
    jobs: tuple[JobLine, ...] = ()
    clients: tuple[ClientLine, ...] = ()


def fetch_snapshot(connection: Connection, clock: Clock = SYSTEM_CLOCK) -> Snapshot:
    """Request everything that the monitor shows, in one round trip."""
    requests = (Status(), Nodes(history=True), Jobs(active_only=True, limit=MAX_JOBS), Clients())
    status, nodes, jobs, clients = request_all(
        connection, requests, (StatusReply, NodesReply, JobsReply, ClientsReply), clock
    )
    return Snapshot(clock.wall(), status, nodes.nodes, jobs.jobs, clients.clients)


def request_all(
    connection: Connection, requests: Sequence[Request], replies: Sequence[type[Any]], clock: Clock = SYSTEM_CLOCK
) -> list[Any]:
    """Send all requests at once and return their replies. MasterGone after ANSWER_SECONDS without a reply."""
    for request in requests:
        connection.queue(request)
    connection.flush()
    deadline = clock.monotonic() + ANSWER_SECONDS
    return [_reply(connection, kind, deadline) for kind in replies]


def _reply(connection: Connection, kind: type[Any], deadline: float) -> Any:
    while (found := next(connection.buffered(), None)) is None:
        if not connection.wait(deadline):
            raise MasterGone(f"the master does not answer (waited {ANSWER_SECONDS:.0f} s)")
        connection.read_once()
    message = found[0]
    if isinstance(message, Failure):
        raise to_error(message)
    if not isinstance(message, kind):
        raise MasterGone(f"the master sent {type(message).__name__} instead of {kind.__name__}")
    return message


class MasterPoller(Generic[T]):
    """Calls `fetch` again and again; `newest` is its last result, `problem` an error message, "" while it succeeds.

    `changed` is called after each attempt, in the thread of the poller.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        fetch: Callable[[Connection], T],
        every_seconds: float,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self._connect, self._fetch, self._every, self._changed = connect, fetch, every_seconds, changed
        self.newest: T | None = None
        self.problem = ""
        self._stopped = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="poller", daemon=True)

    def __enter__(self) -> MasterPoller[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop, without waiting for the thread, which may be waiting for a master that does not answer."""
        self._stopped = True
        self._wake.set()

    def refresh(self) -> None:
        """Fetch now instead of after the interval."""
        self._wake.set()

    def _work(self) -> None:
        connection: Connection | None = None
        while not self._stopped:
            self._wake.clear()
            try:
                connection = connection or self._connect()
                self.newest, self.problem = self._fetch(connection), ""
            except (OSError, SshgridError) as error:
                if connection is not None:
                    connection.close()
                connection, self.problem = None, str(error)
            if not self._stopped:
                self._changed()
                self._wake.wait(self._every)
        if connection is not None:
            connection.close()
