"""The worker processes of the SSH gateway, one for each channel, forked by the forkserver.

The forkserver (sshgrid.cli.forkserver) has imported the command line before, so that a command costs a fork and not the
start of a Python. It has a clean environment and is started again when it dies. A worker process is the ordinary
command line and asks the master as any client does.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import itertools
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from sshgrid.errors import SshgridError
from sshgrid.gateway import worker_messages
from sshgrid.gateway.worker_messages import WorkerExited, WorkerRequest, WorkerSignal
from sshgrid.paths import PACKAGE_DIR

log = logging.getLogger(__name__)

RESTART_SECONDS = 0.5
CLOSE_SECONDS = 2.0


class WorkerFailed(SshgridError):
    """No worker process can be started now."""

    code = "no-child"


class Worker:
    """One worker process. `ended` gets its status as os.waitstatus_to_exitcode returns it."""

    def __init__(self, workers: Workers, number: int) -> None:
        self._workers = workers
        self._number = number
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def signal(self, number: int) -> None:
        """Send a signal to the process and its process group; nothing when it has ended."""
        self._workers.send(WorkerSignal(self._number, number))


class Workers:
    """Starts worker processes. `open` first; `close` ends all of them."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._running: dict[int, Worker] = {}
        self._socket: socket.socket | None = None
        self._forkserver: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        """Start the forkserver."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._forkserver = subprocess.Popen(
                [sys.executable, "-m", "sshgrid.cli.forkserver", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env=worker_environment(),
                start_new_session=True,
            )
        self._socket = ours
        asyncio.get_running_loop().add_reader(ours, self._receive)

    def close(self) -> None:
        """End the forkserver, which ends the worker processes when its socket is closed."""
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None
        if self._forkserver is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._forkserver.wait(CLOSE_SECONDS)
            if self._forkserver.poll() is None:
                self._forkserver.kill()
                self._forkserver.wait()
            self._forkserver = None
        self._end_all()

    @property
    def pid(self) -> int | None:
        """The process of the forkserver; None while there is none."""
        return self._forkserver.pid if self._forkserver is not None else None

    def __len__(self) -> int:
        return len(self._running)

    def start(self, request: WorkerRequest, descriptors: Sequence[int]) -> Worker:
        """Start a worker process with these descriptors; its number is given here. Raises WorkerFailed."""
        number = next(self._numbers)
        worker = Worker(self, number)
        packet = worker_messages.encode(msgspec.structs.replace(request, number=number))
        if self._socket is None or len(packet) > worker_messages.MAX_PACKET:
            raise WorkerFailed("no process can be started for this command now")
        try:
            self._socket.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
        except OSError as error:
            raise WorkerFailed(f"no process can be started for this command now: {error.strerror}") from error
        self._running[number] = worker
        return worker

    def send(self, message: WorkerSignal) -> None:
        if self._socket is not None and message.number in self._running:
            with contextlib.suppress(OSError):  # the forkserver has died, and its worker processes die with it
                self._socket.send(worker_messages.encode(message))

    def _receive(self) -> None:
        assert self._socket is not None
        try:
            packet = self._socket.recv(worker_messages.MAX_PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._restart()
            return
        message = worker_messages.decode(packet)
        if isinstance(message, WorkerExited) and (worker := self._running.pop(message.number, None)):
            _set_status(worker, message.status)

    def _restart(self) -> None:
        log.error("the forkserver of the SSH gateway has died; it is started again")
        self.close()
        asyncio.get_running_loop().call_later(RESTART_SECONDS, self._open_again)

    def _open_again(self) -> None:
        if self._socket is None:
            self.open()

    def _end_all(self) -> None:
        for worker in self._running.values():
            _set_status(worker, -9)
        self._running.clear()


def _set_status(worker: Worker, status: int) -> None:
    if not worker.ended.done():
        worker.ended.set_result(status)


def worker_environment() -> dict[str, str]:
    """The environment of the forkserver: where Python and this package are, and nothing else of the master's."""
    kept = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}
    root = str(Path(PACKAGE_DIR).parent)
    kept["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, (root, os.environ.get("PYTHONPATH", "")))))
    return kept
