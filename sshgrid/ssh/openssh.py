"""Uploads of large files by the system's ssh: one process for each, beside the connection.

It encrypts at less than half the cost of Python, on another core, and does not delay requests on the connection. It
logs in as the connection did, and accepts only the host key that the connection has accepted. Where it cannot be used,
`OpensshUpload.open` returns None.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Protocol

from sshgrid.model import Node
from sshgrid.ssh.connect import KEEPALIVE_COUNT, KEEPALIVE_SECONDS, Dialing, ciphers, config_files

log = logging.getLogger(__name__)

PIPE_BYTES = 1 << 20
ANSWER_BYTES = 4096  # of what a node prints after an upload
_ALIAS = "the-node"  # the name of the node in the known_hosts file


class BlockReader(Protocol):
    """The output of a process."""

    async def read(self, n: int = -1, /) -> bytes: ...


async def read_rest(stdout: BlockReader) -> bytes:
    """Read to the end, or until ANSWER_BYTES were read."""
    rest = b""
    while len(rest) < ANSWER_BYTES and (piece := await stdout.read(ANSWER_BYTES)):
        rest += piece
    return rest


class OpensshUpload:
    """A command on the node whose input is a file (`transfer.UploadChannel`)."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: int, folder: str) -> None:
        self._process, self._pipe, self._folder = process, pipe, folder
        assert process.stdout is not None
        self._stdout = process.stdout

    @classmethod
    async def open(cls, node: Node, dialing: Dialing, host_key: str, command: str) -> OpensshUpload | None:
        """Start ssh. Return None where it cannot be used. `host_key` has the form of a line of authorized_keys."""
        ssh = shutil.which("ssh")
        if ssh is None or sys.platform != "linux" or node.connection == "local":
            return None
        with contextlib.ExitStack() as undo:
            try:
                folder = tempfile.mkdtemp(prefix="sshgrid-")
                undo.callback(shutil.rmtree, folder, ignore_errors=True)
                known_hosts = Path(folder) / "known_hosts"
                known_hosts.write_text(f"{_ALIAS} {host_key}\n")
                ours, pipe = os.pipe()
                undo.callback(os.close, pipe)
                process = await _started(
                    [ssh, *arguments(node, dialing, str(known_hosts), host_key), command], ours, dialing
                )
            except OSError as error:  # no disk space, descriptors or processes here: not the node's fault
                log.info("%s: the system's ssh cannot be used: %s", node.name, error)
                return None
            undo.pop_all()
        os.set_blocking(pipe, False)
        with contextlib.suppress(OSError):  # the user has used up the limit on large pipes
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return cls(process, pipe, folder)

    async def readline(self) -> bytes:
        """Return the next line that the command prints; b"" at the end."""
        return await self._stdout.readline()

    async def send(self, source: Path, offset: int) -> AsyncGenerator[int, None]:
        """Send the file from this offset, then the end of input. Yield the number of bytes of each step.

        The kernel moves the bytes without copying them through this process.
        """
        # After a broken pipe the command says why it has stopped reading.
        with source.open("rb") as file, contextlib.suppress(BrokenPipeError):
            while count := await self._step(file.fileno(), offset):
                offset += count
                yield count
        self._end_input()

    async def _step(self, source: int, offset: int) -> int:
        while True:
            try:
                return os.sendfile(self._pipe, source, offset, PIPE_BYTES)
            except BlockingIOError:
                await _writable(self._pipe)

    async def read_rest(self) -> bytes:
        """Return what the command prints until it ends."""
        return await read_rest(self._stdout)

    async def connection_ended(self) -> bool:
        """Wait for the end. Return whether the connection ended before the command did."""
        return await self._process.wait() == 255

    def abandon(self, _: object) -> None:
        """Kill the process: waiting reads and writes then end."""
        self._kill()

    def _kill(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def close(self) -> None:
        self._end_input()
        self._kill()
        await self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_input(self) -> None:
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


async def _started(words: list[str], stdin: int, dialing: Dialing) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(dialing),
            start_new_session=True,  # without a terminal it cannot prompt
        )
    finally:
        os.close(stdin)


async def _writable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(descriptor, _set_done, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


def _set_done(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def arguments(node: Node, dialing: Dialing, known_hosts: str, host_key: str) -> list[str]:
    """Return the arguments of ssh before the command: the login of `connect.dial`, without forwardings and the like."""
    kind = host_key.split()[0]
    options = {
        "BatchMode": "yes",
        "ClearAllForwardings": "yes",
        "Compression": "no",
        "ConnectTimeout": str(max(1, round(node.connect_timeout_seconds))),
        "ControlMaster": "no",
        "ControlPath": "none",
        "ForwardAgent": "no",
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlgorithms": "rsa-sha2-512,rsa-sha2-256" if kind == "ssh-rsa" else kind,
        "HostKeyAlias": _ALIAS,
        "PermitLocalCommand": "no",
        "RemoteCommand": "none",
        "ServerAliveCountMax": str(KEEPALIVE_COUNT),
        "ServerAliveInterval": str(KEEPALIVE_SECONDS),
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "VerifyHostKeyDNS": "no",
        "UserKnownHostsFile": '"{}"'.format(known_hosts.replace("%", "%%")),
    }
    if "encryption_algs" in (chosen := ciphers(node, dialing)):
        options["Ciphers"] = str(chosen["encryption_algs"])
    if node.ssh_config and node.host:
        options["HostName"] = node.host
    if node.port is not None:
        options["Port"] = str(node.port)
    if node.user is not None:
        options["User"] = node.user
    if node.identity_file is not None:
        path = str(Path(node.identity_file).expanduser()).replace("%", "%%")
        options |= {"IdentityFile": f'"{path}"', "IdentitiesOnly": "yes"}
    if node.identity_file is not None or dialing.agent is None:
        options["IdentityAgent"] = "none"
    config = config_files(dialing)
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ["-T", "-F", config[0] if config else "none", *words, "--", node.ssh_config or node.host]


def _environment(dialing: Dialing) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
    return environment | ({"SSH_AUTH_SOCK": dialing.agent} if dialing.agent else {})
