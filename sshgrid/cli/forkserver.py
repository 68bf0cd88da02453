"""`python -m sshgrid.cli.forkserver DESCRIPTOR`: imports the command line once and forks a worker process per request.

A worker process is in a session of its own, in its user's folder, with four descriptors, a small environment, no way to
gain rights and limits on its resources. Then it is the ordinary command line, with the verbs that users of the SSH
gateway have; it asks the master over connections that the master passes to it, and never learns where the master's
socket is.
"""
# os.path, not pathlib (see per-file-ignores), as in all of the client.

from __future__ import annotations

import array
import contextlib
import ctypes
import fcntl
import gc
import os
import resource
import select
import shlex
import signal
import socket
import sys
import termios
from typing import NoReturn

from sshgrid.cli import leave
from sshgrid.client import files
from sshgrid.client.connection import Connection
from sshgrid.client.session import Session, report_error
from sshgrid.errors import MasterGone, UsageError
from sshgrid.gateway import worker_messages
from sshgrid.gateway.worker_messages import WorkerExited, WorkerRequest, WorkerSignal
from sshgrid.model import Role

_MASTER, _FIRST_STREAM = 3, 0  # descriptors of a worker: its streams, then where it asks for connections to the master
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
MAX_CPU_SECONDS = 3600
MAX_MEMORY_BYTES = 2 << 30
MAX_FILE_BYTES = 256 << 20
MAX_OPEN_FILES = 256

USERS_VERBS = frozenset(
    """
    run sweep ps info logs attach wait kill hold release retry rm progress nodes toolchains shell monitor version help
    """.split()  # noqa: SIM905 - a list of quoted words reads worse
)
ADMINS_VERBS = USERS_VERBS | {"user"}


class GatewayWorker:
    """The connections of a worker process to the master, and the verbs that its user has."""

    def __init__(self, role: Role) -> None:
        self.verbs = USERS_VERBS if role is Role.USER else ADMINS_VERBS

    def connect(self) -> Connection:
        """A greeted connection as the user who has logged in. Raises MasterGone."""
        with socket.socket(fileno=os.dup(_MASTER)) as master:
            try:
                master.send(b"connection")
                _, descriptors, _, _ = socket.recv_fds(master, 16, 1)
            except OSError as error:
                raise MasterGone(f"the master is gone: {error.strerror}") from error
        if not descriptors:
            raise MasterGone("the master gives no further connection", "log in again")
        return Connection.from_socket(socket.socket(fileno=descriptors[0]))


