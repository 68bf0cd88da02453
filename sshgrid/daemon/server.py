"""The master as a process: its lock, its Unix socket, and the inventory file that it follows.

Every connection is a client of its own; as many as there are may ask at once. The socket is for its owner alone (mode
0600, and the peer's user is checked). Refuses to start beside another master of the same state folder.
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
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from sshgrid.errors import InventoryError, StoreError
from sshgrid.gateway.address import GatewayAddress
from sshgrid.inventory import cache
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
from sshgrid.ssh.connect import dialing, hush_abandoned_transfers, read_in_smaller_pieces
from sshgrid.version import VERSION

if TYPE_CHECKING:
    from sshgrid.gateway.server import Gateway

log = logging.getLogger(__name__)
audit = logging.getLogger("sshgrid.audit")

INVENTORY_LOOK_SECONDS = 0.5
READ_LIMIT = 256 * 1024


def run(places: Places, idle_exit_seconds: float | None, front: GatewayAddress | None = None) -> int:
    """Serve until stopped; the exit status of the process. Raises StoreError, InventoryError before it serves."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("asyncssh").setLevel(logging.WARNING)
    os.umask(0o077)
    state = Path(places.state_dir)
    private_directory(state, forbidden=0o077)
    lock = _lock(state / "master.lock")
    try:
        _open_audit(state / "audit.log")
        asyncio.run(_serve(places, idle_exit_seconds, front))
    finally:
        os.close(lock)
    return 0


def _lock(path: Path) -> int:
    """Held for as long as the process lives, however it ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise StoreError(f"another master already works in {path.parent}", "sshgrid master status") from error
    return descriptor


def _open_audit(path: Path) -> None:
    """Who came, was refused, submitted and ended what: also in a file of its own, which only grows."""
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger("sshgrid.audit").addHandler(handler)


async def _serve(places: Places, idle_exit_seconds: float | None, front: GatewayAddress | None) -> None:
    server = Server(places, idle_exit_seconds, front)
    try:
        await server.run()
    finally:
        await server.close()


class Server:
    """One master and its door for local clients."""

    def __init__(self, places: Places, idle_exit_seconds: float | None, front: GatewayAddress | None = None) -> None:
        self.places = places
        self.started = time.time()
        self.inventory_error = ""
        self._idle_exit = None if front else idle_exit_seconds  # who has a door waits for those who may come
        self._front = front
        self._gateway: Gateway | None = None
        self._last_use = time.monotonic()
        self._sessions: set[asyncio.Task[None]] = set()
        self._leave = asyncio.Event()
        self._draining = False
        self._reloading = asyncio.Lock()
        state = Path(places.state_dir)
        self._cache = state / "inventory.json"
        self._seen = self._stamp()
        inventory = cache.load(Path(places.inventory), self._cache)
        rng = Random()
        spool = Spool(state / "spool")
        store = Store.open(state / "queue.db")
        active_jobs = ActiveJobs(store)
        how = dialing(places.config_dir, os.environ)
        pool = NodePool(store.grid, spool, how, rng, active_jobs.nodes_changed)
        self.master = Master(pool, active_jobs, inventory, rng)
        self.clients = ConnectedClients(active_jobs.is_over)

    # --- life

    async def run(self) -> None:
        """Until told to leave, or idle for long enough."""
        loop = asyncio.get_running_loop()
        hush_abandoned_transfers(loop)
        read_in_smaller_pieces()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._leave.set)
        listener = await self._listen()
        await self._open_gateway()
        log.info("sshgrid %s serves %s at %s", VERSION, self.places.inventory, self.places.socket)
        working = asyncio.create_task(self.master.run(), name="master")
        watching = asyncio.create_task(self._watch_inventory(), name="inventory")
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
        if self._front is None:
            return
        from sshgrid.gateway.server import Gateway  # only where there is one: it takes a while to import

        self._gateway = Gateway(self.master.accounts, self._serve_client, Path(self.places.state_dir))
        await self._gateway.open(self._front.listen, self._front.port)
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
        path.chmod(0o600)  # the folder lets nobody in meanwhile
        return listener

    async def close(self) -> None:
        await self.master.close()
        log.info("left")

    def leave(self, drain: bool) -> None:
        """Stop serving: at once, and runs go on; with `drain` once they have ended, while nothing new starts."""
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
                writer.write(encode(Failure("not-allowed", "this master serves its owner only", "", 1)))
                await writer.drain()
            else:
                await self._serve_client(reader, writer, User(user, Role.OWNER), "local")
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            log.debug("a client left: %s", error)
        except asyncio.CancelledError:  # the master leaves; asyncio would log this as an error of ours
            pass
        finally:
            self._sessions.discard(task)
            self._last_use = time.monotonic()
            writer.close()

    async def _serve_client(self, reader: ByteReader, writer: ByteWriter, user: User, address: str) -> None:
        """Answer the requests of an authenticated client until it leaves."""
        await ClientSession(self, reader, writer, user, address).serve()

    def status(self) -> StatusReply:
        """What `master status` shows."""
        import psutil  # only for those who ask: a cold start is waited for

        master, process = self.master, psutil.Process()
        cpu = process.cpu_times()
        return StatusReply(
            pid=os.getpid(),
            version=VERSION,
            socket=self.places.socket,
            state_dir=self.places.state_dir,
            inventory=self.places.inventory,
            inventory_error=self.inventory_error,
            uptime_seconds=time.time() - self.started,
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

    async def _watch_inventory(self) -> None:
        while True:
            await asyncio.sleep(INVENTORY_LOOK_SECONDS)
            await self.reload_if_changed()
            async with self._reloading:
                await self.master.drop_removed_nodes()
            self._leave_when_idle()

    async def reload_if_changed(self) -> None:
        """Whoever asks now is answered by the file as it is now, even when it was written this very moment."""
        if self._stamp() != self._seen:
            await self.reload()

    async def reload(self) -> None:
        """Take up the file as it is now. A broken one changes nothing and is said in `inventory_error`."""
        async with self._reloading:  # two at once would mix their lists of nodes
            await self._take_up()

    async def _take_up(self) -> None:
        self._seen = self._stamp()
        try:
            inventory = cache.load(Path(self.places.inventory), self._cache)
        except InventoryError as error:
            self.inventory_error = error.message
            log.warning("the inventory has errors and is not taken up:\n%s", error.message)
            return
        self.inventory_error = ""
        if inventory != self.master.inventory:
            log.info("inventory taken up: %d nodes", len(inventory.nodes))
            audit.info("the inventory has changed: %d nodes", len(inventory.nodes))
            await self.master.follow(inventory)

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = Path(self.places.inventory).stat()
        except OSError:
            return (0, 0, 0)
        return (found.st_mtime_ns, found.st_size, found.st_ino)

    def _leave_when_idle(self) -> None:
        if self._sessions or not self.master.active_jobs.idle:
            self._last_use = time.monotonic()
        if self._draining and not self.master.active_jobs.in_phase(Phase.RUNNING):
            self._leave.set()
        if self._idle_exit is not None and time.monotonic() - self._last_use > self._idle_exit:
            log.info("idle for %.0f s", self._idle_exit)
            self._leave.set()


def _peer(peer: socket.socket) -> str | None:
    """The name of the user at the other end; None for anybody but the owner of this process (and root)."""
    import pwd

    _, user, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    if user not in (os.getuid(), 0):
        return None
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return str(user)
