"""Who is connected: users at addresses, since when, how many programs they brought and how many are not over.

A person has many connections, most of them short; what is told is about the person. Refuses to grow: who has left and
has nothing running is forgotten when others come.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sshgrid.model import JobId
from sshgrid.protocol.messages import ClientLine

MOST_REMEMBERED = 1000
IsOver = Callable[[JobId], bool]


class Client:
    """One user at one address."""

    def __init__(self, user: str, address: str) -> None:
        self.user, self.address = user, address
        self.since = 0.0
        self.connections = 0
        self._programs = 0
        self._newest = JobId(0)
        self._running: set[JobId] = set()

    def brought(self, job: JobId) -> None:
        """It submitted this job; one that is sent again is not counted again."""
        if job > self._newest:
            self._newest = job
            self._programs += 1
            self._running.add(job)

    def is_here(self, is_over: IsOver) -> bool:
        """Connected, or with something that still runs."""
        self._running = {job for job in self._running if not is_over(job)}
        return bool(self.connections or self._running)

    def line(self) -> ClientLine:
        return ClientLine(self.user, self.address, self.since, self._programs, len(self._running), self.connections)


class ConnectedClients:
    """All of them. `is_over` says of a job whether it needs no more attention."""

    def __init__(self, is_over: IsOver) -> None:
        self._is_over = is_over
        self._known: dict[tuple[str, str], Client] = {}

    def came(self, user: str, address: str) -> Client:
        """A connection of theirs; `left` when it ends."""
        if len(self._known) >= MOST_REMEMBERED:
            self._known = {key: each for key, each in self._known.items() if each.is_here(self._is_over)}
        client = self._known.setdefault((user, address), Client(user, address))
        if not client.connections:
            client.since = time.time()
        client.connections += 1
        return client

    def left(self, client: Client) -> None:
        client.connections -= 1

    def lines(self) -> tuple[ClientLine, ...]:
        """Those who are here, who came first first."""
        here = [client for client in self._known.values() if client.is_here(self._is_over)]
        return tuple(client.line() for client in sorted(here, key=lambda client: client.since))
