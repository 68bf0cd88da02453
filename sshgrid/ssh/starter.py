"""The starter shell of a link: it starts runs, and reports when a run begins or ends."""

from __future__ import annotations

import asyncio
import secrets
import shlex
from collections.abc import Sequence

from sshgrid.errors import Dropped, HostError
from sshgrid.ssh.channels import ANSWER_SECONDS, RemoteShell
from sshgrid.ssh.connect import blame_in_use
from sshgrid.ssh.control import Control
from sshgrid.ssh.library import LOAD_ALL
from sshgrid.ssh.parsers import Started


class StarterShell:
    """Sends starts, and receives their answers and the reports of runs."""

    def __init__(self, control: Control, shell: RemoteShell) -> None:
        self.shell = shell
        self._control = control
        self._answers: dict[str, asyncio.Future[Started]] = {}
        self._wakeups: dict[str, asyncio.Event] = {}
        control.lost.add_done_callback(self._lost)
        # Reports come from runs by way of descriptor 9.
        shell.write(control.variables() + LOAD_ALL + b"exec 9>&1 2>/dev/null\n")

    async def listen(self) -> None:
        """Read the shell's lines until the connection is lost."""
        with self._control.lost_at_end():
            async for line in self.shell.lines():
                word, _, rest = line.decode("utf-8", "replace").strip().partition(" ")
                run, _, rest = rest.partition(" ")
                if word in ("running", "end"):
                    self.wakeup(run).set()
                elif (answer := self._answers.pop(run, None)) and not answer.done():
                    answer.set_result(Started(word, rest))

    async def send(self, name: str, words: Sequence[str], job: bytes) -> Started:
        """Call a shell function with `job` as its input. Return its answer under this name. Raises HostError."""
        self._control.check_alive()
        answer: asyncio.Future[Started] = asyncio.get_running_loop().create_future()
        self._answers[name] = answer
        mark = b"JOB-" + secrets.token_hex(8).encode()
        command = shlex.join(words).encode()
        try:
            with blame_in_use(self._control.node):
                self.shell.write(b"{ " + command + b" <<'" + mark + b"'\n" + job + mark + b"\n}\n")
            async with asyncio.timeout(ANSWER_SECONDS):
                return await answer
        except TimeoutError as error:
            lost = Dropped(self._control.node.name, f"no answer to a start for {ANSWER_SECONDS} s")
            self._control.lose(lost)
            raise lost from error
        finally:
            self._answers.pop(name, None)

    def wakeup(self, run: str) -> asyncio.Event:
        """Return the event that is set when the node reports on this run, and when the connection is lost."""
        return self._wakeups.setdefault(run, asyncio.Event())

    def forget(self, run: str) -> None:
        """Drop the event of a run that is removed."""
        self._wakeups.pop(run, None)

    def _lost(self, lost: asyncio.Future[HostError]) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(Dropped(self._control.node.name, lost.result().reason))
        self._answers.clear()
        for wakeup in self._wakeups.values():
            wakeup.set()
