"""The master as a process: its lock, its Unix socket, its SSH gateway, and the inventory file that it follows.

Every connection is a session of its own, and any number of them may ask at once. The socket is for its owner alone: its
mode is 0600, and the user of the peer is checked. A state folder has at most one master.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import signal
import socket
import stat
import struct
import sys
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.daemon.inventory_file import InventoryFile
from sshgrid.errors import StoreError
from sshgrid.gateway.address import GatewayAddress
from sshgrid.master import Master
from sshgrid.model import Phase, Role, User
from sshgrid.nodes import NodePool
from sshgrid.paths import Places
from sshgrid.protocol.codec import encode
from sshgrid.protocol.messages import Failure, StatusReply
from sshgrid.protocol.streams import ByteReader, ByteWriter
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.queue.store import Store
from sshgrid.server.connected_clients import ConnectedClients
from sshgrid.server.session import ClientSession
from sshgrid.spool.disk import private_directory
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import dialing_from_environ, hush_abandoned_transfers, read_in_smaller_pieces
from sshgrid.version import VERSION

if TYPE_CHECKING:
    from sshgrid.gateway.server import Gateway

log = logging.getLogger(__name__)

INVENTORY_LOOK_SECONDS = 0.5
READ_LIMIT = 256 * 1024


def run(places: Places, idle_exit_seconds: float | None, gateway: GatewayAddress | None = None) -> int:
    """Serve until stopped; return the exit status of the process.

    `idle_exit_seconds`: stop after this time without work and without clients; None: never. Raises StoreError or
    InventoryError when the master cannot start.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    os.umask(0o077)
    state = Path(places.state_dir)
    private_directory(state, forbidden=0o077)
    lock = _lock(state / "master.lock")
    try:
        _open_audit_log(state / "audit.log")
        asyncio.run(_serve(places, idle_exit_seconds, gateway))
    finally:
        os.close(lock)
    return 0


def _lock(path: Path) -> int:
    """Take the lock of the state folder; the kernel releases it when the process ends. Raises StoreError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise StoreError(f"another master already works in {path.parent}", "sshgrid master status") from error
    return descriptor


def _open_audit_log(path: Path) -> None:
    """Write logins, refusals, submissions and kills also to a file of their own, which only grows."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger("sshgrid.audit").addHandler(handler)


async def _serve(places: Places, idle_exit_seconds: float | None, gateway: GatewayAddress | None) -> None:
    daemon = Daemon(places, idle_exit_seconds, gateway)
    try:
        await daemon.run()
    finally:
        await daemon.close()


class IdleTimer:
    """Measures how long a master has had no work. `seconds`: how long it may be idle; None: without end."""

    def __init__(self, seconds: float | None, clock: Clock) -> None:
        self.seconds = seconds
        self._clock = clock
        self._last_use = clock.monotonic()

    def restart(self) -> None:
        self._last_use = self._clock.monotonic()

    @property
    def has_expired(self) -> bool:
        return self.seconds is not None and self._clock.monotonic() - self._last_use > self.seconds


