"""Single scripts and commands on a node, each in a shell of its own on an extra channel."""

from __future__ import annotations

import asyncio
import math
import os
import shlex
from collections.abc import Iterable, Sequence

from sshgrid.errors import Dropped
from sshgrid.ssh.channels import ANSWER_SECONDS, CommandOutput
from sshgrid.ssh.control import Control
from sshgrid.ssh.library import read_script

_EXECUTE = read_script("execute.sh")


class Commands:
    """Runs scripts and commands. Raises HostError."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def exec_once(
        self, script: bytes, words: Iterable[str | bytes], seconds: float, most_bytes: int
    ) -> CommandOutput:
        """Run a script with these arguments and the PATH of runs. Raises Dropped after `seconds`."""
        control = self._control
        quoted = b" ".join(os.fsencode(shlex.quote(os.fsdecode(word))) for word in words)
        head = b"PATH=%s\nexport PATH\nset -- %s\n" % (shlex.quote(control.found.path).encode(), quoted)
        async with control.extra_shell() as shell:
            try:
                async with asyncio.timeout(seconds):
                    return await shell.run(head + script, most_bytes)
            except TimeoutError as error:
                raise Dropped(control.node.name, f"no answer for {seconds:g} s") from error

    async def execute(self, words: Sequence[bytes], limit_seconds: float, most_bytes: int) -> CommandOutput:
        """Run a user's command. The answer is its exit status, and `late` when the time limit has ended it."""
        limit = str(max(1, math.ceil(limit_seconds)))
        return await self.exec_once(_EXECUTE, (limit, *words), limit_seconds + ANSWER_SECONDS, most_bytes)
