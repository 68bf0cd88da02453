"""Maintenance of a node over one connection: diagnosis, pruning of its cache, and records of toolchain checks."""

from __future__ import annotations

import logging
import shlex

from sshgrid.errors import HostError
from sshgrid.ssh.channels import RemoteShell
from sshgrid.ssh.commands import Commands
from sshgrid.ssh.connect import blame_in_use
from sshgrid.ssh.control import Control
from sshgrid.ssh.library import read_script

log = logging.getLogger(__name__)

DIAGNOSE_SECONDS = 60
DIAGNOSE_BYTES = 1024 * 1024
PRUNE_SECONDS = 600
_DOCTOR = read_script("doctor.sh")
_PRUNE = read_script("prune.sh")


class Maintenance:
    """What keeps a node usable. The methods raise HostError, except where they say otherwise."""

    def __init__(self, control: Control, commands: Commands) -> None:
        self._control = control
        self._commands = commands

    async def diagnose(self) -> bytes:
        """Return the facts that `remote/doctor.sh` prints."""
        workdir = self._control.facts.workdir
        return (await self._commands.exec_once(_DOCTOR, (workdir,), DIAGNOSE_SECONDS, DIAGNOSE_BYTES)).output

    @property
    def server(self) -> str:
        """The name and version of the SSH server, and the fingerprint of its host key."""
        connection = self._control.connection
        key = connection.get_server_host_key()
        server = connection.get_extra_info("server_version") or "an SSH server"
        return f"{server}, host key {key.get_fingerprint()}" if key is not None else str(server)

    async def has_sftp(self) -> bool:
        """Return whether an SFTP session can be opened now. Does not raise HostError."""
        control = self._control
        try:
            with blame_in_use(control.node):
                async with control.extra_channels:
                    client = await control.connection.start_sftp_client()
                    client.exit()
                    await client.wait_closed()
        except HostError as error:
            log.info("%s: no SFTP: %s", control.node.name, error.reason)
            return False
        return True

    async def prune(self, days: int, most_bytes: int) -> None:
        """Remove objects and builds unused for `days`, then the least recently used above `most_bytes`.

        What a run needs, or was used within the last hour, stays.
        """
        control = self._control
        head = f"W={shlex.quote(control.facts.workdir)}\nset -- {days} {most_bytes // 1024}\n".encode()
        with blame_in_use(control.node):
            shell = await RemoteShell.open(control.node, control.connection)
            try:
                _, output = await shell.request(head + _PRUNE, PRUNE_SECONDS)
            finally:
                shell.close()
        log.info("%s: pruned: %s", control.node.name, output.decode("utf-8", "replace").strip())

    async def record_check(self, name: str, line: str) -> None:
        """Record the result of a toolchain check on the node, as one line under this name."""
        command = f"printf '%s\\n' {shlex.quote(line)} | record_check {shlex.quote(name)}"
        await self._control.request("eval", command)
