"""`--master ssh://user@host:4200`: a connection to a master elsewhere, through its SSH gateway and the local `ssh`.

Keys, agents, jump hosts and known hosts are therefore those of ssh_config. The command is an argument list, not a line
for a shell; a host or user that could be taken for an option is refused.
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
WIRE = "sshgrid-wire"  # the command of the SSH gateway that speaks our protocol on stdin and stdout
_URL = re.compile(
    r"ssh://(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[A-Za-z0-9_](?:[A-Za-z0-9_.-]*)))(?::(?P<port>\d{1,5}))?/?"
)
_EXIT_SECONDS = 2.0  # for ssh


class RemoteConnection(Connection):
    """A connection through an `ssh` process, which ends with it."""

    def __init__(self, sock: socket.socket, process: subprocess.Popen[bytes]) -> None:
        super().__init__(sock)
        self._process = process

    def close(self) -> None:
        super().close()
        try:
            self._process.wait(_EXIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def command(url: str, *, prompts: bool) -> list[str]:
    """The `ssh` command for this URL. Raises UsageError."""
    found = _URL.fullmatch(url)
    if found is None or int(found["port"] or PORT) > 65535:
        raise UsageError(f"--master: not the address of a master: {url[:200]!r}", "--master ssh://user@host:4200")
    argv = ["ssh", "-T", "-p", found["port"] or str(PORT)]
    argv += ["-o", "ClearAllForwardings=yes", "-o", "RequestTTY=no"]
    if not prompts:
        argv += ["-o", "BatchMode=yes"]
    if found["user"]:
        argv += ["-l", found["user"]]
    return [*argv, "--", found["ipv6"] or found["host"], WIRE]


def _ignore_interrupts() -> None:
    """Ctrl-C must reach only the client, which cancels the job over this connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def connect(url: str, environ: Mapping[str, str], *, prompts: bool) -> Connection:
    """A connection after the handshake. MasterGone when ssh fails; its own message is on stderr."""
    argv = command(url, prompts=prompts)
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                argv, stdin=theirs.fileno(), stdout=theirs.fileno(), env=dict(environ), preexec_fn=_ignore_interrupts
            )
        except OSError as error:
            ours.close()
            raise MasterGone(f"cannot start ssh: {error.strerror}", "install the OpenSSH client") from error
    connection = RemoteConnection(ours, process)
    try:
        connection.handshake()
    except BaseException as error:
        connection.close()
        if isinstance(error, MasterGone):
            raise MasterGone(
                f"cannot reach the master: ssh to {url} ended", " ".join([*argv[:-1], "version"])
            ) from error
        raise
    return connection
