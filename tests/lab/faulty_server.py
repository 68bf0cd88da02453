"""An SSH server with one chosen fault, built on paramiko: a different implementation than the one that sshgrid uses.

It listens on 127.0.0.1, accepts every public key (except in the mode that refuses it), and records the commands. Only
the modes in RUNS_COMMANDS run them. Leaving the `with` block ends all threads and processes, or raises RuntimeError.
"""

from __future__ import annotations

import contextlib
import enum
import os
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

import paramiko
from paramiko import common, sftp

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

JOIN_SECONDS = 30


class Mode(enum.Enum):
    """The fault of a server."""

    CORRECT = "runs every command with sh and sends its exit status; has no SFTP"
    DROPS = "prints `partial`, then closes the connection during the command"
    REPORTS_ZERO = "answers every command with exit status 0 and runs nothing"
    SILENT_AFTER_LOGIN = "accepts the login, then never answers"
    NO_BANNER = "accepts the connection and sends nothing"
    ENDLESS_BANNER = "sends lines without end and never the SSH version"
    HTTP = "is a web server"
    SFTP_POLLUTED = "prints text before the SFTP protocol begins; runs commands correctly"
    SFTP_DISCARDS = "confirms every SFTP write and stores nothing; runs commands correctly"
    REFUSES_LOGIN = "accepts no key"
    OTHER_HOST_KEY = "shows another host key than the one in `known_hosts`"


RAW = (Mode.NO_BANNER, Mode.ENDLESS_BANNER, Mode.HTTP)
RUNS_COMMANDS = (Mode.CORRECT, Mode.SFTP_POLLUTED, Mode.SFTP_DISCARDS, Mode.OTHER_HOST_KEY)


