"""The SSH gateway: an SSH server through which the users of this grid reach the master with an ordinary `ssh`.

A command runs as the ordinary command line in a worker process (sshgrid.gateway.workers), `sshgrid-wire` carries the
protocol of sshgrid.protocol.messages, and SFTP leads into the user's folder. Forwarding, agents and a shell of the host
are not offered; connections are limited in number. Every login and every refusal is in the audit log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import asyncssh

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.gateway import listener
from sshgrid.gateway.channel import Channel
from sshgrid.gateway.incoming import IncomingConnections
from sshgrid.gateway.limits import DEFAULT_LIMITS, GatewayLimits
from sshgrid.gateway.login_throttle import LoginThrottle
from sshgrid.gateway.sftp import FolderQuota, UserFolder
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

KEEPALIVE_SECONDS = 30
MAX_LOGGED_NAME = 64


class Gateway:
    """One SSH gateway. After `open`, `address` is where it listens and `fingerprint` that of its host key."""

    def __init__(
        self,
        accounts: Accounts,
        serve_client: ServeClient,
        state: Path,
        limits: GatewayLimits = DEFAULT_LIMITS,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.accounts = accounts
        self.serve_client = serve_client
        self.limits = limits
        self.clock = clock
        self.workers = Workers()
        self.throttle = LoginThrottle()
        self.fingerprint = ""
        self.address = ""
        self._state = state
        self._incoming: IncomingConnections | None = None
        self._logged_in: dict[GatewayConnection, User] = {}
        self._quotas: dict[str, FolderQuota] = {}

    async def open(self, listen: str, port: int) -> None:
        """Start to listen. Raises StoreError when the address is in use or the host key can be read by others."""
        key = listener.load_host_key(self._state)
        self.fingerprint = key.get_fingerprint()
        sock = listener.listen(listen, port)
        host, number, *_ = sock.getsockname()
        self.address = f"[{host}]:{number}" if ":" in host else f"{host}:{number}"
        private_directory(self._state / "users", forbidden=0o077)
        listener.raise_open_files_limit()
        self.workers.open()
        self.accounts.on_locked_out.append(self.disconnect)
        options = _options(self, key)
        self._incoming = IncomingConnections(
            lambda sock: asyncssh.run_server(sock, options=options), self._is_full, self.limits, self.clock
        )
        self._incoming.start(sock)
        log.info("the SSH gateway listens at %s, host key %s", self.address, self.fingerprint)

    async def close(self) -> None:
        """Close all connections and end their worker processes."""
        for connection in list(self._logged_in):
            connection.abort()
        if self._incoming is not None:
            await self._incoming.close()
        self.workers.close()

    # --- connections that have logged in

    @property
    def connections(self) -> int:
        """How many connections have logged in."""
        return len(self._logged_in)

    def _is_full(self) -> bool:
        return self.connections >= self.limits.connections

    def add(self, connection: GatewayConnection, user: User) -> bool:
        """Count a connection that has logged in; False when there are too many."""
        of_user = Counter(each.name for each in self._logged_in.values())[user.name]
        if self._is_full() or of_user >= self.limits.connections_per_user:
            return False
        self._logged_in[connection] = user
        return True

    def remove(self, connection: GatewayConnection) -> None:
        self._logged_in.pop(connection, None)

    def disconnect(self, name: str) -> None:
        """Close all connections of a user."""
        for connection in [each for each, user in self._logged_in.items() if user.name == name]:
            connection.abort()
        self._quotas.pop(name, None)

    # --- channels

    def folder(self, name: str) -> Path:
        """The folder of this user, created when it is missing."""
        path = self._state / "users" / name
        private_directory(path, forbidden=0o077)
        return path

    def quota(self, name: str) -> FolderQuota:
        """The quota of this user's folder, shared by all SFTP sessions of the user."""
        return self._quotas.setdefault(
            name, FolderQuota(self.folder(name), lambda: self.accounts.caps(name).upload_bytes)
        )

    async def serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """Serve one channel: a command, the interactive shell, or the protocol."""
        connection: GatewayConnection | None = process.get_extra_info("connection").get_owner()
        if connection is None:  # closed already
            return
        user = connection.user
        if user is None or connection.channels >= self.limits.channels_per_connection:
            process.stderr.write(b"error: too many commands at once on one connection\n")
            process.exit(1)
            return
        with connection.channel():
            await Channel(self, process, user, connection.address).serve()


