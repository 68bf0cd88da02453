"""The thin way to a master: a blocking connection over its Unix socket, and the start of a master where there is none.

People wait for this module, so it imports nothing heavy. Refuses a socket or state folder that is not ours alone, and
never leaves two masters for one inventory: whoever starts one holds the lock of `Places`.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from sshgrid import errors
from sshgrid.errors import MasterGone, SshgridError, StoreError
from sshgrid.model import Noun
from sshgrid.paths import Places, not_private, private_dir
from sshgrid.version import VERSION
from sshgrid.wire import (
    Decoder,
    Done,
    Failure,
    Hello,
    Message,
    Request,
    Status,
    StatusReply,
    Stop,
    Welcome,
    encode,
)

START_SECONDS = 20.0
START_KILLS = 5  # so many masters may be killed while they start
READ_BYTES = 256 * 1024
_FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "COMPILE_ERROR"})
_STEP_SECONDS = 0.005
_ANOTHER_MASTER = "another master already works in"  # what a master says when the lock of the state folder is held
R = TypeVar("R", bound=Noun)
Say = Callable[[str], None]


class Connection:
    """One conversation with a master. MasterGone when the master ends it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._decoder = Decoder()
        self._inbox: deque[tuple[Message, bytes]] = deque()
        self._outbox: deque[memoryview] = deque()
        self._sending = False
        self.welcome: Welcome | Failure = Failure("master-gone", "not greeted yet")

    @classmethod
    def open(cls, path: str, timeout_seconds: float = START_SECONDS) -> Connection:
        """Connect and greet. OSError when nobody listens, MasterGone when whoever listens does not answer."""
        _check_socket(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(timeout_seconds)
            sock.connect(path)
            _check_peer(sock, path)
            connection = cls(sock)
            connection._greet()
            sock.settimeout(None)
        except BaseException:
            sock.close()
            raise
        return connection

    @classmethod
    def over(cls, sock: socket.socket) -> Connection:
        """Greeted over a socket that leads to a master. MasterGone when nobody answers as one."""
        connection = cls(sock)
        try:
            connection.greet()
        except BaseException:
            sock.close()
            raise
        return connection

    def greet(self) -> None:
        """MasterGone when nobody answers as a master; the error that it names when it refuses."""
        self._greet()
        if isinstance(self.welcome, Failure):
            raise to_error(self.welcome)

    def _greet(self) -> None:
        self.send(Hello(VERSION))
        message, _ = self.receive()
        if not isinstance(message, Welcome | Failure):
            raise MasterGone(f"what listens there is no sshgrid master (it said {type(message).__name__})")
        self.welcome = message

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._sock.close()

    def fileno(self) -> int:
        return self._sock.fileno()

    # --- out

    def queue(self, message: Message, payload: bytes = b"") -> None:
        """Put a message behind what is still to be sent; `flush` or `flush_some` sends it."""
        self._outbox.append(memoryview(encode(message, payload)))

    def send(self, message: Message, payload: bytes = b"") -> None:
        self.queue(message, payload)
        self.flush()

    def flush(self) -> None:
        """Everything queued, in one system call when it fits."""
        self._sending = True
        try:
            while self._outbox:
                pieces = list(self._outbox)
                self._outbox.clear()
                self._sock.sendall(b"".join(pieces))
        except OSError as error:
            # A refusal ("your upload is too big") may wait to be read before the reset: it says more.
            self._read_refusal(error)
        finally:
            self._sending = False

    def flush_some(self) -> bool:
        """What fits without waiting; True when nothing is left. Safe in a signal handler: it never cuts into a send."""
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

    # --- in

    def receive(self) -> tuple[Message, bytes]:
        """The next message, whenever it comes."""
        while not self._inbox:
            self.read_once()
        return self._inbox.popleft()

    def read_once(self) -> None:
        """Wait for bytes, once."""
        try:
            piece = self._sock.recv(READ_BYTES)
        except OSError as error:
            raise _gone(error) from error
        if not piece:
            raise MasterGone("the master closed the connection", "sshgrid master status; sshgrid master logs")
        self._inbox.extend(self._decoder.feed(piece))

    def wait(self, deadline: float | None) -> bool:
        """Until there is something to read (True), or the monotonic clock reaches `deadline` (False)."""
        import select

        left = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        return bool(select.select([self._sock], [], [], left)[0])

    def arrived(self) -> Iterator[tuple[Message, bytes]]:
        """What has been read and not yet looked at."""
        while self._inbox:
            yield self._inbox.popleft()

    def ask(self, request: Request, answer: type[R]) -> R:
        """One request, one reply; the error that a Failure carries is raised."""
        self.send(request)
        return self.answer(answer)

    def answer(self, expected: type[R]) -> R:
        message, _ = self.receive()
        if isinstance(message, Failure):
            raise to_error(message)
        if not isinstance(message, expected):
            raise MasterGone(f"the master answered {type(message).__name__} instead of {expected.__name__}")
        return message

    def events(self) -> Iterator[tuple[Message, bytes]]:
        """What the master says, until it closes the connection (MasterGone) or refuses (the error it names)."""
        while True:
            message, payload = self.receive()
            if isinstance(message, Failure):
                raise to_error(message)
            yield message, payload


def to_error(failure: Failure) -> SshgridError:
    """The error the master raised, or its nearest base when this version does not know it."""
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
    return MasterGone(f"the connection to the master broke: {error.strerror or error}", "sshgrid master logs")


def _check_socket(path: str) -> None:
    folder = os.path.dirname(path)
    for place, is_kind in ((folder, stat.S_ISDIR), (path, stat.S_ISSOCK)):
        if complaint := not_private(os.lstat(place), is_kind):
            raise StoreError(f"{place} {complaint}", f"ls -ld {place}; move it away, or set SSHGRID_HOME")


def _check_peer(sock: socket.socket, path: str) -> None:
    if not hasattr(socket, "SO_PEERCRED"):
        return
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)  # struct ucred: pid, uid, gid
    uid = int.from_bytes(credentials[4:8], sys.byteorder)
    if uid not in (os.getuid(), 0):
        raise StoreError(f"{path}: a process of another user (uid {uid}) listens there", "sshgrid doctor")