class Daemon:
    """One master, its Unix socket and its SSH gateway."""

    def __init__(
        self,
        places: Places,
        idle_exit_seconds: float | None,
        gateway_address: GatewayAddress | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.places = places
        self._clock = clock
        self._started = clock.wall()
        # A master with a gateway does not leave: its users could not start another one.
        self._idle = IdleTimer(None if gateway_address else idle_exit_seconds, clock)
        self._gateway_address = gateway_address
        self._gateway: Gateway | None = None
        self._sessions: set[asyncio.Task[None]] = set()
        self._leave = asyncio.Event()
        self._draining = False
        state = Path(places.state_dir)
        self._inventory_file = InventoryFile(Path(places.inventory), state / "inventory.json")
        rng = Random()
        spool = Spool(state / "spool")
        store = Store.open(state / "queue.db")
        active_jobs = ActiveJobs(store)
        dialing = dialing_from_environ(places.config_dir, os.environ)
        pool = NodePool(store.grid, spool, dialing, rng, active_jobs.nodes_changed)
        self.master = Master(pool, active_jobs, self._inventory_file.inventory, rng, clock)
        self.clients = ConnectedClients(active_jobs.has_ended, clock)

    # --- life

    async def run(self) -> None:
        """Serve until `leave`, a signal, or the idle time is over. Raises StoreError."""
        loop = asyncio.get_running_loop()
        hush_abandoned_transfers(loop)
        read_in_smaller_pieces()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave.set)
        listener = await self._listen()
        await self._open_gateway()
        log.info("sshgrid %s serves %s at %s", VERSION, self.places.inventory, self.places.socket)
        working = asyncio.create_task(self.master.run(), name="master")
        watching = asyncio.create_task(self._watch(), name="inventory")
        leaving = asyncio.create_task(self._leave.wait(), name="leave")
        try:
            done, _ = await asyncio.wait({working, watching, leaving}, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {leaving}:
                task.result()
        finally:
            listener.close()
            if self._gateway is not None:
                await self._gateway.close()
            with contextlib.suppress(FileNotFoundError):
                Path(self.places.socket).unlink()
            for task in (working, watching, leaving, *self._sessions):
                task.cancel()
            await asyncio.gather(working, watching, leaving, *self._sessions, return_exceptions=True)

    async def _open_gateway(self) -> None:
        if self._gateway_address is None:
            return
        from sshgrid.gateway.server import Gateway  # here: the import takes a while, and most masters have no gateway

        state = Path(self.places.state_dir)
        self._gateway = Gateway(self.master.accounts, self._serve_client, state, clock=self._clock)
        await self._gateway.open(self._gateway_address.listen, self._gateway_address.port)
        if any(node.connection == "local" for node in self.master.inventory.nodes):
            log.warning("a node with `connection: local` runs users' programs as the owner of this master")

    async def _listen(self) -> asyncio.Server:
        path = Path(self.places.socket)
        private_directory(path.parent, forbidden=0o077)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise StoreError(f"{path}: is in the place of the master's socket", "move it away")
            path.unlink()
        listener = await asyncio.start_unix_server(self._accept, path, limit=READ_LIMIT)
        path.chmod(0o600)  # until now the mode of the folder has kept others out
        return listener

    async def close(self) -> None:
        await self.master.close()
        log.info("the master has stopped")

    def leave(self, drain: bool) -> None:
        """Stop at once, while runs continue on their nodes; with `drain` start nothing new and stop when they end."""
        if drain:
            self._draining = True
            self.master.pause()
        else:
            self._leave.set()

    # --- clients

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._sessions.add(task)
        try:
            user = _peer(writer.get_extra_info("socket"))
            if user is None:
                writer.write(encode(Failure("not-allowed", "this master serves only its owner", "", 1)))
                await writer.drain()
            else:
                await self._serve_client(reader, writer, User(user, Role.OWNER), "local")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            log.debug("a client has left: %s", error)
        except asyncio.CancelledError:  # the master leaves; asyncio would log this as an error
            pass
        finally:
            self._sessions.discard(task)
            self._idle.restart()
            writer.close()

    async def _serve_client(self, reader: ByteReader, writer: ByteWriter, user: User, address: str) -> None:
        """Answer the requests of an authenticated client until it leaves."""
        await ClientSession(self, reader, writer, user, address).serve()

    def status(self) -> StatusReply:
        """What `master status` shows."""
        import psutil  # here: the import would delay every start of a master

        master, process = self.master, psutil.Process()
        cpu = process.cpu_times()
        return StatusReply(
            pid=os.getpid(),
            version=VERSION,
            socket=self.places.socket,
            state_dir=self.places.state_dir,
            inventory=self.places.inventory,
            inventory_error=self.inventory_error,
            uptime_seconds=self._clock.wall() - self._started,
            nodes=len(master.pool.nodes),
            jobs_by_state=master.job_queries.counts(),
            clients=len(self._sessions),
            memory_bytes=process.memory_info().rss,
            cpu_seconds=cpu.user + cpu.system,
            gateway=self._gateway.address if self._gateway else "",
            gateway_key=self._gateway.fingerprint if self._gateway else "",
            ended_last_minute=master.active_jobs.ended_last_minute(),
        )

    # --- the inventory file, and idleness

    @property
    def inventory_error(self) -> str:
        """What is wrong with the inventory file; "" when the master uses it as it is."""
        return self._inventory_file.error

    async def reload(self) -> None:
        """Read the inventory file now."""
        await self._inventory_file.reload(self.master.use_inventory)

    async def reload_if_changed(self) -> None:
        """Read the inventory file when it has changed, so that a request is answered by the newest one."""
        await self._inventory_file.reload_if_changed(self.master.use_inventory)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(INVENTORY_LOOK_SECONDS)
            await self.reload_if_changed()
            await self._inventory_file.while_not_reading(self.master.drop_removed_nodes)
            self._leave_when_done()

    def _leave_when_done(self) -> None:
        """Leave when the master is drained, or has been idle for too long."""
        active_jobs = self.master.active_jobs
        if self._sessions or not active_jobs.idle:
            self._idle.restart()
        if self._draining and not active_jobs.in_phase(Phase.RUNNING):
            self._leave.set()
        if self._idle.has_expired:
            log.info("idle for %.0f s", self._idle.seconds)
            self._leave.set()


def _peer(peer: socket.socket) -> str | None:
    """The name of the user at the other end; None for a user other than the owner of this process and root."""
    import pwd

    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if user not in (os.getuid(), 0):
        return None
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
