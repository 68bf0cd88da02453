"""The SSH gateway: an SSH server through which the users of this grid reach the master with an ordinary `ssh`.

A command runs as the ordinary command line in a worker process (sshgrid.gateway.workers), `sshgrid-wire` carries the
protocol of sshgrid.protocol.messages, and SFTP leads into the user's folder. Forwarding, agents and a shell of the host
are not offered; connections are limited in number. Every login and every refusal is in the audit log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh

from sshgrid.gateway import listener as frame
from sshgrid.gateway.channel import Channel
from sshgrid.gateway.login_throttle import LoginThrottle
from sshgrid.gateway.sftp import Room, UserFolder
from sshgrid.gateway.workers import Workers
from sshgrid.model import User
from sshgrid.spool.disk import private_directory
from sshgrid.users.credentials import Busy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sshgrid.protocol.streams import ServeClient
    from sshgrid.users.accounts import Accounts

log = logging.getLogger(__name__)
audit = logging.getLogger("sshgrid.audit")

LOGIN_SECONDS = 20
GUESSES = 3  # passwords on one connection
KEYS_OFFERED = 12  # public keys on one connection: an agent may hold many
MOST_GREETING = 20  # of one address, in the middle of a login
MOST_SILENT = 4  # of one address, that wait for us to begin
MOST_ARRIVING = 100  # of one address, not logged in: those above MOST_GREETING wait for their turn
MOST_ARRIVING_IN_ALL = 200
YOUNG_SECONDS = 2.0  # when there are too many, who came longer ago than this and is not in has to go,
SILENT_SECONDS = 0.3  # or who has not said a word for so long
MOST_CHANNELS = 16  # commands at once on one connection
MOST_CONNECTIONS = 500
MOST_CONNECTIONS_OF_ONE = 100
IDLE_SECONDS = 600.0  # a connection without a channel
KEEPALIVE_SECONDS = 30
MAX_NAME = 64


class Arrival:
    """A connection on its way to a login."""

    def __init__(self, sock: socket.socket, address: str) -> None:
        self.sock, self.address = sock, address
        self.since = time.monotonic()
        self.spoke = False
        self.handed = False  # to asyncssh, which closes the socket itself


class Gateway:
    """Listens once it is open; `address` says where."""

    def __init__(self, accounts: Accounts, serve_client: ServeClient, state: Path) -> None:
        self.accounts = accounts
        self.serve_client = serve_client
        self.children = Workers()
        self.guard = LoginThrottle()
        self.fingerprint = ""
        self.address = ""
        self._state = state
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._arriving: dict[asyncio.Task[None], Arrival] = {}
        self._turns: dict[tuple[str, bool], asyncio.Semaphore] = {}
        self._inside: dict[Visitor, User] = {}
        self._rooms: dict[str, Room] = {}

    # --- life

    async def open(self, listen: str, port: int) -> None:
        """Raises StoreError when the address is taken or the host key cannot be trusted."""
        key = frame.host_key(self._state / "door_host_key")
        self.fingerprint = key.get_fingerprint()
        self._options = _options(self, key)
        self._listener = frame.listen(listen, port)
        host, number, *_ = self._listener.getsockname()
        self.address = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
        private_directory(self._state / "users", forbidden=0o077)
        frame.raise_open_files()
        self.children.open()
        self.accounts.on_locked_out.append(self.leave)
        self._accepting = asyncio.create_task(self._accept(), name="door")
        log.info("the door is open at %s, host key %s", self.address, self.fingerprint)

    async def close(self) -> None:
        tasks = [task for task in (self._accepting, *self._arriving) if task is not None]
        for task in tasks:
            task.cancel()
        for visitor in list(self._inside):
            visitor.connection.abort()
        if self._listener is not None:
            self._listener.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.children.close()

    def leave(self, name: str) -> None:
        """Whoever of this name is inside has to go."""
        for visitor in [visitor for visitor, person in self._inside.items() if person.name == name]:
            visitor.connection.abort()
        self._rooms.pop(name, None)

    # --- coming in

    async def _accept(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)  # a flood would never let anybody else run: what is ready is accepted at once
            try:
                sock, peer = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptors left: who is here goes on
                log.warning("a connection could not be taken: %s", error.strerror)
                await asyncio.sleep(0.1)
                continue
            arrival = Arrival(sock, str(peer[0]).removeprefix("::ffff:"))
            if not self._has_room(arrival.address):
                sock.close()
                continue
            task = loop.create_task(self._arrive(arrival), name=f"arrival from {arrival.address}")
            self._arriving[task] = arrival
            task.add_done_callback(self._arrived)

    def _arrived(self, task: asyncio.Task[None]) -> None:
        address = self._arriving.pop(task).address
        if not any(address == other.address for other in self._arriving.values()):
            for spoke in (True, False):
                self._turns.pop((address, spoke), None)

    def _has_room(self, address: str) -> bool:
        """When all places are taken, who has been at the door for long without coming in makes room."""
        if len(self._inside) >= MOST_CONNECTIONS:
            return False
        own = [task for task, arrival in self._arriving.items() if arrival.address == address]
        if len(own) >= MOST_ARRIVING:
            return self._make_room(own)
        return len(self._arriving) < MOST_ARRIVING_IN_ALL or self._make_room(list(self._arriving))

    def _make_room(self, arriving: list[asyncio.Task[None]]) -> bool:
        """By whoever came first of those that have had their time."""
        now = time.monotonic()
        for task in arriving:
            arrival = self._arriving[task]
            if now - arrival.since > (YOUNG_SECONDS if arrival.spoke else SILENT_SECONDS):
                task.cancel()
                return True
        return False

    async def _arrive(self, arrival: Arrival) -> None:
        """From the TCP connection to the login."""
        try:
            with arrival.sock.dup() as same:
                try:
                    async with asyncio.timeout(LOGIN_SECONDS):
                        await self._greet(arrival)
                except BaseException:
                    frame.hang_up(same)  # also under asyncssh, which may be in the middle of a greeting
                    raise
        except (asyncssh.Error, OSError, TimeoutError) as error:
            log.debug("%s did not come in: %s", arrival.address, error)
        except asyncio.CancelledError:  # it has to make room, or the master leaves
            log.debug("%s had to make room", arrival.address)
        finally:
            if not arrival.handed:
                arrival.sock.close()

    async def _greet(self, arrival: Arrival) -> None:
        # Clients speak at once. Who does not may wait for us to begin, or is there only to take a place: such ones have
        # few places of their own and keep nobody waiting who speaks.
        arrival.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        arrival.spoke = await frame.speaks(arrival.sock, SILENT_SECONDS)
        places = MOST_GREETING if arrival.spoke else MOST_SILENT
        async with self._turns.setdefault((arrival.address, arrival.spoke), asyncio.Semaphore(places)):
            arrival.handed = True
            await asyncssh.run_server(arrival.sock, options=self._options)

    def came_in(self, visitor: Visitor, person: User) -> bool:
        """False when there are too many."""
        inside = Counter(each.name for each in self._inside.values())
        if len(self._inside) >= MOST_CONNECTIONS or inside[person.name] >= MOST_CONNECTIONS_OF_ONE:
            return False
        self._inside[visitor] = person
        return True

    def went(self, visitor: Visitor) -> None:
        self._inside.pop(visitor, None)

    # --- inside

    def folder(self, name: str) -> Path:
        """The user's own, made when it is missing."""
        path = self._state / "users" / name
        private_directory(path, forbidden=0o077)
        return path

    def room(self, name: str) -> Room:
        return self._rooms.setdefault(name, Room(self.folder(name), lambda: self.accounts.caps(name).upload_bytes))

    async def serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """One channel: a command, a shell, or our own protocol."""
        visitor: Visitor | None = process.get_extra_info("connection").get_owner()
        if visitor is None:  # gone already
            return
        person = visitor.person
        if person is None or visitor.channels >= MOST_CHANNELS:
            process.stderr.write(b"error: too many commands at once on one connection\n")
            process.exit(1)
            return
        with visitor.channel():
            await Channel(self, process, person, visitor.address).serve()