class FaultyServer:
    """`with FaultyServer(Mode.DROPS, tmp_path) as server:` listens on `server.port` until the block ends."""

    host = "127.0.0.1"
    user = "grid"

    def __init__(self, mode: Mode, directory: Path) -> None:
        self.mode = mode
        directory = Path(tempfile.mkdtemp(prefix="server-", dir=directory))
        self.identity_file = directory / "id_ed25519"
        self.known_hosts = directory / "known_hosts"
        self.commands: list[bytes] = []
        self.sessions = 0
        self.connections = 0
        self.closing = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket | paramiko.Transport] = []

    def __enter__(self) -> Self:
        pinned, self._host_key = paramiko.RSAKey.generate(2048), paramiko.RSAKey.generate(2048)
        if self.mode is not Mode.OTHER_HOST_KEY:
            pinned = self._host_key
        self._listener = socket.create_server((self.host, 0))
        self.port = int(self._listener.getsockname()[1])
        self.known_hosts.write_text(f"[{self.host}]:{self.port} {pinned.get_name()} {pinned.get_base64()}\n")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.identity_file], check=True)
        self.start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        # shutdown, because close alone does not wake a thread that waits in accept().
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for peer in self._open:
            peer.close()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)
        if left := [thread.name for thread in self._threads if thread.is_alive()]:
            raise RuntimeError(f"threads left: {left}")

    def node(self) -> dict[str, object]:
        """The keys of this server as a node of an inventory."""
        return {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "identity_file": str(self.identity_file),
            "known_hosts": str(self.known_hosts),
        }

    def start(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name=f"faulty server {self.mode.name} {len(self._threads)}", daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            if self.mode in RAW:
                self.start(lambda connection=connection: self._talk_raw(connection))  # type: ignore[misc]
            else:
                self._talk_ssh(connection)

    def _talk_ssh(self, connection: socket.socket) -> None:
        transport = paramiko.Transport(connection)
        self._open.append(transport)
        self._threads.append(transport)
        transport.add_server_key(self._host_key)
        if self.mode is Mode.SFTP_DISCARDS:
            transport.set_subsystem_handler("sftp", paramiko.SFTPServer, DiscardingSftp)
        elif self.mode is Mode.SFTP_POLLUTED:
            transport.set_subsystem_handler("sftp", PollutedSftp)
        # A client may close the connection during the handshake.
        with contextlib.suppress(paramiko.SSHException, EOFError):
            transport.start_server(event=threading.Event(), server=Session(self, transport))

    def _talk_raw(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            match self.mode:
                case Mode.HTTP:
                    connection.recv(1024)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                case Mode.ENDLESS_BANNER:
                    while not self.closing.is_set():
                        connection.sendall(b"Welcome. All activity is monitored.\r\n")
                        self.closing.wait(0.001)
                case _:
                    self.closing.wait()


class Session(paramiko.ServerInterface):
    """The answers to one connection; its methods run in the thread of the connection."""

    def __init__(self, faulty_server: FaultyServer, transport: paramiko.Transport) -> None:
        self._owner = faulty_server
        self._transport = transport

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        if self._owner.mode is Mode.REFUSES_LOGIN or username != self._owner.user:
            return common.AUTH_FAILED
        return common.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:
        self._owner.sessions += 1
        if self._owner.mode is Mode.SILENT_AFTER_LOGIN:
            self._owner.closing.wait()
        return common.OPEN_SUCCEEDED if kind == "session" else common.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        return False

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        self._owner.commands.append(command)
        match self._owner.mode:
            case Mode.REPORTS_ZERO:
                self._owner.start(lambda: self._finish(channel, 0))
            case Mode.DROPS:
                self._owner.start(lambda: self._drop(channel))
            case mode if mode in RUNS_COMMANDS:
                self._owner.start(lambda: self._run(channel, command))
            case _:
                return False
        return True

    def _drop(self, channel: paramiko.Channel) -> None:
        channel.sendall(b"partial")
        # Close the socket, not the transport, which would send a disconnect message.
        self._transport.sock.close()

    def _run(self, channel: paramiko.Channel, command: bytes) -> None:
        words = ["sh", "-c", os.fsdecode(command)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as shell:
            assert shell.stdin is not None
            assert shell.stdout is not None
            assert shell.stderr is not None
            stdin, stdout, stderr = shell.stdin, shell.stdout, shell.stderr
            self._owner.start(lambda: _feed(channel, stdin))
            errors = self._owner.start(lambda: _pump(stderr, channel.sendall_stderr))
            _pump(stdout, channel.sendall)
            # As a real server does: SIGPIPE ends a command that still prints after its client has gone.
            stdout.close()
            errors.join()
        self._finish(channel, shell.returncode if shell.returncode >= 0 else 128 - shell.returncode)

    def _finish(self, channel: paramiko.Channel, status: int) -> None:
        with contextlib.suppress(OSError, EOFError):
            channel.send_exit_status(status)
            channel.close()


def _feed(channel: paramiko.Channel, stdin: IO[bytes]) -> None:
    # The command may end before it has read everything; end of input closes its stdin.
    with contextlib.suppress(OSError, EOFError, ValueError), stdin:
        while piece := channel.recv(32768):
            stdin.write(piece)
            stdin.flush()


def _pump(stream: IO[bytes], send: Callable[[bytes], None]) -> None:
    with contextlib.suppress(OSError, EOFError):
        while piece := os.read(stream.fileno(), 32768):
            send(piece)


class PollutedSftp(paramiko.SubsystemHandler):
    """SFTP behind a shell start-up file that prints text."""

    def start_subsystem(self, name: str, transport: paramiko.Transport, channel: paramiko.Channel) -> None:
        channel.sendall(b"Welcome to the machine room!\n")
        channel.recv(1024)


class DiscardingSftp(paramiko.SFTPServerInterface):
    """Confirms every request and stores nothing."""

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> paramiko.SFTPHandle:
        return DiscardedFile(flags)

    def stat(self, path: str) -> paramiko.SFTPAttributes:
        return _empty_file()

    def lstat(self, path: str) -> paramiko.SFTPAttributes:
        return _empty_file()

    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        return sftp.SFTP_OK

    def rename(self, oldpath: str, newpath: str) -> int:
        return sftp.SFTP_OK

    def posix_rename(self, oldpath: str, newpath: str) -> int:
        return sftp.SFTP_OK

    def chattr(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        return sftp.SFTP_OK


class DiscardedFile(paramiko.SFTPHandle):
    """A file that discards what is written to it."""

    def write(self, offset: int, data: Buffer) -> int:
        return sftp.SFTP_OK

    def read(self, offset: int, length: int) -> bytes:
        return b""

    def stat(self) -> paramiko.SFTPAttributes:
        return _empty_file()

    def chattr(self, attr: paramiko.SFTPAttributes) -> int:
        return sftp.SFTP_OK


def _empty_file() -> paramiko.SFTPAttributes:
    attributes = paramiko.SFTPAttributes()
    attributes.st_size, attributes.st_mode, attributes.st_mtime = 0, 0o100600, int(time.time())
    return attributes
