"""Connect to the master of an inventory, and start one when none runs or the running one has another version.

The client that starts a master holds the lock of `Places`, so that only one master starts.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sshgrid.client.connection import READ_BYTES, START_SECONDS, Connection, to_error
from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.errors import MasterGone, SshgridError, StoreError
from sshgrid.paths import PACKAGE_DIR, Places, private_dir
from sshgrid.protocol.messages import Done, Failure, Status, StatusReply, Stop, Welcome
from sshgrid.version import VERSION

Warn = Callable[[str], None]
_FINAL_STATES = frozenset(
    {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "COMPILE_ERROR"}
)
MAX_START_KILLS = 5  # how many new masters may be killed by a signal before the start fails
_STEP_SECONDS = 0.005
_ANOTHER_MASTER = "another master already works in"  # the error of a master that finds the state folder locked


def connect(
    places: Places, *, start: bool = True, warn: Warn = lambda _: None, clock: Clock = SYSTEM_CLOCK
) -> Connection:
    """Connect to the master of this inventory. With `start`, start it when none runs; else MasterGone."""
    connection = _try(places.socket)
    if connection is None:
        if not start:
            raise MasterGone("no master is running for this inventory", "sshgrid master start")
        connection = start_master_if_missing(places, clock=clock)
    return _same_version(connection, places, warn, clock)


def find_any_version(places: Places) -> Connection | None:
    """Connect to the running master of any version; None when none runs."""
    return _try(places.socket)


def start_master_if_missing(places: Places, extra: Sequence[str] = (), *, clock: Clock = SYSTEM_CLOCK) -> Connection:
    """Start a master unless one runs, and connect to it; `extra` are further arguments for `sshgrid.daemon`."""
    private_dir(places.state_dir)
    private_dir(os.path.dirname(places.socket))
    with _locked(places.lock):
        return _try(places.socket) or _start(places, extra, clock)


def _try(path: str) -> Connection | None:
    """Connect, or None when no master listens; a master that is about to exit closes the connection."""
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
def _locked(lock: str) -> Iterator[None]:
    import fcntl

    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _start(places: Places, extra: Sequence[str], clock: Clock) -> Connection:
    deadline = clock.monotonic() + START_SECONDS
    kills = MAX_START_KILLS
    while True:
        _remove_stale(places.socket)
        try:
            return _start_once(places, extra, deadline, clock)
        except _StillExiting:
            time.sleep(10 * _STEP_SECONDS)
        except _KilledAtStart as killed:
            kills -= 1
            if not kills:
                raise killed.__cause__ or killed from None


class _StillExiting(Exception):
    """The old master has closed its socket, but still holds its lock."""


class _KilledAtStart(Exception):
    """A signal ended the new master before it answered; another one may start."""


def _start_once(places: Places, extra: Sequence[str], deadline: float, clock: Clock) -> Connection:
    process, log_start = _spawn(places, extra)
    step = 0.001
    while clock.monotonic() < deadline:
        if connection := _try(places.socket):
            process.returncode = 0  # the master outlives this process; avoids a ResourceWarning
            return connection
        if process.poll() is not None:
            error = _start_failed(places.log, log_start, process.returncode)
            if _ANOTHER_MASTER in error.message and clock.monotonic() < deadline:
                raise _StillExiting from error
            if process.returncode < 0:
                raise _KilledAtStart from error
            raise error
        time.sleep(step)
        step = min(step * 1.3, _STEP_SECONDS)
    process.kill()
    process.wait()
    raise _start_failed(places.log, log_start, None)


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
        process = subprocess.Popen(  # in a new session, so that it outlives this process
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


def _start_failed(log: str, start: int, code: int | None) -> MasterGone:
    how = f"ended with status {code}" if code is not None else f"did not answer within {START_SECONDS:.0f} s"
    message, hint = _last_error(log, start)
    return MasterGone(f"the master {how}" + (f": {message}" if message else ""), hint or f"less {log}")


def _last_error(log: str, start: int) -> tuple[str, str]:
    """The last `error:` message and `hint:` that were logged since `start`; without one the last line."""
    with open(log, "rb") as file:
        file.seek(start)
        text = file.read(READ_BYTES).decode("utf-8", "replace").strip()
    _, found, block = text.rpartition("error: ")
    if not found:
        return text.rpartition("\n")[2], ""
    message, _, hint = block.partition("\nhint: ")
    return message.strip(), hint.strip()


def _same_version(connection: Connection, places: Places, warn: Warn, clock: Clock) -> Connection:
    """Replace a master of another version, unless it has jobs."""
    welcome = connection.welcome
    if isinstance(welcome, Welcome) and welcome.version == VERSION:
        return connection
    if isinstance(welcome, Welcome) and not _stopped_when_idle(connection):
        warn(f"the master has version {welcome.version}, this is {VERSION}; it is replaced when it has no jobs")
        return connection
    with connection:
        if isinstance(welcome, Failure):
            _stop_other_protocol(connection, welcome)
    warn(f"the master has another version, this is {VERSION}: starting a new master")
    wait_until_left(places.socket, START_SECONDS, clock)
    return start_master_if_missing(places, clock=clock)


def _stop_other_protocol(connection: Connection, refusal: Failure) -> None:
    if refusal.code != "version":
        raise to_error(refusal)
    if not _stopped_when_idle(connection):
        raise MasterGone(refusal.message, "sshgrid master stop")


def _stopped_when_idle(connection: Connection) -> bool:
    """Stop an old master that has no jobs. A master answers these two requests to clients of any version."""
    try:
        status = connection.request(Status(), StatusReply)
        if any(count for state, count in status.jobs_by_state.items() if state not in _FINAL_STATES):
            return False
        connection.request(Stop(), Done)
    except SshgridError as error:
        return isinstance(error, MasterGone) and isinstance(connection.welcome, Welcome)
    return True


def wait_until_left(path: str, seconds: float | None, clock: Clock = SYSTEM_CLOCK) -> None:
    """Wait until no master answers. MasterGone when one still does after `seconds` (None = no limit)."""
    deadline = None if seconds is None else clock.monotonic() + seconds
    while deadline is None or clock.monotonic() < deadline:
        try:
            Connection.open(path, 1.0).close()
        except (OSError, SshgridError):
            return
        time.sleep(_STEP_SECONDS if deadline else 10 * _STEP_SECONDS)
    raise MasterGone("the old master does not stop", "sshgrid master status")