class Visitor(asyncssh.SSHServer):
    """One connection, from its first byte."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._guesses = 0
        self._offered = 0
        self._said = ""  # the name that was said last
        self._proved = ""  # the name of the last validation that succeeded, and how
        self._how = ""
        self.channels = 0
        self._idle: asyncio.TimerHandle | None = None
        self.person: User | None = None
        self.address = ""

    # asyncssh's own words from here on

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self.connection = conn
        self.address = str(conn.get_extra_info("peername", ("?",))[0]).removeprefix("::ffff:")

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.went(self)
        if self._idle is not None:
            self._idle.cancel()
        if self.person is not None:
            audit.info("%s left, from %s", self.person.name, self.address)
        elif self._guesses or self._offered:
            audit.warning("%s was refused, from %s", ascii(self._said[:MAX_NAME]), self.address)

    def begin_auth(self, username: str) -> bool:
        self._said = username
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return self._accounts.any_password  # the same for everybody, so that it tells nothing of anybody

    @property
    def _accounts(self) -> Accounts:
        return self._gateway.accounts

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self._offered += 1
        if self._offered > KEYS_OFFERED:
            self._send_away("too many keys")
            return False
        user = self._accounts.find(username)
        fingerprint = key.get_fingerprint()
        if user is None or not any(each.fingerprint == fingerprint for each in user.keys):
            return False
        self._proved, self._how = username, f"key {fingerprint}"
        return True

    async def validate_password(self, username: str, password: str) -> bool:
        self._guesses += 1
        if self._guesses > GUESSES:
            self._send_away("too many guesses")
            return False
        guard = self._gateway.guard
        # Before it is looked at, not after: who does not wait for the answer gains nothing.
        await asyncio.sleep(guard.wait_seconds(self.address, username, time.monotonic()))
        user = self._accounts.find(username)
        try:
            fits = await self._accounts.passwords.fits(password, user.password if user else "")
        except Busy:
            fits = False
        if not fits or self._accounts.find(username) != user:
            guard.failed(self.address, username, time.monotonic())
            if self._guesses >= GUESSES:
                self._send_away("too many guesses")
            return False
        guard.succeeded(username)
        self._proved, self._how = username, "password"
        return True

    def auth_completed(self) -> None:
        name = self.connection.get_extra_info("username")
        user = self._accounts.find(self._proved) if self._proved else None
        if user is None or name != self._proved:
            self._send_away("not proved")
            return
        person = User(user.name, user.role)
        if not self._gateway.came_in(self, person):
            audit.warning("%s was turned away: too many connections, from %s", user.name, self.address)
            self._send_away("too many connections")
            return
        self.person = person
        audit.info("%s came in by %s, from %s", user.name, self._how, self.address)
        self._rest()

    def _send_away(self, why: str) -> None:
        self.connection.disconnect(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, why)

    # --- idleness

    @contextlib.contextmanager
    def channel(self) -> Iterator[None]:
        """While one is served the connection is not idle."""
        self.channels += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            yield
        finally:
            self.channels -= 1
            if not self.channels:
                self._rest()

    def _rest(self) -> None:
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(IDLE_SECONDS, self._send_away, "idle")


def _options(gateway: Gateway, key: asyncssh.SSHKey) -> asyncssh.SSHServerConnectionOptions:
    return asyncssh.SSHServerConnectionOptions(
        server_factory=lambda: Visitor(gateway),
        server_host_keys=[key],
        server_version="sshgrid",
        process_factory=gateway.serve,
        sftp_factory=lambda channel: _sftp(gateway, channel),
        allow_scp=False,
        encoding=None,
        line_editor=False,
        agent_forwarding=False,
        x11_forwarding=False,
        gss_host=None,
        kbdint_auth=False,
        host_based_auth=False,
        login_timeout=LOGIN_SECONDS,
        keepalive_interval=KEEPALIVE_SECONDS,
        **frame.algorithms(),
    )


def _sftp(gateway: Gateway, channel: asyncssh.SSHServerChannel[bytes]) -> UserFolder:
    visitor: Visitor | None = channel.get_extra_info("connection").get_owner()
    if visitor is None or visitor.person is None:
        raise asyncssh.SFTPPermissionDenied("not logged in")
    return UserFolder(channel, gateway.room(visitor.person.name))
