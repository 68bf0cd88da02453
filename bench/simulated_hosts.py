"""Simulates any number of SSH hosts in one process, each with a load sample per second.

The SSH connections are real. The output of the first contact is real too: a shell of this machine runs it once, and all
hosts give that answer. No other command runs. `python -m bench.simulated_hosts FOLDER` prints its port and ends at the
end of its standard input.
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
def simulated_hosts(folder: Path) -> Iterator[int]:
    """Start the hosts; yields their port on all loopback addresses. Writes `id_ed25519` and `known_hosts`."""
    folder.mkdir()
    command = [sys.executable, "-m", "bench.simulated_hosts", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.stdin.close()


class _Shell(asyncssh.SSHServerSession[bytes]):
    """The session of `exec /bin/sh`: it answers every command at once, and sends samples on request."""

    contact = b""

    def __init__(self) -> None:
        self._received = b""
        self._sampling: asyncio.TimerHandle | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def exec_requested(self, command: str) -> bool:
        return command == "exec /bin/sh"

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self._received += data
        if question := _ANSWER.search(self._received):
            mark, script = question[1], self._received[: question.start()]
            self._channel.write(b"\n%s\n%s\n%s 0\n" % (mark, self._answer(script), mark))
        elif greeting := _GREETING.search(self._received):
            self._channel.write(b"\n%s\n" % greeting[1])
        elif self._received.endswith(b"\nsampler\n"):
            self._sample(asyncio.get_running_loop().time(), 0)
        else:
            return
        self._received = b""

    def _answer(self, commands: bytes) -> bytes:
        if b"\nfind_tools() {" not in commands:
            return b""
        if not _Shell.contact:
            script = commands.partition(b"\n")[2]
            _Shell.contact = subprocess.run(["/bin/sh"], input=script, capture_output=True, check=True).stdout
        return _Shell.contact

    def _sample(self, began: float, count: int) -> None:
        loop = asyncio.get_running_loop()
        self._channel.write(b"%.2f %.2f %d %d %d\n" % (loop.time(), 0.25, 1000 + count, 5000 + 99 * count, 8 << 20))
        self._sampling = loop.call_at(began + count + 1, self._sample, began, count + 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._sampling:
            self._sampling.cancel()


def _send_no_empty_packets() -> None:
    """Patch asyncssh, which sends an empty packet before every other one, as sshd does not."""
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
    os._exit(0)  # closing a thousand connections properly would take seconds


if __name__ == "__main__":
    _send_no_empty_packets()
    asyncio.run(_serve(Path(sys.argv[1])))
