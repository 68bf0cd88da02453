"""A blocking connection to a master over its Unix socket.

A socket or state folder that another user could have created is refused. Users wait for this module, so it imports
nothing large.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import os
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from sshgrid import errors
from sshgrid.errors import MasterGone, SshgridError, StoreError
from sshgrid.model import Struct
from sshgrid.paths import not_private
from sshgrid.protocol.codec import Decoder, encode
from sshgrid.protocol.messages import Failure, Hello, Message, Request, Welcome
from sshgrid.version import VERSION

START_SECONDS = 20.0  # how long a master may take to answer
READ_BYTES = 256 * 1024
R = TypeVar("R", bound=Struct)


class Connection:
    """A connection to a master. MasterGone when the master closes it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder()
        self._inbox: deque[tuple[Message, bytes]] = deque()
        self._outbox: deque[memoryview] = deque()
        self._sending = False
        self.welcome: Welcome | Failure = Failure("master-gone", "no handshake yet")

    @classmethod
    def open(cls, path: str, timeout_seconds: float = START_SECONDS) -> Connection:
        """Connect and exchange versions. OSError when nothing listens, MasterGone when no master answers."""
        _check_socket(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_seconds)
            sock.connect(path)
            _check_peer(sock, path)
            connection = cls(sock)
            connection._exchange_versions()
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        return connection

    @classmethod
    def from_socket(cls, sock: socket.socket) -> Connection:
        """A connection over this socket, after the handshake. MasterGone when no master answers."""
        connection = cls(sock)
        try:
            connection.handshake()
        except BaseException:
            sock.close()
            raise
        return connection

    def handshake(self) -> None:
        """Exchange versions. MasterGone when no master answers; the error of the master when it refuses."""
        self._exchange_versions()
        if isinstance(self.welcome, Failure):
            raise to_error(self.welcome)

    def _exchange_versions(self) -> None:
        self.send(Hello(VERSION))
        message, _ = self.receive()
        if not isinstance(message, Welcome | Failure):
            raise MasterGone(f"the socket does not belong to an sshgrid master (received {type(message).__name__})")
        self.welcome = message

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    # --- sending

    def queue(self, message: Message, payload: bytes = b"") -> None:
        """Add a message to the queue that `flush` or `flush_some` sends."""
        self._outbox.append(memoryview(encode(message, payload)))

    def send(self, message: Message, payload: bytes = b"") -> None:
        """Send a message, after all queued ones."""
        self.queue(message, payload)
        self.flush()

    def flush(self) -> None:
        """Send all queued messages, in one system call if they fit."""
        self._sending = True
        try:
            while self._outbox:
                pieces = list(self._outbox)
                self._outbox.clear()
                self._sock.sendall(b"".join(pieces))
        except OSError as error:
            # The master may have sent an error ("your upload is too large") before it closed: that error says more.
            self._read_refusal(error)
        finally:
            self._sending = False

    def flush_some(self) -> bool:
        """Send without waiting; True when the queue is empty. Safe in a signal handler: not during another send."""
        if self._sending:
            return False
        self._sending = True
        try:
            while self._outbox:
                sent = self._sock.send(self._outbox[0], socket.MSG_DONTWAIT)
                self._outbox[0] = self._outbox[0][sent:]
                if not self._outbox[0]:
                    self._outbox.popleft()
        except BlockingIOError:
            return False
        except OSError as error:
            raise _gone(error) from error
        finally:
            self._sending = False
        return True

    def _read_refusal(self, error: OSError) -> None:
        try:
            message, _ = self.receive()
        except MasterGone:
            raise _gone(error) from error
        raise to_error(message) if isinstance(message, Failure) else _gone(error)

    # --- receiving

    def receive(self) -> tuple[Message, bytes]:
        """Wait for the next message."""
        while not self._inbox:
            self.read_once()
        return self._inbox.popleft()

    def read_once(self) -> None:
        """Wait for bytes and read them once."""
        try:
            piece = self._sock.recv(READ_BYTES)
        except OSError as error:
            raise _gone(error) from error
        if not piece:
            raise MasterGone("the master closed the connection", "sshgrid master status; sshgrid master logs")
        self._inbox.extend(self._decoder.feed(piece))

    def wait(self, deadline: float | None) -> bool:
        """Wait for bytes to read. False when the monotonic clock reaches `deadline` first."""
        import select

        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        return bool(select.select([self._sock], [], [], left)[0])

    def buffered(self) -> Iterator[tuple[Message, bytes]]:
        """Yield the messages that have been read but not returned."""
        while self._inbox:
            yield self._inbox.popleft()

    def request(self, request: Request, reply: type[R]) -> R:
        """Send a request and return its reply. Raises the error that a Failure carries."""
        self.send(request)
        return self.reply(reply)

    def reply(self, expected: type[R]) -> R:
        """Wait for the reply to an earlier request. Raises the error that a Failure carries."""
        message, _ = self.receive()
        if isinstance(message, Failure):
            raise to_error(message)
        if not isinstance(message, expected):
            raise MasterGone(f"the master sent {type(message).__name__} instead of {expected.__name__}")
        return message


def to_error(failure: Failure) -> SshgridError:
    """The error that the master raised; SshgridError for a code that this version does not know."""
    known = {kind.code: kind for kind in _tree(SshgridError) if not issubclass(kind, errors.HostError)}
    error = known.get(failure.code, SshgridError)(failure.message, failure.hint)
    error.code, error.exit_status = failure.code, failure.exit_status
    return error


def _tree(kind: type[SshgridError]) -> Iterator[type[SshgridError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


def _gone(error: OSError) -> MasterGone:
    if isinstance(error, TimeoutError):
        return MasterGone(f"the master does not answer (waited {START_SECONDS:.0f} s)", "sshgrid master logs")
    return MasterGone(f"the connection to the master failed: {error.strerror or error}", "sshgrid master logs")


def _check_socket(path: str) -> None:
    folder = os.path.dirname(path)
    for place, is_kind in ((folder, stat.S_ISDIR), (path, stat.S_ISSOCK)):
        if reason := not_private(os.lstat(place), is_kind):
            raise StoreError(f"{place} {reason}", f"ls -ld {place}; move it away, or set SSHGRID_HOME")


def _check_peer(sock: socket.socket, path: str) -> None:
    if not hasattr(socket, "SO_PEERCRED"):
        return
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
    uid = int.from_bytes(credentials[4:8], sys.byteorder)
    if uid not in (os.getuid(), 0):
        raise StoreError(
            f"{path}: the process that listens there belongs to another user (uid {uid})", "sshgrid doctor"
        )