class GatewayConnection(asyncssh.SSHServer):
    """One SSH connection from its first byte: authenticates the user, and closes when it is idle."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._passwords = 0  # tried
        self._keys = 0  # offered
        self._name = ""  # the user name that was given last
        self._proved = ""  # the user name of the last proof that succeeded, and the kind of proof
        self._method = ""
        self.channels = 0
        self._idle: asyncio.TimerHandle | None = None
        self.user: User | None = None
        self.address = ""
        self._connection: asyncssh.SSHServerConnection | None = None

    def abort(self) -> None:
        """Close the connection at once."""
        if self._connection is not None:
            self._connection.abort()

    # --- called by asyncssh

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self.address = str(conn.get_extra_info("peername", ("?",))[0]).removeprefix("::ffff:")

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.remove(self)
        if self._idle is not None:
            self._idle.cancel()
        if self.user is not None:
            audit.info("%s disconnected from %s", self.user.name, self.address)
        elif self._passwords or self._keys:
            audit.warning("login of %s from %s was refused", ascii(self._name[:MAX_LOGGED_NAME]), self.address)

    def begin_auth(self, username: str) -> bool:
        self._name = username
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return self._accounts.any_password  # not that of this user: the answer would say whether the user exists

    @property
    def _accounts(self) -> Accounts:
        return self._gateway.accounts

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self._keys += 1
        if self._keys > self._gateway.limits.keys_per_connection:
            self._disconnect("too many keys")
            return False
        account = self._accounts.find(username)
        fingerprint = key.get_fingerprint()
        if account is None or not any(each.fingerprint == fingerprint for each in account.keys):
            return False
        self._proved, self._method = username, f"key {fingerprint}"
        return True

    async def validate_password(self, username: str, password: str) -> bool:
        most = self._gateway.limits.passwords_per_connection
        self._passwords += 1
        if self._passwords > most:
            self._disconnect("too many passwords")
            return False
        throttle, clock = self._gateway.throttle, self._gateway.clock
        # Wait before the password is checked: a client that does not wait for the answer gains nothing.
        await asyncio.sleep(throttle.wait_seconds(self.address, username, clock.monotonic()))
        account = self._accounts.find(username)
        try:
            fits = await self._accounts.passwords.fits(password, account.password if account else "")
        except Busy:
            fits = False
        if not fits or self._accounts.find(username) != account:
            throttle.failed(self.address, username, clock.monotonic())
            if self._passwords >= most:
                self._disconnect("too many passwords")
            return False
        throttle.succeeded(username)
        self._proved, self._method = username, "password"
        return True

    def auth_completed(self) -> None:
        assert self._connection is not None
        name = self._connection.get_extra_info("username")
        account = self._accounts.find(self._proved) if self._proved else None
        if account is None or name != self._proved:
            self._disconnect("not authenticated")
            return
        user = User(account.name, account.role)
        if not self._gateway.add(self, user):
            audit.warning("login of %s from %s was refused: too many connections", account.name, self.address)
            self._disconnect("too many connections")
            return
        self.user = user
        audit.info("%s logged in with %s from %s", account.name, self._method, self.address)
        self._start_idle_timer()

    def _disconnect(self, reason: str) -> None:
        if self._connection is not None:
            self._connection.disconnect(asyncssh.DISC_NO_MORE_AUTH_METHODS_AVAILABLE, reason)

    # --- idleness

    @contextlib.contextmanager
    def channel(self) -> Iterator[None]:
        """Count a channel; the connection is idle when it has none."""
        self.channels += 1
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        try:
            yield
        finally:
            self.channels -= 1
            if not self.channels:
                self._start_idle_timer()

    def _start_idle_timer(self) -> None:
        loop = asyncio.get_running_loop()
        self._idle = loop.call_later(self._gateway.limits.idle_seconds, self._disconnect, "idle")


def _options(gateway: Gateway, key: asyncssh.SSHKey) -> asyncssh.SSHServerConnectionOptions:
    return asyncssh.SSHServerConnectionOptions(
        server_factory=lambda: GatewayConnection(gateway),
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
        login_timeout=gateway.limits.login_seconds,
        keepalive_interval=KEEPALIVE_SECONDS,
        **listener.algorithms(),
    )


def _sftp(gateway: Gateway, channel: asyncssh.SSHServerChannel[bytes]) -> UserFolder:
    connection: GatewayConnection | None = channel.get_extra_info("connection").get_owner()
    if connection is None or connection.user is None:
        raise asyncssh.SFTPPermissionDenied("not logged in")
    return UserFolder(channel, gateway.quota(connection.user.name))