# --- finding and starting a master -----------------------------------------------------------------------------------


def connect(places: Places, *, start: bool = True, say: Say = lambda _: None) -> Connection:
    """A greeted connection to the master of this inventory, which is started when it is missing and `start`."""
    connection = _try(places.socket)
    if connection is None:
        if not start:
            raise MasterGone("no master is running for this inventory", "sshgrid master start")
        connection = start_master_if_missing(places)
    return _same_version(connection, places, say)


def find_any_version(places: Places) -> Connection | None:
    """The running master, whatever its version; None when there is none."""
    return _try(places.socket)


def start_master_if_missing(places: Places, extra: Sequence[str] = ()) -> Connection:
    """Start a master unless somebody else was quicker; `extra` are further words for `sshgrid.daemon`."""
    private_dir(places.state_dir)
    private_dir(os.path.dirname(places.socket))
    with _held(places.lock):
        return _try(places.socket) or _start(places, extra)


def _try(path: str) -> Connection | None:
    """None when no master listens (any more: a master that is just leaving closes without a word)."""
    try:
        return Connection.open(path)
    except (FileNotFoundError, ConnectionError):
        return None
    except MasterGone as error:
        if isinstance(error.__cause__, TimeoutError):
            raise
        return None
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror or error}", "sshgrid doctor") from error


@contextmanager
def _held(lock: str) -> Iterator[None]:
    import fcntl

    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _start(places: Places, extra: Sequence[str]) -> Connection:
    deadline = time.monotonic() + START_SECONDS
    kills = START_KILLS
    while True:
        _remove_stale(places.socket)
        try:
            return _started(places, extra, deadline)
        except _StillLeaving:
            time.sleep(10 * _STEP_SECONDS)
        except _Killed as killed:
            kills -= 1
            if not kills:
                raise killed.__cause__ or killed from None


class _StillLeaving(Exception):
    """The old master has closed its door, but not yet let go of its lock."""


class _Killed(Exception):
    """Somebody ended the new master before it could answer: no fault of its own, so another one may do better."""


