"""The connected clients: users at addresses, with their connections and the jobs that they have submitted.

A user at an address is one client, however many connections it opens. A client without connections and without jobs
that run is dropped when MOST_REMEMBERED clients are known.
"""

from __future__ import annotations

from collections.abc import Callable

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.model import JobId
from sshgrid.protocol.messages import ClientLine

MOST_REMEMBERED = 1000
HasEnded = Callable[[JobId], bool]


class ConnectedClient:
    """One user at one address."""

    def __init__(self, user: str, address: str) -> None:
        self.user, self.address = user, address
        self.since = 0.0
        self.connections = 0
        self._submitted = 0
        self._newest = JobId(0)
        self._running: set[JobId] = set()

    def submitted(self, job: JobId) -> None:
        """Count a job that this client has submitted; a submission that is sent again is not counted again."""
        if job > self._newest:
            self._newest = job
            self._submitted += 1
            self._running.add(job)

    def is_present(self, has_ended: HasEnded) -> bool:
        """Whether it has a connection, or a job that has not ended."""
        self._running = {job for job in self._running if not has_ended(job)}
        return bool(self.connections or self._running)

    def line(self) -> ClientLine:
        return ClientLine(self.user, self.address, self.since, self._submitted, len(self._running), self.connections)


class ConnectedClients:
    """The clients of one master. `has_ended` returns whether a job has ended."""

    def __init__(self, has_ended: HasEnded, clock: Clock = SYSTEM_CLOCK) -> None:
        self._has_ended = has_ended
        self._clock = clock
        self._known: dict[tuple[str, str], ConnectedClient] = {}

    def connected(self, user: str, address: str) -> ConnectedClient:
        """Count a new connection; call `disconnected` with the result when it ends."""
        if len(self._known) >= MOST_REMEMBERED:
            self._known = {key: each for key, each in self._known.items() if each.is_present(self._has_ended)}
        client = self._known.setdefault((user, address), ConnectedClient(user, address))
        if not client.connections:
            client.since = self._clock.wall()
        client.connections += 1
        return client

    def disconnected(self, client: ConnectedClient) -> None:
        client.connections -= 1

    def __len__(self) -> int:
        """How many clients are remembered, present or not."""
        return len(self._known)

    def lines(self) -> tuple[ClientLine, ...]:
        """The present clients, the longest connected first."""
        present = [client for client in self._known.values() if client.is_present(self._has_ended)]
        return tuple(client.line() for client in sorted(present, key=lambda client: client.since))
