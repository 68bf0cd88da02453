"""`--master ssh://user@host:4200`: a connection to a master elsewhere, through its door, by the system's own `ssh`.

Keys, agents, jump hosts and known hosts are so those of ssh_config. The words for ssh are a list, never a shell's line.
Refuses a host or a user that could be taken for an option.
"""
# os.path, not pathlib (see per-file-ignores), as in all of the client.

from __future__ import annotations

import re
import signal
import socket
import subprocess
from collections.abc import Mapping

from sshgrid.client.connection import Connection
from sshgrid.errors import MasterGone, UsageError

PORT = 4200
WIRE = "sshgrid-wire"  # what the door takes as a command: our protocol on its two streams
_URL = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]*)))(?::(?P<port>\d{1,5}))?/?"
)
_LEAVE_SECONDS = 2.0


class Remote(Connection):
    """A connection through an `ssh` of its own, which ends with it."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        super().__init__(sock)
        self._process = process

    def close(self) -> None:
        super().close()
        try:
            self._process.wait(_LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def command(url: str, *, ask: bool) -> list[str]:
    """The words of `ssh` for this URL. UsageError."""
    found = _URL.fullmatch(url)
    if found is None or int(found["port"] or PORT) > 65535:
        raise UsageError(f"--master: not a master's address: {url[:200]!r}", "--master ssh://user@host:4200")
    words = ["ssh", "-T", "-p", found["port"] or str(PORT)]
    words += ["-o", "ClearAllForwardings=yes", "-o", "RequestTTY=no"]
    if not ask:
        words += ["-o", "BatchMode=yes"]
    if found["user"]:
        words += ["-l", found["user"]]
    return [*words, "--", found["ipv6"] or found["host"], WIRE]


def _ignore_interrupts() -> None:
    """Ctrl-C is for us: the job is to hear of it, which takes this connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def connect(url: str, environ: Mapping[str, str], *, ask: bool) -> Connection:
    """A greeted connection. MasterGone when ssh does not get there; what it has to say about that is on stderr."""
    words = command(url, ask=ask)
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                words, stdin=theirs.fileno(), stdout=theirs.fileno(), env=dict(environ), preexec_fn=_ignore_interrupts
            )
        except OSError as error:
            ours.close()
            raise MasterGone(f"ssh cannot be started: {error.strerror}", "install the OpenSSH client") from error
    connection = Remote(ours, process)
    try:
        connection.handshake()
    except BaseException as error:
        connection.close()
        if isinstance(error, MasterGone):
            raise MasterGone(f"no way to the master: ssh to {url} ended", " ".join([*words[:-1], "version"])) from error
        raise
    return connection
