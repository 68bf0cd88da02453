"""Hosts that are only played: one process that answers any number of SSH connections, with a load sample a second each.

Real hosts by the thousand would need a room full of machines. The SSH is real, and so is what is said: a shell of this
machine answers the first contact, and that answer is given to all. `python -m bench.standins FOLDER` prints its port,
and ends with its standard input. Refuses to run anything but that first contact.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncssh
from asyncssh.constants import MSG_IGNORE

from bench.installed import ROOT

USER = "grid"
_GREETING = re.compile(rb"printf '\\n%s\\n' ([0-9a-f]+)\n$")
_QUESTION = re.compile(rb"\{ printf '\\n%s\\n' (\S+)\n$")
_ANSWER = re.compile(rb"\n\}\nprintf '\\n%s %s\\n' (\S+) \$\?\n$")


@contextlib.contextmanager
def standins(folder: Path) -> Iterator[int]:
    """The port on which they listen, at every address of loopback; `folder` gets `id_ed25519` and `known_hosts`."""
    folder.mkdir()
    command = [sys.executable, "-m", "bench.standins", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


class _Shell(asyncssh.SSHServerSession[bytes]):
    """What `exec /bin/sh` is on a stand-in: answers every question at once, and samples when it is told to."""

    contact = b""

    def __init__(self) -> None:
        self._said = b""
        self._sampling: asyncio.TimerHandle | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def exec_requested(self, command: str) -> bool:
        return command == "exec /bin/sh"

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._said += data
        if question := _ANSWER.search(self._said):
            mark, said = question[1], self._said[: question.start()]
            self._channel.write(b"\n%s\n%s\n%s 0\n" % (mark, self._answer(said), mark))
        elif greeting := _GREETING.search(self._said):
            self._channel.write(b"\n%s\n" % greeting[1])
        elif self._said.endswith(b"\nsampler\n"):
            self._sample(asyncio.get_running_loop().time(), 0)
        else:
            return
        self._said = b""

    def _answer(self, said: bytes) -> bytes:
        if b"\nfind_tools() {" not in said:
            return b""
        if not _Shell.contact:
            script = said.partition(b"\n")[2]
            _Shell.contact = subprocess.run(["/bin/sh"], input=script, capture_output=True, check=True).stdout
        return _Shell.contact

    def _sample(self, began: float, count: int) -> None:
        loop = asyncio.get_running_loop()
        self._channel.write(b"%.2f %.2f %d %d %d\n" % (loop.time(), 0.25, 1000 + count, 5000 + 99 * count, 8 << 20))
        self._sampling = loop.call_at(began + count + 1, self._sample, began, count + 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sampling:
            self._sampling.cancel()


def _as_sshd_does() -> None:
    """asyncssh sends an empty packet before every other one; no sshd does, and the master would pay for it."""
    send = asyncssh.SSHServerConnection.send_packet

    def send_packet(self: Any, pkttype: int, *args: bytes, **more: Any) -> None:
        if pkttype != MSG_IGNORE:
            send(self, pkttype, *args, **more)

    asyncssh.SSHServerConnection.send_packet = send_packet  # type: ignore[method-assign]


class _Server(asyncssh.SSHServer):
    def session_requested(self) -> _Shell:
        return _Shell()


async def _serve(folder: Path) -> None:
    key, host_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    identity = folder / "id_ed25519"
    identity.touch(mode=0o600)
    identity.write_bytes(key.export_private_key())
    listener = await asyncssh.listen(
        "0.0.0.0",
        0,
        backlog=1000,
        server_factory=_Server,
        server_host_keys=[host_key],
        authorized_client_keys=asyncssh.import_authorized_keys(key.export_public_key().decode()),
        encoding=None,
    )
    port = listener.get_port()
    (folder / "known_hosts").write_text(f"[127.*]:{port} {host_key.export_public_key().decode()}")
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)  # the goodbyes of a thousand connections are nobody's business


if __name__ == "__main__":
    _as_sshd_does()
    asyncio.run(_serve(Path(sys.argv[1])))
