"""One channel of the door: a child of the master on pipes or on a terminal of its own, or our protocol without a child.

Bytes go through as they are, both ways at the pace of whoever is slower, so a client that does not read costs what the
pipes and the SSH window hold. Refuses commands that are too long, and more channels than a user may have.
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

WIRE = "sshgrid-wire"
PIECE_BYTES = 64 * 1024
MOST_CONNECTIONS = 16  # to the master, of one child at a time
MOST_CHILDREN = 256
GRACE_SECONDS = 2.0
_ENVIRONMENT = re.compile(r"TERM|LANG|LC_[A-Z]+")
_VALUE = re.compile(r"[A-Za-z0-9@._:+-]{1,64}")
_SIGNALS = {"HUP", "INT", "QUIT", "TERM", "KILL", "USR1", "USR2", "ALRM", "PIPE"}
Pump: TypeAlias = Callable[[], Coroutine[None, None, None]]
Process = asyncssh.SSHServerProcess[bytes]


class ChannelSlot(Protocol):
    """The door, as much of it as a channel needs."""

    serve_client: ServeClient
    children: Workers

    def folder(self, name: str) -> Path: ...


class Channel:
    """From the request to the exit status."""

    def __init__(self, gateway: ChannelSlot, process: Process, person: User, address: str) -> None:
        self._gateway = gateway
        self._process = process
        self._person = person
        self._address = address
        self._talks: set[asyncio.Task[None]] = set()
        self._open: list[int] = []  # descriptors that are ours to close

    async def serve(self) -> None:
        """Never raises for what the client does."""
        process = self._process
        try:
            if WIRE in (process.command, process.subsystem):
                await self._talk(process.stdin, process.stdout)
                process.exit(0)
            elif process.subsystem is not None:
                self._refuse(f"no such subsystem: {process.subsystem[:80]}")
            else:
                await self._serve_command(os.fsencode(process.command or ""))
        except WorkerFailed as error:
            self._refuse(error.message)
        except (asyncssh.Error, OSError) as error:
            log.debug("a channel of %s ended: %s", self._person.name, error)
        finally:
            await self._tidy_up()
            process.close()

    def _refuse(self, words: str) -> None:
        self._process.stderr.write(f"error: {words}\n".encode("utf-8", "backslashreplace"))
        self._process.exit(2)

    async def _serve_command(self, command: bytes) -> None:
        if len(command) > worker_messages.MAX_COMMAND_BYTES:
            self._refuse(
                f"a command of {len(command):,} bytes, and no more than {worker_messages.MAX_COMMAND_BYTES:,} are taken"
            )
        elif b"\0" in command:
            self._refuse("a command cannot hold a NUL byte")
        elif len(self._gateway.children) >= MOST_CHILDREN:
            self._refuse("too many commands run at once; try again")
        else:
            await self._run(command)

    async def _tidy_up(self) -> None:
        for task in self._talks:
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)
        for descriptor in self._open:
            os.close(descriptor)
        self._open.clear()

    # --- our own protocol

    async def _talk(self, reader: asyncssh.SSHReader[bytes], writer: asyncssh.SSHWriter[bytes]) -> None:
        await self._gateway.serve_client(_Words(reader), writer, self._person, self._address)

    # --- a child

    async def _run(self, command: bytes) -> None:
        process = self._process
        asking, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asking.setblocking(False)
        loop = asyncio.get_running_loop()
        with asking, theirs:
            streams, pumps = self._terminal() if process.term_type is not None else self._pipes()
            asked = WorkerRequest(
                0,
                command,
                self._person.name,
                self._person.role,
                str(self._gateway.folder(self._person.name)),
                self._environment(),
                terminal=process.term_type is not None,
                shell=process.command is None,
            )
            child = self._gateway.children.make(asked, [theirs.fileno(), *streams])
            self._close(*streams)
            theirs.close()
            self._hear_signals(child)
            loop.add_reader(asking, self._hand_over, asking)
            try:
                await self._until_ended(child, pumps)
            finally:
                loop.remove_reader(asking)

    async def _until_ended(self, child: Worker, pumps: list[Pump]) -> None:
        """Both streams to their end, then the status; a client that goes takes its child along."""
        feeding, *showing = [asyncio.create_task(pump()) for pump in pumps]
        gone = asyncio.create_task(self._process.wait_closed())
        shown = asyncio.create_task(_all(showing))
        try:
            await asyncio.wait({shown, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not gone.done():
                shown.result()
                self._leave(await child.ended)
        finally:
            for task in (feeding, gone, shown, *showing):
                task.cancel()
            await asyncio.gather(feeding, gone, shown, return_exceptions=True)
            await _end(child)

    def _leave(self, status: int) -> None:
        if status >= 0:
            self._process.exit(status)
            return
        with contextlib.suppress(ValueError):
            self._process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))

    def _environment(self) -> dict[str, str]:
        """A few words about the terminal and the language, and nothing else of what the client says."""
        found = {"TERM": self._process.term_type} if self._process.term_type else {}
        for name, value in self._process.env.items():
            if _ENVIRONMENT.fullmatch(str(name)):
                found[str(name)] = str(value)
        return {name: value for name, value in found.items() if value and _VALUE.fullmatch(value)}

    # --- streams

    def _pipes(self) -> tuple[list[int], list[Pump]]:
        """Descriptors for the child, and what moves bytes between ours and the channel."""
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
        # asyncssh would queue a new size behind input that the child does not read.
        vars(process)["terminal_size_changed"] = lambda columns, rows, *_: _resize(ours, columns, rows)
        return [theirs], [lambda: _feed(process, ours), lambda: _show(ours, process.stdout)]

    def _close(self, *descriptors: int) -> None:
        for descriptor in descriptors:
            if descriptor in self._open:
                self._open.remove(descriptor)
                os.close(descriptor)

    def _hear_signals(self, child: Worker) -> None:
        def heard(name: str) -> None:
            if name in _SIGNALS:
                child.signal(signal.Signals[f"SIG{name}"])

        def broken(_milliseconds: int) -> bool:
            heard("INT")
            return True

        vars(self._process).update(signal_received=heard, break_received=broken)

    # --- a child's connections

    def _hand_over(self, asking: socket.socket) -> None:
        """It asks for a connection: one end for the child, behind the other a session of the user."""
        loop = asyncio.get_running_loop()
        try:
            if not asking.recv(64):
                raise ConnectionError("it has ended")
        except BlockingIOError:
            return
        except OSError:
            loop.remove_reader(asking)
            return
        if len(self._talks) >= MOST_CONNECTIONS:
            with contextlib.suppress(OSError):
                asking.send(b"no")
            return
        ours, theirs = socket.socketpair()
        with theirs, contextlib.suppress(OSError):
            socket.send_fds(asking, [b"connection"], [theirs.fileno()])
        task = loop.create_task(self._serve_connection(ours))
        self._talks.add(task)
        task.add_done_callback(self._talks.discard)

    async def _serve_connection(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        try:
            await self._gateway.serve_client(reader, writer, self._person, self._address)
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            log.debug("a child left: %s", error)
        finally:
            writer.close()


class _Words:
    """What a client says over its channel. A connection that breaks is said as that of any stream."""

    def __init__(self, reader: asyncssh.SSHReader[bytes]) -> None:
        self._reader = reader

    async def read(self, n: int = -1, /) -> bytes:
        while True:
            try:
                return await self._reader.read(n)
            except (asyncssh.BreakReceived, asyncssh.SignalReceived, asyncssh.TerminalSizeChanged):
                continue  # of a terminal's keys there is no use here
            except asyncssh.Error as error:
                raise ConnectionResetError(str(error)) from error


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)


async def _end(child: Worker) -> None:
    """However it takes it: HUP as when a terminal goes, then KILL."""
    if child.ended.done():
        return
    child.signal(signal.SIGHUP)
    await asyncio.wait([child.ended], timeout=GRACE_SECONDS)
    child.signal(signal.SIGKILL)


def _resize(terminal: int, columns: int, rows: int) -> None:
    size = (min(max(number, 0), 65535) for number in (rows, columns))
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


async def _feed(process: Process, target: int) -> None:
    """What the client types, to its end."""
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
    event = asyncio.Event()
    watch(descriptor, event.set)
    try:
        yield event
    finally:
        forget(descriptor)
