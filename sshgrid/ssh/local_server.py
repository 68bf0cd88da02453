"""A node without sshd: an SSH server in the master's own process, for `connection: local`.

It accepts one connection on a loopback port, from this process, with keys that are made for it, and closes the port. It
runs `/bin/sh -c COMMAND` as the master's user and serves SFTP; forwarding, other logins and a second connection are
refused. So a local node uses the same code as any other node.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import termios
from collections.abc import Callable

import asyncssh

from sshgrid.errors import Unreachable

_PIECE = 65536


async def serve_local() -> asyncssh.SSHClientConnection:
    """Return a new loopback connection, logged in. Its server ends with it."""
    commands = LocalCommands()
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    user_key = asyncssh.generate_private_key("ssh-ed25519")
    client_socket, server_socket = _loopback_pair()
    server = asyncssh.run_server(
        server_socket,
        server_host_keys=[host_key],
        authorized_client_keys=asyncssh.import_authorized_keys(user_key.export_public_key().decode()),
        password_auth=False,
        kbdint_auth=False,
        process_factory=commands.run,
        sftp_factory=True,
        allow_scp=False,
        encoding=None,
        keepalive_interval=0,
    )
    client = asyncssh.run_client(
        client_socket,
        config=None,
        known_hosts=([host_key.convert_to_public()], [], []),
        username="local",
        client_keys=[user_key],
        agent_path=None,
    )
    _, connection = await asyncio.gather(server, client)
    connection.set_extra_info(commands=commands)
    return connection


class LocalCommands:
    """The exec requests of one local node. `close` ends those that are left after the connection has ended."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        try:
            await _run_command(process)
        except asyncio.CancelledError:  # by `close`; _run_command has cleaned up
            pass
        finally:
            self._running.discard(task)

    async def close(self) -> None:
        tasks = list(self._running)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _loopback_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected TCP sockets. Raises Unreachable when another process has connected first."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client_socket = socket.create_connection(listener.getsockname(), timeout=5)
        server_socket, peer = listener.accept()
    if peer != client_socket.getsockname():
        server_socket.close()
        client_socket.close()
        raise Unreachable("", "another process took the loopback connection of a local node")
    client_socket.setblocking(False)
    server_socket.setblocking(False)
    for end in (client_socket, server_socket):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client_socket, server_socket


async def _run_command(process: asyncssh.SSHServerProcess[bytes]) -> None:
    """Serve one exec request: the command's streams, then its status; on a pseudo-terminal if one was requested."""
    command = process.command or "exec /bin/sh"
    if process.term_type is not None:
        await _run_on_terminal(process, command)
        return
    child = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    feeding = asyncio.create_task(_feed(process, child.stdin))
    try:
        await asyncio.gather(_pump(child.stdout, process.stdout), _pump(child.stderr, process.stderr))
        _leave(process, await child.wait())
    except (asyncssh.Error, OSError):
        pass  # the channel has ended: the shell is killed, and processes that it has detached continue
    finally:
        feeding.cancel()
        await _end(child)


async def _end(child: asyncio.subprocess.Process) -> None:
    """Kill the child and close its pipes: processes that it has detached can keep the other ends open for hours."""
    for descriptor in range(3):
        # The public methods also reap the process, which breaks a pending `wait`.
        if (pipe := child._transport.get_pipe_transport(descriptor)) is not None:  # type: ignore[attr-defined]
            pipe.close()
    if child.returncode is None:
        # Not child.kill(): it reaps a process that has just ended, and asyncio's own wait then fails (Python 3.11).
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
    await child.wait()


def _leave(process: asyncssh.SSHServerProcess[bytes], status: int) -> None:
    if status < 0:
        process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
    else:
        process.exit(status)


async def _feed(process: asyncssh.SSHServerProcess[bytes], pipe: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncssh.Error, OSError):
        while piece := await _next_piece(process):
            pipe.write(piece)
            await pipe.drain()
    pipe.close()


async def _next_piece(process: asyncssh.SSHServerProcess[bytes]) -> bytes:
    while True:
        try:
            return await process.stdin.read(_PIECE)
        except asyncssh.TerminalSizeChanged:
            continue


async def _pump(source: asyncio.StreamReader, target: asyncssh.SSHWriter[bytes]) -> None:
    while piece := await source.read(_PIECE):
        target.write(piece)
        await target.drain()


async def _run_on_terminal(process: asyncssh.SSHServerProcess[bytes], command: str) -> None:
    terminal = _Terminal()
    columns, rows, *_ = process.term_size
    terminal.resize(columns, rows)
    child = await asyncio.create_subprocess_exec(
        "/bin/sh",
        "-c",
        command,
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
        preexec_fn=_take_terminal,
    )
    os.close(terminal.slave)
    feeding = asyncio.create_task(_feed_terminal(process, terminal))
    showing = asyncio.create_task(_show_terminal(process, terminal))
    gone = asyncio.create_task(process.wait_closed())
    try:
        await asyncio.wait((showing, gone), return_when=asyncio.FIRST_COMPLETED)
        if not gone.done():
            _leave(process, await child.wait())
    finally:
        for task in (feeding, showing, gone):
            task.cancel()
        await asyncio.gather(feeding, showing, gone, return_exceptions=True)
        terminal.hang_up()
        await _end(child)


def _take_terminal() -> None:
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class _Terminal:
    """The master's side of a pseudo-terminal. It needs no thread: a few terminals would use up the thread pool."""

    def __init__(self) -> None:
        self._master, self.slave = os.openpty()
        os.set_blocking(self._master, False)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def read(self) -> bytes:
        loop = asyncio.get_running_loop()
        while True:
            try:
                return os.read(self._master, _PIECE)
            except BlockingIOError:
                await self._ready(loop.add_reader, loop.remove_reader)
            except OSError:  # EIO: the last process on the terminal has ended
                return b""

    async def write(self, piece: bytes) -> None:
        loop = asyncio.get_running_loop()
        while piece:
            try:
                piece = piece[os.write(self._master, piece) :]
            except BlockingIOError:
                await self._ready(loop.add_writer, loop.remove_writer)

    async def _ready(self, watch: Callable[..., object], forget: Callable[[int], object]) -> None:
        ready = asyncio.Event()
        watch(self._master, ready.set)
        try:
            await ready.wait()
        finally:
            forget(self._master)

    def hang_up(self) -> None:
        os.close(self._master)


async def _show_terminal(process: asyncssh.SSHServerProcess[bytes], terminal: _Terminal) -> None:
    with contextlib.suppress(asyncssh.Error, OSError):
        while piece := await terminal.read():
            process.stdout.write(piece)
            await process.stdout.drain()


async def _feed_terminal(process: asyncssh.SSHServerProcess[bytes], terminal: _Terminal) -> None:
    with contextlib.suppress(asyncssh.Error, OSError):
        while True:
            try:
                piece = await process.stdin.read(_PIECE)
            except asyncssh.TerminalSizeChanged as change:
                terminal.resize(change.width, change.height)
                continue
            if not piece:
                return
            await terminal.write(piece)
