"""Connections that have not logged in: accepted, limited in number, and passed on to the SSH server.

A client that sends nothing may wait for the server to begin, or may only occupy a place. Silent clients have a few
places of their own, so that they cannot keep out the others; when all places are taken, the oldest connection that has
had its time is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

import asyncssh

from sshgrid.clock import Clock
from sshgrid.gateway.limits import GatewayLimits

log = logging.getLogger(__name__)


class IncomingConnection:
    """A TCP connection without a login."""

    def __init__(self, sock: socket.socket, address: str, since: float) -> None:
        self.sock, self.address, self.since = sock, address, since
        self.silent = True
        self.passed_on = False  # to asyncssh, which closes the socket itself


class IncomingConnections:
    """Accepts connections and runs `log_in` on each. `is_full`: no further user can be served now."""

    def __init__(
        self,
        log_in: Callable[[socket.socket], Awaitable[object]],
        is_full: Callable[[], bool],
        limits: GatewayLimits,
        clock: Clock,
    ) -> None:
        self._log_in = log_in
        self._is_full = is_full
        self._limits = limits
        self._clock = clock
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._connections: dict[asyncio.Task[None], IncomingConnection] = {}
        self._places: dict[tuple[str, bool], asyncio.Semaphore] = {}  # (address, silent) -> logins at once

    def start(self, listener: socket.socket) -> None:
        """Accept connections from this socket; `close` closes it."""
        self._listener = listener
        self._accepting = asyncio.create_task(self._accept(listener), name="SSH gateway")

    def __len__(self) -> int:
        """How many connections have not logged in."""
        return len(self._connections)

    async def close(self) -> None:
        """Accept no more connections, and close those that have not logged in."""
        tasks = [task for task in (self._accepting, *self._connections) if task is not None]
        for task in tasks:
            task.cancel()
        if self._listener is not None:
            self._listener.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(
                0
            )  # sock_accept does not yield when a connection is ready: a flood would block the loop
            try:
                sock, peer = await loop.sock_accept(listener)
            except OSError as error:  # no free descriptors: the connections that are open continue
                log.warning("cannot accept a connection: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            address = str(peer[0]).removeprefix("::ffff:")
            if not self._has_room(address):
                sock.close()
                continue
            connection = IncomingConnection(sock, address, self._clock.monotonic())
            task = loop.create_task(self._serve(connection), name=f"login from {address}")
            self._connections[task] = connection
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        address = self._connections.pop(task).address
        if not any(address == other.address for other in self._connections.values()):
            for silent in (True, False):
                self._places.pop((address, silent), None)

    def _has_room(self, address: str) -> bool:
        """Whether one more connection of this address can be served, if need be in place of an older one."""
        if self._is_full():
            return False
        own = [task for task, connection in self._connections.items() if connection.address == address]
        if len(own) >= self._limits.incoming_per_address:
            return self._close_one_of(own)
        return len(self._connections) < self._limits.incoming or self._close_one_of(list(self._connections))

    def _close_one_of(self, tasks: list[asyncio.Task[None]]) -> bool:
        """Close the oldest of these connections that has had its time; False when there is none."""
        now, limits = self._clock.monotonic(), self._limits
        for task in tasks:
            connection = self._connections[task]
            if now - connection.since > (limits.silent_seconds if connection.silent else limits.young_seconds):
                task.cancel()
                return True
        return False

    async def _serve(self, connection: IncomingConnection) -> None:
        """From the TCP connection to the login."""
        try:
            with connection.sock.dup() as same:
                try:
                    async with asyncio.timeout(self._limits.login_seconds):
                        await self._wait_and_log_in(connection)
                except BaseException:
                    _shut_down(same)  # asyncssh may hold the socket in the middle of the key exchange
                    raise
        except (asyncssh.Error, OSError, TimeoutError) as error:
            log.debug("no login from %s: %s", connection.address, error)
        except asyncio.CancelledError:  # another connection takes its place, or the master leaves
            log.debug("a connection from %s was closed before its login", connection.address)
        finally:
            if not connection.passed_on:
                connection.sock.close()

    async def _wait_and_log_in(self, connection: IncomingConnection) -> None:
        limits = self._limits
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.silent = not await _sends_something(connection.sock, limits.silent_seconds)
        places = limits.silent_per_address if connection.silent else limits.logins_per_address
        async with self._places.setdefault((connection.address, connection.silent), asyncio.Semaphore(places)):
            connection.passed_on = True
            await self._log_in(connection.sock)


def _shut_down(sock: socket.socket) -> None:
    """End the connection for every holder of the socket."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


async def _sends_something(sock: socket.socket, seconds: float) -> bool:
    """Whether bytes arrive within this time; they are not read."""
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(sock)
    return True