def _started(places: Places, extra: Sequence[str], deadline: float) -> Connection:
    process, log_start = _spawn(places, extra)
    step = 0.001
    while time.monotonic() < deadline:
        if connection := _try(places.socket):
            process.returncode = 0  # it outlives us: no ResourceWarning when the handle goes
            return connection
        if process.poll() is not None:
            error = _died(places.log, log_start, process.returncode)
            if _ANOTHER_MASTER in error.message and time.monotonic() < deadline:
                raise _StillLeaving from error
            if process.returncode < 0:
                raise _Killed from error
            raise error
        time.sleep(step)
        step = min(step * 1.3, _STEP_SECONDS)
    process.kill()
    process.wait()
    raise _died(places.log, log_start, None)


def _remove_stale(path: str) -> None:
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise StoreError(f"{path}: {error.strerror}", "sshgrid doctor") from error


def _spawn(places: Places, extra: Sequence[str]) -> tuple[Any, int]:
    import subprocess

    command = [sys.executable, "-m", "sshgrid.daemon", places.inventory, places.state_dir, *extra]
    log = os.open(places.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        start = os.fstat(log).st_size
        process = subprocess.Popen(  # lives on without us, in a session of its own
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env=_environment(),
            start_new_session=True,
        )
    finally:
        os.close(log)
    return process, start


def _environment() -> dict[str, str]:
    """Ours; when sshgrid runs out of a source tree, the child, which starts in /, must find that tree too."""
    environment = dict(os.environ)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.isdir(os.path.join(root, "tests")) and root not in environment.get("PYTHONPATH", "").split(os.pathsep):
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH", ""))))
    return environment


def _died(log: str, start: int, code: int | None) -> MasterGone:
    how = f"ended with status {code}" if code is not None else f"did not answer within {START_SECONDS:.0f} s"
    message, hint = _last_error(log, start)
    return MasterGone(f"the master {how}" + (f": {message}" if message else ""), hint or f"less {log}")


def _last_error(log: str, start: int) -> tuple[str, str]:
    """The last `error:` block of what was logged since `start` and its hint; without one the last line."""
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read(READ_BYTES).decode("utf-8", "replace").strip()
    _, found, block = text.rpartition("error: ")
    if not found:
        return text.rpartition("\n")[2], ""
    message, _, hint = block.partition("\nhint: ")
    return message.strip(), hint.strip()


# --- two versions ----------------------------------------------------------------------------------------------------


def _same_version(connection: Connection, places: Places, say: Say) -> Connection:
    welcome = connection.welcome
    if isinstance(welcome, Welcome) and welcome.version == VERSION:
        return connection
    if isinstance(welcome, Welcome) and not _stopped_when_idle(connection):
        say(f"the master is version {welcome.version}, this is {VERSION}; it is replaced when no job needs it")
        return connection
    with connection:
        if isinstance(welcome, Failure):
            _stop_other_protocol(connection, welcome)
    say(f"the master was another version, this is {VERSION}: a new one is started")
    wait_until_left(places.socket, START_SECONDS)
    return start_master_if_missing(places)


def _stop_other_protocol(connection: Connection, refusal: Failure) -> None:
    if refusal.code != "version":
        raise to_error(refusal)
    if not _stopped_when_idle(connection):
        raise MasterGone(refusal.message, "sshgrid master stop --drain, with the version that started it")


def _stopped_when_idle(connection: Connection) -> bool:
    """Ask an old master to leave; it also answers these two requests to a version it does not speak otherwise."""
    try:
        status = connection.ask(Status(), StatusReply)
        if any(count for state, count in status.jobs_by_state.items() if state not in _FINAL):
            return False
        connection.ask(Stop(), Done)
    except SshgridError as error:
        return isinstance(error, MasterGone) and isinstance(connection.welcome, Welcome)
    return True


def wait_until_left(path: str, seconds: float | None) -> None:
    """Until no master answers there. MasterGone when it still does after `seconds` (None = however long it takes)."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        try:
            Connection.open(path, 1.0).close()
        except (OSError, SshgridError):
            return
        time.sleep(_STEP_SECONDS if deadline else 10 * _STEP_SECONDS)
    raise MasterGone("the old master does not leave", "sshgrid master status")
