"""One channel of an SSH connection: a worker process on pipes or on a terminal, or the protocol without a worker.

Bytes are passed on unchanged in both directions, at the pace of the slower side, so a client that does not read costs
what the pipes and the SSH window hold. A command that is too long is refused, as is one more than MOST_WORKERS.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import signal
import socket
import struct
import termios
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Protocol, TypeAlias

import asyncssh

from sshgrid.gateway import worker_messages
from sshgrid.gateway.worker_messages import WorkerRequest
from sshgrid.gateway.workers import Worker, WorkerFailed, Workers
from sshgrid.model import User
from sshgrid.protocol.streams import ServeClient

log = logging.getLogger(__name__)

PROTOCOL_COMMAND = "sshgrid-wire"  # as a command or a subsystem: the channel carries the protocol
PIECE_BYTES = 64 * 1024
MOST_CONNECTIONS = 16  # to the master, of one worker at a time
MOST_WORKERS = 256
GRACE_SECONDS = 2.0
_ENVIRONMENT = re.compile(r"TERM|LANG|LC_[A-Z]+")
_VALUE = re.compile(r"[A-Za-z0-9@._:+-]{1,64}")
_SIGNALS = {"HUP", "INT", "QUIT", "TERM", "KILL", "USR1", "USR2", "ALRM", "PIPE"}
Pump: TypeAlias = Callable[[], Coroutine[None, None, None]]
Process = asyncssh.SSHServerProcess[bytes]


class ChannelHost(Protocol):
    """What a channel needs of the gateway."""

    serve_client: ServeClient
    workers: Workers

    def folder(self, name: str) -> Path: ...


class Channel:
    """Serves one channel, from its request to its exit status."""

    def __init__(self, gateway: ChannelHost, process: Process, user: User, address: str) -> None:
        self._gateway = gateway
        self._process = process
        self._user = user
        self._address = address
        self._sessions: set[asyncio.Task[None]] = set()  # connections of the worker to the master
        self._open: list[int] = []  # descriptors to close here

    async def serve(self) -> None:
        """Never raises for what the client does."""
        process = self._process
        try:
            if PROTOCOL_COMMAND in (process.command, process.subsystem):
                await self._gateway.serve_client(
                    _ChannelReader(process.stdin), process.stdout, self._user, self._address
                )
                process.exit(0)
            elif process.subsystem is not None:
                self._refuse(f"no such subsystem: {process.subsystem[:80]}")
            else:
                await self._serve_command(os.fsencode(process.command or ""))
        except WorkerFailed as error:
            self._refuse(error.message)
        except (asyncssh.Error, OSError) as error:
            log.debug("a channel of %s ended: %s", self._user.name, error)
        finally:
            await self._close_all()
            process.close()

    def _refuse(self, reason: str) -> None:
        self._process.stderr.write(f"error: {reason}\n".encode("utf-8", "backslashreplace"))
        self._process.exit(2)

    async def _serve_command(self, command: bytes) -> None:
        if len(command) > worker_messages.MAX_COMMAND_BYTES:
            most = worker_messages.MAX_COMMAND_BYTES
            self._refuse(f"the command has {len(command):,} bytes; the limit is {most:,}")
        elif b"\0" in command:
            self._refuse("a command cannot hold a NUL byte")
        elif len(self._gateway.workers) >= MOST_WORKERS:
            self._refuse("too many commands run at once; try again")
        else:
            await self._run_worker(command)

    async def _close_all(self) -> None:
        for task in self._sessions:
            task.cancel()
        await asyncio.gather(*self._sessions, return_exceptions=True)
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    # --- the worker process

    async def _run_worker(self, command: bytes) -> None:
        process = self._process
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # asks for connections to the master
        ours.setblocking(False)
        loop = asyncio.get_running_loop()
        with ours, theirs:
            streams, pumps = self._terminal() if process.term_type is not None else self._pipes()
            request = WorkerRequest(
                0,
                command,
                self._user.name,
                self._user.role,
                str(self._gateway.folder(self._user.name)),
                self._environment(),
                terminal=process.term_type is not None,
                shell=process.command is None,
            )
            worker = self._gateway.workers.start(request, [theirs.fileno(), *streams])
            self._close(*streams)
            theirs.close()
            self._forward_signals(worker)
            loop.add_reader(ours, self._connect_worker, ours)
            try:
                await self._wait(worker, pumps)
            finally:
                loop.remove_reader(ours)

    async def _wait(self, worker: Worker, pumps: list[Pump]) -> None:
        """Copy both output streams to their end, then send the status. End the worker when the client is gone."""
        feeding, *showing = [asyncio.create_task(pump()) for pump in pumps]
        gone = asyncio.create_task(self._process.wait_closed())
        shown = asyncio.create_task(_all(showing))
        try:
            await asyncio.wait({shown, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                shown.result()
                self._send_status(await worker.ended)
        finally:
            for task in (feeding, gone, shown, *showing):
                task.cancel()
            await asyncio.gather(feeding, gone, shown, return_exceptions=True)
            await _end(worker)

    def _send_status(self, status: int) -> None:
        if status >= 0:
            self._process.exit(status)
            return
        with contextlib.suppress(ValueError):
            self._process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))

    def _environment(self) -> dict[str, str]:
        """The type of the terminal and the language; other variables of the client are ignored."""
        found = {"TERM": self._process.term_type} if self._process.term_type else {}
        for name, value in self._process.env.items():
            if _ENVIRONMENT.fullmatch(str(name)):
                found[str(name)] = str(value)
        return {name: value for name, value in found.items() if value and _VALUE.fullmatch(value)}

    # --- streams

    def _pipes(self) -> tuple[list[int], list[Pump]]:
        """Descriptors for the worker, and the pumps between our ends and the channel."""
        (in_theirs, in_ours), (out_ours, out_theirs), (err_ours, err_theirs) = os.pipe(), os.pipe(), os.pipe()
        self._open += [in_theirs, in_ours, out_ours, out_theirs, err_ours, err_theirs]
        process = self._process

        async def feed() -> None:
            await _feed(process, in_ours)
            self._close(in_ours)

        pumps: list[Pump] = [
            feed,
            lambda: _show(out_ours, process.stdout),
            lambda: _show(err_ours, process.stderr),
        ]
        for descriptor in (in_ours, out_ours, err_ours):
            os.set_blocking(descriptor, False)
        return [in_theirs, out_theirs, err_theirs], pumps

    def _terminal(self) -> tuple[list[int], list[Pump]]:
        ours, theirs = os.openpty()
        self._open += [ours, theirs]
        os.set_blocking(ours, False)
        columns, rows, *_ = self._process.term_size
        _resize(ours, columns, rows)
        process = self._process
        # asyncssh would queue a new size after input that the worker does not read.
        vars(process)["terminal_size_changed"] = lambda columns, rows, *_: _resize(ours, columns, rows)
        return [theirs], [lambda: _feed(process, ours), lambda: _show(ours, process.stdout)]

    def _close(self, *descriptors: int) -> None:
        for descriptor in descriptors:
            if descriptor in self._open:
                self._open.remove(descriptor)
                os.close(descriptor)

    def _forward_signals(self, worker: Worker) -> None:
        def signal_received(name: str) -> None:
            if name in _SIGNALS:
                worker.signal(signal.Signals[f"SIG{name}"])

        def break_received(_milliseconds: int) -> bool:
            signal_received("INT")
            return True

        vars(self._process).update(signal_received=signal_received, break_received=break_received)

    # --- the worker's connections to the master

    def _connect_worker(self, sock: socket.socket) -> None:
        """Answer a worker that asks for a connection: pass it one end of a socket pair, serve the user on the other."""
        loop = asyncio.get_running_loop()
        try:
            if not sock.recv(64):
                raise ConnectionError("the worker has ended")
        except BlockingIOError:
            return
        except OSError:
            loop.remove_reader(sock)
            return
        if len(self._sessions) >= MOST_CONNECTIONS:
            with contextlib.suppress(OSError):
                sock.send(b"no")
            return
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):
            socket.send_fds(sock, [b"connection"], [theirs.fileno()])
        task = loop.create_task(self._serve_session(ours))
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)

    async def _serve_session(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        try:
            await self._gateway.serve_client(reader, writer, self._user, self._address)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            log.debug("a worker process closed its connection: %s", error)
        finally:
            writer.close()


class _ChannelReader:
    """The bytes that a client sends on its channel. A broken SSH connection is raised as ConnectionResetError."""

    def __init__(self, reader: asyncssh.SSHReader[bytes]) -> None:
        self._reader = reader

    async def read(self, n: int = -1, /) -> bytes:
        while True:
            try:
                return await self._reader.read(n)
            except (asyncssh.BreakReceived, asyncssh.SignalReceived, asyncssh.TerminalSizeChanged):
                continue  # the protocol has messages of its own for these
            except asyncssh.Error as error:
                raise ConnectionResetError(str(error)) from error


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)


async def _end(worker: Worker) -> None:
    """End the worker with HUP, as when a terminal is closed, and with KILL after GRACE_SECONDS."""
    if worker.ended.done():
        return
    worker.signal(signal.SIGHUP)
    await asyncio.wait([worker.ended], timeout=GRACE_SECONDS)
    worker.signal(signal.SIGKILL)


def _resize(terminal: int, columns: int, rows: int) -> None:
    size = (min(max(number, 0), 65535) for number in (rows, columns))
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


async def _feed(process: Process, target: int) -> None:
    """Write what the client sends to `target`, to its end."""
    with contextlib.suppress(asyncssh.Error, OSError):
        while piece := await _next_piece(process):
            await _write(target, piece)


async def _next_piece(process: Process) -> bytes:
    while True:
        try:
            return await process.stdin.read(PIECE_BYTES)
        except (asyncssh.TerminalSizeChanged, asyncssh.SignalReceived, asyncssh.BreakReceived):
            continue


async def _show(source: int, target: asyncssh.SSHWriter[bytes]) -> None:
    """Send what the worker prints to the client, to its end."""
    while piece := await _read(source):
        target.write(piece)
        await target.drain()


async def _read(source: int) -> bytes:
    loop = asyncio.get_running_loop()
    while True:
        try:
            return os.read(source, PIECE_BYTES)
        except BlockingIOError:
            with _ready(source, loop.add_reader, loop.remove_reader) as ready:
                await ready.wait()
        except OSError:  # EIO: the last process on the terminal has ended
            return b""


async def _write(target: int, piece: bytes) -> None:
    loop = asyncio.get_running_loop()
    rest = memoryview(piece)
    while rest:
        try:
            rest = rest[os.write(target, rest) :]
        except BlockingIOError:
            with _ready(target, loop.add_writer, loop.remove_writer) as ready:
                await ready.wait()


@contextlib.contextmanager
def _ready(descriptor: int, watch: Callable[..., object], forget: Callable[[int], object]) -> Iterator[asyncio.Event]:
    """An event that is set while the descriptor is ready."""
    event = asyncio.Event()
    watch(descriptor, event.set)
    try:
        yield event
    finally:
        forget(descriptor)
