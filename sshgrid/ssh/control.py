"""The SSH connection of a link in use: what first contact has found, requests to the control shell, and its loss."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from collections.abc import AsyncIterator, Iterator

import asyncssh

from sshgrid.errors import Dropped, HostError
from sshgrid.model import Node
from sshgrid.ssh.channels import ANSWER_SECONDS, RemoteShell
from sshgrid.ssh.connect import blame_in_use, end
from sshgrid.ssh.library import LIBRARY_NAME
from sshgrid.ssh.parsers import Found

EXTRA_CHANNELS = 2  # at a time, beside the lasting ones; sshd allows ten in all


class Control:
    """The connection, and the control shell on it. The parts of a link share one.

    `lost` has the error once the connection cannot be used any more.
    """

    def __init__(self, node: Node, connection: asyncssh.SSHClientConnection, shell: RemoteShell, found: Found) -> None:
        self.node = node
        self.connection = connection
        self.shell = shell
        self.found = found
        self.facts = found.facts
        self.lost: asyncio.Future[HostError] = asyncio.get_running_loop().create_future()
        self.extra_channels = asyncio.Semaphore(EXTRA_CHANNELS)

    @property
    def library(self) -> str:
        """The path of the shell functions on the node."""
        return f"{self.facts.workdir}/bin/{LIBRARY_NAME}"

    def variables(self) -> bytes:
        """Return the assignments that the shell functions need."""
        facts = self.facts
        values = {
            "W": facts.workdir,
            "LIB": self.library,
            "BOOT": facts.boot_id,
            "PATH": self.found.path,
            "ISOLATION": facts.isolation,
            "SETSID_FORK": str(int("setsid-fork" in facts.helpers)),
            "SHA256SUM": str(int("sha256sum" in facts.helpers)),
        }
        return "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items()).encode()

    async def request(self, verb: str, *words: str, seconds: float = ANSWER_SECONDS) -> bytes:
        """Call a shell function on the node and return its output. When it raises HostError, the connection is lost."""
        self.check_alive()
        try:
            with blame_in_use(self.node):
                _, output = await self.shell.request(shlex.join((verb, *words)).encode(), seconds)
                return output
        except HostError as error:
            self.lose(error)
            raise

    @contextlib.asynccontextmanager
    async def extra_shell(self) -> AsyncIterator[RemoteShell]:
        """Open a shell on a channel of its own. Failures inside raise HostError."""
        async with self.extra_channels:
            with blame_in_use(self.node):
                shell = await RemoteShell.open(self.node, self.connection)
                try:
                    yield shell
                finally:
                    shell.close()

    # --- loss

    def check_alive(self) -> None:
        """Raise Dropped when the connection is lost."""
        if self.lost.done():
            raise Dropped(self.node.name, self.lost.result().reason)

    def lose(self, error: HostError) -> None:
        """Record why the connection cannot be used any more; the first reason counts."""
        if not self.lost.done():
            self.lost.set_result(error)

    @contextlib.contextmanager
    def lost_at_end(self) -> Iterator[None]:
        """Lose the connection when the block ends, as it reads a channel that must stay open."""
        try:
            with blame_in_use(self.node):
                yield
            self.lose(Dropped(self.node.name, "the connection ended"))
        except HostError as error:
            self.lose(error)

    async def close(self, error: HostError | None = None) -> None:
        self.lose(error or Dropped(self.node.name, "closed"))
        await end(self.connection)
