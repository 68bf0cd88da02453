"""The children of the door, as the master knows them: one process each, forked from one that has everything imported.

That process is started once with a clean environment and is started again when it dies, so a command through the door
costs a fork and not a Python. Refuses to know what a child does: it is the command line, and asks like any client.
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

from sshgrid.errors import SshgridError
from sshgrid.gateway import worker_messages
from sshgrid.gateway.worker_messages import WorkerExited, WorkerRequest, WorkerSignal
from sshgrid.paths import PACKAGE_DIR

log = logging.getLogger(__name__)

START_AGAIN_SECONDS = 0.5


class WorkerFailed(SshgridError):
    """None can be made just now."""

    code = "no-child"


class Worker:
    """One process that serves one channel."""

    def __init__(self, children: Workers, number: int) -> None:
        self._children = children
        self._number = number
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def signal(self, number: int) -> None:
        """To the child and all of its group; nothing when it has ended."""
        self._children.send(WorkerSignal(self._number, number))


class Workers:
    """Makes them. `open` first, `close` ends all."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._living: dict[int, Worker] = {}
        self._talk: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def open(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "sshgrid.cli.forkserver", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env=worker_environment(),
                start_new_session=True,
            )
        self._talk = ours
        asyncio.get_running_loop().add_reader(ours, self._hear)

    def close(self) -> None:
        """Whoever is left is ended: with its end of the talk the process ends its children and itself."""
        if self._talk is not None:
            asyncio.get_running_loop().remove_reader(self._talk)
            self._talk.close()
            self._talk = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            self._process = None
        self._lose_all()

    def __len__(self) -> int:
        return len(self._living)

    def make(self, asked: WorkerRequest, descriptors: Sequence[int]) -> Worker:
        """A child for this order, whose number is given here. NoChild when none can be made."""
        number = next(self._numbers)
        child = Worker(self, number)
        packet = worker_messages.encode(
            WorkerRequest(number, *(getattr(asked, name) for name in WorkerRequest.__struct_fields__[1:]))
        )
        if self._talk is None or len(packet) > worker_messages.MAX_PACKET:
            raise WorkerFailed("this cannot be served now")
        try:
            self._talk.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])
        except OSError as error:
            raise WorkerFailed(f"this cannot be served now: {error.strerror}") from error
        self._living[number] = child
        return child

    def send(self, said: WorkerSignal) -> None:
        if self._talk is not None and said.number in self._living:
            with contextlib.suppress(OSError):  # it dies, and so does the child
                self._talk.send(worker_messages.encode(said))

    def _hear(self) -> None:
        assert self._talk is not None
        try:
            packet = self._talk.recv(worker_messages.MAX_PACKET)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._start_again()
            return
        said = worker_messages.decode(packet)
        if isinstance(said, WorkerExited) and (child := self._living.pop(said.number, None)) and not child.ended.done():
            child.ended.set_result(said.status)

    def _start_again(self) -> None:
        log.error("the process that makes children of the door has died; another one is started")
        self.close()
        asyncio.get_running_loop().call_later(START_AGAIN_SECONDS, self._open_again)

    def _open_again(self) -> None:
        if self._talk is None:
            self.open()

    def _lose_all(self) -> None:
        for child in self._living.values():
            if not child.ended.done():
                child.ended.set_result(-9)
        self._living.clear()


def worker_environment() -> dict[str, str]:
    """Nothing of the master's own environment but where Python and this package are."""
    kept = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONSAFEPATH": "1", "PYTHONNOUSERSITE": "1"}
    root = str(Path(PACKAGE_DIR).parent)
    kept["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, (root, os.environ.get("PYTHONPATH", "")))))
    return kept