def main(args: list[str]) -> None:
    """Serve until the master closes its end of the socket whose descriptor is given."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    master = socket.socket(fileno=int(args[0]))
    _import_everything()
    gc.collect()
    gc.freeze()
    Forkserver(master).run()


def _import_everything() -> None:
    import msgspec  # noqa: F401

    import sshgrid.cli.fast_run
    import sshgrid.cli.query
    import sshgrid.cli.run
    import sshgrid.cli.user
    import sshgrid.cli.verbs
    import sshgrid.client.follow
    import sshgrid.client.interactive
    import sshgrid.client.program
    import sshgrid.client.run_job
    import sshgrid.shell
    import sshgrid.terminal.render
    import sshgrid.terminal.screen
    import sshgrid.toolchains  # noqa: F401


class Forkserver:
    """Forks and reaps worker processes."""

    def __init__(self, master: socket.socket) -> None:
        self._master = master
        self._workers: dict[int, int] = {}  # process -> number of its request
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        """Serve until the master closes its end; then end all workers."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        poll = select.poll()
        poll.register(self._master, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if self._master.fileno() in ready and not self._receive():
                self._end_all()
                return

    def _receive(self) -> bool:
        """Act on one packet; False when the master has closed its end."""
        packet, ancillary, _, _ = self._master.recvmsg(worker_messages.MAX_PACKET, socket.CMSG_SPACE(4 * 8))
        if not packet:
            return False
        descriptors = array.array("i")
        for _, _, piece in ancillary:
            descriptors.frombytes(piece[: len(piece) - len(piece) % descriptors.itemsize])
        message = worker_messages.decode(packet)
        if isinstance(message, WorkerRequest):
            self._fork(message, list(descriptors))
        elif isinstance(message, WorkerSignal):
            self._signal(message)
        return True

    def _fork(self, request: WorkerRequest, descriptors: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:  # the limit of processes is reached: later requests may succeed
            _print(descriptors[-1], f"error: no process can be started: {error.strerror}\n")
            self._report(WorkerExited(request.number, 125))
        else:
            if pid == 0:
                _run_worker(request, descriptors)
            self._workers[pid] = request.number
        for descriptor in descriptors:
            os.close(descriptor)

    def _report(self, exited: WorkerExited) -> None:
        with contextlib.suppress(OSError):
            self._master.send(worker_messages.encode(exited))

    def _reap(self) -> None:
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._report(WorkerExited(self._workers.pop(pid), os.waitstatus_to_exitcode(status)))

    def _signal(self, message: WorkerSignal) -> None:
        for pid, number in self._workers.items():
            if number == message.number:  # not reaped yet, so the process number cannot belong to another process
                _kill(pid, message.signal)

    def _end_all(self) -> None:
        for pid in self._workers:
            _kill(pid, signal.SIGHUP)


def _print(descriptor: int, text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, text.encode())


def _kill(pid: int, number: int) -> None:
    """Send a signal to the process and to its process group."""
    with contextlib.suppress(OSError):
        os.kill(pid, number)
    with contextlib.suppress(OSError):
        os.killpg(pid, number)


# --- in the worker process --------------------------------------------------------------------------------------------


def _run_worker(request: WorkerRequest, descriptors: list[int]) -> NoReturn:
    """All that a worker process does; it never returns."""
    status = 125
    try:
        _isolate(request, descriptors)
        status = _run_command(request)
    except BaseException as error:  # noqa: BLE001 - nothing may return into the loop of the forkserver
        _print(2, f"error: internal error: {type(error).__name__}: {error}\n")
    finally:
        leave(status)
        os._exit(125)


def _isolate(request: WorkerRequest, descriptors: list[int]) -> None:
    """Set up the session, descriptors, folder, environment and resource limits of the worker."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    master, *streams = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64) for descriptor in descriptors]
    for target, descriptor in enumerate((*(streams * 3)[:3], master), _FIRST_STREAM):
        os.dup2(descriptor, target, inheritable=target != _MASTER)
    os.closerange(_MASTER + 1, 4096)
    if request.terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.umask(0o077)
    os.chdir(request.folder)
    os.environ.clear()
    os.environ.update({"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/", "TMPDIR": "."})
    os.environ.update(request.environ)
    _limit_resources()
    files.confine()


def _limit_resources() -> None:
    for resource_number, most in (
        (resource.RLIMIT_CPU, MAX_CPU_SECONDS),
        (resource.RLIMIT_AS, MAX_MEMORY_BYTES),
        (resource.RLIMIT_FSIZE, MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(resource_number)
        limit = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(resource_number, (limit, limit))
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGHUP)  # only the forkserver can report the end of a worker


def _run_command(request: WorkerRequest) -> int:
    from sshgrid.cli import fast_run
    from sshgrid.cli.verbs import invoke

    session = Session(dict(os.environ))
    session.gateway = GatewayWorker(request.role)
    try:
        args = ["shell"] if request.shell else _split(request.command)
    except UsageError as error:
        return report_error(session, error)
    if parsed := fast_run.parse(args):
        return fast_run.run(parsed, session)
    return invoke(args, session)


def _split(command: bytes) -> list[str]:
    """The words of a command line, with the quotes of a shell and nothing else of a shell. Raises UsageError."""
    try:
        words = shlex.split(os.fsdecode(command))
    except ValueError as error:
        raise UsageError(f"unbalanced quotes: {error}") from error
    if words[:1] == ["sshgrid"]:
        words = words[1:]
    if words[:1] == ["scp"]:
        raise UsageError("the old protocol of scp is not supported", "sftp, or scp of OpenSSH 9 without -O")
    return ["--help"] if words in ([], ["help"]) else words


if __name__ == "__main__":
    main(sys.argv[1:])
