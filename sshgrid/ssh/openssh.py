"""The system's own ssh, for the bytes of large files: a process for each, beside the connection that looks and asks.

It encrypts for less than half of what Python does, on a core of its own, and what it sends stands in nobody's way. It
logs in as the connection did, and trusts the one host key that this has shown. Refuses nothing: where it cannot be
used, `open` says so by None.
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
WORD_BYTES = 4096  # of what a node says when all has come
_ALIAS = "the-node"  # what its key is looked up by


class BlockReader(Protocol):
    """What a process says, to be read piece by piece."""

    async def read(self, n: int = -1, /) -> bytes: ...


async def last_word(stdout: BlockReader) -> bytes:
    """All that it still says, to its end; of a node that does not stop talking the beginning."""
    said = b""
    while len(said) < WORD_BYTES and (piece := await stdout.read(WORD_BYTES)):
        said += piece
    return said


class OpensshTransfer:
    """One command on the node, fed by a file."""

    def __init__(self, process: asyncio.subprocess.Process, pipe: int, folder: str) -> None:
        self._process, self._pipe, self._folder = process, pipe, folder
        assert process.stdout is not None
        self._stdout = process.stdout

    @classmethod
    async def open(cls, node: Node, how: Dialing, host_key: str, command: str) -> OpensshTransfer | None:
        """`host_key`: as a line of authorized_keys has it. None where there is no ssh to be used."""
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
                process = await _started([ssh, *arguments(node, how, str(known_hosts), host_key), command], ours, how)
            except OSError as error:  # no room, no descriptors, no processes: the fault is not the node's
                log.info("%s: the system's ssh cannot be used: %s", node.name, error)
                return None
            undo.pop_all()
        os.set_blocking(pipe, False)
        with contextlib.suppress(OSError):  # a user may have no more large pipes
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return cls(process, pipe, folder)

    async def line(self) -> bytes:
        """The next one that the command says; b"" at its end."""
        return await self._stdout.readline()

    async def send(self, source: Path, at: int) -> AsyncGenerator[int, None]:
        """The file from there on, and its end; the bytes of each step. The kernel hands them over, uncopied."""
        with source.open("rb") as file, contextlib.suppress(BrokenPipeError):  # who no longer reads says why
            while count := await self._step(file.fileno(), at):
                at += count
                yield count
        self._end_input()

    async def _step(self, source: int, at: int) -> int:
        while True:
            try:
                return os.sendfile(self._pipe, source, at, PIPE_BYTES)
            except BlockingIOError:
                await _writable(self._pipe)

    async def last_word(self) -> bytes:
        return await last_word(self._stdout)

    async def ended_early(self) -> bool:
        """Whether the connection ended, and not the command."""
        return await self._process.wait() == 255

    def abandon(self, _: object) -> None:
        """At once: whoever waits for it is told that it has ended."""
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


async def _started(words: list[str], stdin: int, how: Dialing) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *words,
            stdin=stdin,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=_environment(how),
            start_new_session=True,  # no terminal that it could ask on
        )
    finally:
        os.close(stdin)


async def _writable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_writer(descriptor, _tell, ready)
    try:
        await ready
    finally:
        loop.remove_writer(descriptor)


def _tell(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def arguments(node: Node, how: Dialing, known_hosts: str, host_key: str) -> list[str]:
    """Of ssh, up to the command: the login of `dial.dial`, and nothing else that a configuration may ask for."""
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
    if "encryption_algs" in (chosen := ciphers(node, how)):
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
    if node.identity_file is not None or how.agent is None:
        options["IdentityAgent"] = "none"
    config = config_files(how)
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return ["-T", "-F", config[0] if config else "none", *words, "--", node.ssh_config or node.host]


def _environment(how: Dialing) -> dict[str, str]:
    environment = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
    return environment | ({"SSH_AUTH_SOCK": how.agent} if how.agent else {})
