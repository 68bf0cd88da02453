"""Start a master where none runs, and connect to it."""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sshgrid.client.connection import READ_BYTES, START_SECONDS, Connection, Say, to_error
from sshgrid.errors import MasterGone, SshgridError, StoreError
from sshgrid.paths import PACKAGE_DIR, Places, private_dir
from sshgrid.protocol.messages import Done, Failure, Status, StatusReply, Stop, Welcome
from sshgrid.version import VERSION

_FINAL_STATES = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "COMPILE_ERROR"}
)
START_KILLS = 5  # so many masters may be killed while they start


_STEP_SECONDS = 0.005


_ANOTHER_MASTER = "another master already works in"  # what a master says when the lock of the state folder is held


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
            env=master_environment(),
            start_new_session=True,
        )
    finally:
        os.close(log)
    return process, start


def master_environment() -> dict[str, str]:
    """This process's variables; from a source tree, PYTHONPATH names it, as the master starts in another folder."""
    environment = dict(os.environ)
    root = os.path.dirname(PACKAGE_DIR)
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
        status = connection.request(Status(), StatusReply)
        if any(count for state, count in status.jobs_by_state.items() if state not in _FINAL_STATES):
            return False
        connection.request(Stop(), Done)
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
