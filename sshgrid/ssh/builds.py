"""The build cache of a node over one connection: whether it has a build, and builds as archives."""

from __future__ import annotations

import shlex
from typing import BinaryIO

from sshgrid.ssh.control import Control
from sshgrid.ssh.library import LOAD

UNPACK_SECONDS = 600


class BuildVerbs:
    """The verbs for builds. All raise HostError."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def has(self, key: str) -> bool:
        """Return whether the node has this build, and mark it as used now."""
        return (await self._control.request("has_build", key)).strip() == b"yes"

    async def unpack(self, key: str, sha256: str) -> str:
        """Turn an uploaded archive into a build, and remove it. Return an error reason, or "" on success."""
        answer = await self._control.request("unpack_build", key, sha256, seconds=UNPACK_SECONDS)
        reason = answer.decode(errors="replace").strip()
        return "" if reason == "unpacked" else reason or "it was not unpacked"

    async def pack(self, key: str, most_bytes: int, target: BinaryIO) -> str:
        """Write a build as an archive into `target`. Return an error reason, or "" on success."""
        command = shlex.join(("pack_build", key, str(most_bytes // 1024))).encode()
        async with self._control.extra_shell() as shell:
            shell.write(self._control.variables() + LOAD + command + b"\n")
            return await shell.fetch(2 * most_bytes, target)
