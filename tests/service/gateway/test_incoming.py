"""Connections that have not logged in: how many are served, and which is closed for a new one, by a set clock."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest

from sshgrid.clock import Clock
from sshgrid.gateway.incoming import IncomingConnections
from sshgrid.gateway.limits import GatewayLimits
from sshgrid.gateway.listener import listen
from sshgrid.testing import until

LIMITS = GatewayLimits(incoming=2, incoming_per_address=10, silent_seconds=0.05, young_seconds=10.0)


class Server:
    """Accepts connections whose login never completes."""

    def __init__(self, limits: GatewayLimits) -> None:
        self.now = 0.0
        self.full = False
        self.logins = 0
        self.clients: list[asyncio.StreamWriter] = []
        self._listener = listen("127.0.0.1", 0)
        self.port = self._listener.getsockname()[1]
        self.incoming = IncomingConnections(
            self._log_in, lambda: self.full, limits, Clock(lambda: 0.0, lambda: self.now)
        )

    def start(self) -> None:
        self.incoming.start(self._listener)

    async def _log_in(self, sock: socket.socket) -> None:
        self.logins += 1
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            sock.close()

    async def connect(self) -> asyncio.StreamReader:
        """A client that sends something at once."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(writer)
        writer.write(b"SSH-2.0-test\r\n")
        return reader

    async def close(self) -> None:
        for writer in self.clients:
            writer.close()
        await self.incoming.close()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    server = Server(LIMITS)
    server.start()
    yield server
    await server.close()


async def is_closed(reader: asyncio.StreamReader) -> bool:
    """Wait for the end of a connection that the server closes."""
    async with asyncio.timeout(10):
        try:
            return await reader.read(1) == b""
        except ConnectionError:
            return True


async def logging_in(server: Server, count: int) -> None:
    await until(lambda: server.logins == count, lambda: (server.logins, len(server.incoming)))


async def test_a_connection_over_the_limit_is_closed_while_the_others_are_young(server: Server) -> None:
    for number in (1, 2):
        await server.connect()
        await logging_in(server, number)
    assert await is_closed(await server.connect())
    assert (server.logins, len(server.incoming)) == (2, 2)


async def test_a_connection_over_the_limit_takes_the_place_of_the_oldest_one(server: Server) -> None:
    oldest = await server.connect()
    await logging_in(server, 1)
    server.now = 5.0
    await server.connect()
    await logging_in(server, 2)
    server.now = 10.1
    await server.connect()
    assert await is_closed(oldest)
    await logging_in(server, 3)
    assert len(server.incoming) == 2


async def test_no_connection_is_accepted_while_all_places_for_users_are_taken(server: Server) -> None:
    server.full = True
    assert await is_closed(await server.connect())
    server.full = False
    await server.connect()
    await logging_in(server, 1)


async def test_silent_clients_do_not_keep_out_a_client_that_sends_something() -> None:
    server = Server(GatewayLimits(silent_per_address=1))
    server.start()
    for _ in range(3):
        server.clients.append((await asyncio.open_connection("127.0.0.1", server.port))[1])
    await until(lambda: server.logins == 1 and len(server.incoming) == 3, lambda: (server.logins, len(server.incoming)))
    await server.connect()
    await logging_in(server, 2)
    await server.close()
