"""`python -m sshgrid.cli.forkserver DESCRIPTOR`: imports the command line once and forks a worker process per request.

A child is in a session of its own, in its user's folder, with four descriptors, a small environment, no way to gain
rights and bounds on what it may use; then it is the ordinary command line, which asks the master over a socket that the
master hands to it. Refuses verbs that are not in the table, and never learns where the master's own socket is.
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

_ASK, _FIRST_STREAM = 3, 0  # descriptors of a child: its streams, then where it asks for connections
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
MOST_SECONDS_OF_CPU = 3600
MOST_MEMORY = 2 << 30
MOST_FILE = 256 << 20
MOST_OPEN = 256

USERS_VERBS = frozenset(
    """
    run sweep ps info logs attach wait kill hold release retry rm progress nodes toolchains shell monitor version help
    """.split()  # noqa: SIM905 - a list of quoted words reads worse
)
ADMINS_VERBS = USERS_VERBS | {"user"}


class Gatewayway:
    """A child's way to the master: each connection is handed over when it is asked for."""

    def __init__(self, role: Role) -> None:
        self.verbs = USERS_VERBS if role is Role.USER else ADMINS_VERBS

    def connect(self) -> Connection:
        """A greeted connection as the user whom the door let in. MasterGone when the master is gone."""
        with socket.socket(fileno=os.dup(_ASK)) as asking:
            try:
                asking.send(b"connection")
                _, descriptors, _, _ = socket.recv_fds(asking, 16, 1)
            except OSError as error:
                raise MasterGone(f"the master is gone: {error.strerror}") from error
        if not descriptors:
            raise MasterGone("the master hands over no connection", "log in again")
        return Connection.from_socket(socket.socket(fileno=descriptors[0]))


def main(words: list[str]) -> None:
    """Until the master closes its end."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    talk = socket.socket(fileno=int(words[0]))
    _import_everything()
    gc.collect()
    gc.freeze()
    Forkserver(talk).run()


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
    """Forks and reaps."""

    def __init__(self, talk: socket.socket) -> None:
        self._talk = talk
        self._children: dict[int, int] = {}  # process -> number of its order
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def run(self) -> None:
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        poll = select.poll()
        poll.register(self._talk, select.POLLIN)
        poll.register(self._woken, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._woken in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._woken, 4096)
                self._reap()
            if self._talk.fileno() in ready and not self._hear():
                self._end_all()
                return

    def _hear(self) -> bool:
        """One packet; False when the master is gone."""
        packet, ancillary, _, _ = self._talk.recvmsg(worker_messages.MAX_PACKET, socket.CMSG_SPACE(4 * 8))
        if not packet:
            return False
        descriptors = array.array("i")
        for _, _, piece in ancillary:
            descriptors.frombytes(piece[: len(piece) - len(piece) % descriptors.itemsize])
        said = worker_messages.decode(packet)
        if isinstance(said, WorkerRequest):
            self._fork(said, list(descriptors))
        elif isinstance(said, WorkerSignal):
            self._signal(said)
        return True

    def _fork(self, asked: WorkerRequest, descriptors: list[int]) -> None:
        try:
            child = os.fork()
        except OSError as error:  # no processes left: this one must live on
            _say(descriptors[-1], f"error: no process can be started: {error.strerror}\n")
            self._tell(WorkerExited(asked.number, 125))
        else:
            if child == 0:
                _live(asked, descriptors)
            self._children[child] = asked.number
        for descriptor in descriptors:
            os.close(descriptor)

    def _tell(self, ended: WorkerExited) -> None:
        with contextlib.suppress(OSError):
            self._talk.send(worker_messages.encode(ended))

    def _reap(self) -> None:
        while self._children:
            child, status = os.waitpid(-1, os.WNOHANG)
            if child == 0:
                return
            self._tell(WorkerExited(self._children.pop(child), os.waitstatus_to_exitcode(status)))

    def _signal(self, said: WorkerSignal) -> None:
        for child, number in self._children.items():
            if number == said.number:  # not reaped yet: its number can be nobody else's
                _kill(child, said.signal)

    def _end_all(self) -> None:
        for child in self._children:
            _kill(child, signal.SIGHUP)


def _say(descriptor: int, words: str) -> None:
    with contextlib.suppress(OSError):
        os.write(descriptor, words.encode())


def _kill(child: int, number: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(child, number)
    with contextlib.suppress(OSError):
        os.killpg(child, number)


# --- in the child -----------------------------------------------------------------------------------------------------


def _live(asked: WorkerRequest, descriptors: list[int]) -> NoReturn:
    """What a child does from its first breath; it never returns."""
    status = 125
    try:
        _settle(asked, descriptors)
        status = _serve(asked)
    except BaseException as error:  # noqa: BLE001 - nothing may return into the loop of the parent
        _say(2, f"error: internal error: {type(error).__name__}: {error}\n")
    finally:
        leave(status)
        os._exit(125)


def _settle(asked: WorkerRequest, descriptors: list[int]) -> None:
    """Its own session, descriptors, folder, environment and bounds."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    asking, *streams = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64) for descriptor in descriptors]
    for target, descriptor in enumerate((*(streams * 3)[:3], asking), _FIRST_STREAM):
        os.dup2(descriptor, target, inheritable=target != _ASK)
    os.closerange(_ASK + 1, 4096)
    if asked.terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.umask(0o077)
    os.chdir(asked.folder)
    os.environ.clear()
    os.environ.update({"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": "/", "TMPDIR": "."})
    os.environ.update(asked.environ)
    _bound()
    files.confine()


def _bound() -> None:
    for what, most in (
        (resource.RLIMIT_CPU, MOST_SECONDS_OF_CPU),
        (resource.RLIMIT_AS, MOST_MEMORY),
        (resource.RLIMIT_FSIZE, MOST_FILE),
        (resource.RLIMIT_NOFILE, MOST_OPEN),
        (resource.RLIMIT_CORE, 0),
    ):
        _, hard = resource.getrlimit(what)
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))
    ctypes.CDLL(None).prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGHUP)  # without the zygote nobody would learn how we end


def _serve(asked: WorkerRequest) -> int:
    from sshgrid.cli import fast_run
    from sshgrid.cli.verbs import invoke

    session = Session(dict(os.environ))
    session.gateway = Gatewayway(asked.role)
    try:
        words = ["shell"] if asked.shell else _words(asked.command)
    except UsageError as error:
        return report_error(session, error)
    if parsed := fast_run.parse(words):
        return fast_run.run(parsed, session)
    return invoke(words, session)


def _words(command: bytes) -> list[str]:
    """As a shell would split it; nothing else of a shell is understood. UsageError."""
    try:
        words = shlex.split(os.fsdecode(command))
    except ValueError as error:
        raise UsageError(f"the quotes do not match: {error}") from error
    if words[:1] == ["sshgrid"]:
        words = words[1:]
    if words[:1] == ["scp"]:
        raise UsageError("the old protocol of scp is not served", "sftp, or scp of OpenSSH 9 without -O")
    return ["--help"] if words in ([], ["help"]) else words


if __name__ == "__main__":
    main(sys.argv[1:])
