"""A grid with an SSH gateway, and four SSH clients of other projects, called in the same way."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import paramiko
import pytest

from sshgrid.client.connection import Connection
from sshgrid.protocol.messages import ClientLine, Clients, ClientsReply, Status, StatusReply
from tests.whole.grid import CommandResult, Commands, LocalGrid, wait_until

SECONDS = 60.0


class Address(NamedTuple):
    """What a client must know of an SSH gateway."""

    port: int
    host_key: str


class Key:
    """A key pair in the formats of the four clients."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / name
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(self.path)], check=True)
        self.public = self.path.with_suffix(".pub")

    @property
    def dropbear(self) -> Path:
        return self._converted("dropbear", lambda to: ["dropbearconvert", "openssh", "dropbear", str(self.path), to])

    @property
    def putty(self) -> Path:
        return self._converted("ppk", lambda to: ["puttygen", str(self.path), "-O", "private", "-o", to])

    def _converted(self, ending: str, words: Callable[[str], list[str]]) -> Path:
        made = self.path.with_name(f"{self.path.name}.{ending}")
        if not made.exists():
            subprocess.run(words(str(made)), check=True, capture_output=True)
        return made


class Gateway:
    """A grid of this machine alone, with an SSH gateway on loopback, and the keys of its users."""

    def __init__(self, folder: Path) -> None:
        self.grid = LocalGrid(folder)
        self.folder = folder
        done = self.grid("master", "start", "--listen", "127.0.0.1", "--ssh-port", "0")
        assert done.code == 0, done
        status = self.grid("--json", "master", "status").json
        self.address = Address(int(status["gateway"].rpartition(":")[2]), status["gateway_key"])
        self.keys = {name: Key(folder, name) for name in ("alice", "bob", "stranger")}
        for name in ("alice", "bob"):
            self.add_user(name)

    def add_user(self, name: str) -> None:
        done = self.grid("user", "add", name, "--key", str(self.keys[name].public))
        assert done.code == 0, done

    def home(self, name: str = "alice") -> Path:
        """Where this user's uploads are."""
        path = self.grid.state_dir / "users" / name
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    @property
    def audit(self) -> str:
        return (self.grid.state_dir / "audit.log").read_text()

    def ping(self) -> float:
        """Seconds until the master answers a question over its own socket."""
        began = time.perf_counter()
        with Connection.open(str(self.grid.state_dir / "master.sock")) as connection:
            connection.request(Status(), StatusReply)
        return time.perf_counter() - began

    def clients(self) -> tuple[ClientLine, ...]:
        """The clients that the master counts as connected."""
        with Connection.open(str(self.grid.state_dir / "master.sock")) as connection:
            return connection.request(Clients(), ClientsReply).clients

    # --- clients

    def openssh(self, name: str = "alice", *options: str, key: str = "") -> list[str]:
        return [
            *("ssh", "-F", "none", "-p", str(self.address.port), "-i", str(self.keys[key or name].path)),
            *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", *self.known, *options, "--", f"{name}@127.0.0.1"),
        ]

    @property
    def known(self) -> tuple[str, ...]:
        return (
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            f"UserKnownHostsFile={self.folder}/known",
            "-o",
            "LogLevel=ERROR",
        )

    def _dropbear(self, name: str, terminal: bool) -> list[str]:
        words = ["dbclient", "-y", "-y", "-T" if not terminal else "-t", "-p", str(self.address.port)]
        return [*words, "-i", str(self.keys[name].dropbear), f"{name}@127.0.0.1"]

    def _putty(self, name: str, terminal: bool) -> list[str]:
        words = ["plink", "-batch", "-t" if terminal else "-T", "-P", str(self.address.port)]
        return [*words, "-hostkey", self.address.host_key, "-i", str(self.keys[name].putty), f"{name}@127.0.0.1"]

    def run(
        self, client: str, command: str, stdin: bytes = b"", *, name: str = "alice", terminal: bool = False
    ) -> CommandResult:
        """One command through one of CLIENTS."""
        if client == "paramiko":
            return self._paramiko(command, stdin, name, terminal)
        words = {
            "openssh": lambda: self.openssh(name, *(("-tt",) if terminal else ())),
            "dropbear": lambda: self._dropbear(name, terminal),
            "plink": lambda: self._putty(name, terminal),
        }[client]()
        environ = {**os.environ, "HOME": str(self.folder)}
        with _typing(stdin, client == "dropbear" and terminal) as source:
            done = subprocess.run(
                [*words, command], **source, capture_output=True, timeout=SECONDS, check=False, env=environ
            )
        return CommandResult(done.returncode, done.stdout, done.stderr.decode(errors="replace"))

    @contextmanager
    def connected(self, name: str = "alice", key: str = "", password: str = "") -> Iterator[paramiko.Transport]:
        """A login with paramiko."""
        transport = paramiko.Transport(("127.0.0.1", self.address.port))
        try:
            transport.start_client(timeout=SECONDS)
            if password:
                transport.auth_password(name, password)
            else:
                transport.auth_publickey(
                    name, paramiko.Ed25519Key.from_private_key_file(str(self.keys[key or name].path))
                )
            yield transport
        finally:
            transport.close()

    def _paramiko(self, command: str, stdin: bytes, name: str, terminal: bool) -> CommandResult:
        with self.connected(name) as transport:
            channel = transport.open_session()
            if terminal:
                channel.get_pty("xterm", 80, 24)
            channel.exec_command(command)
            return Exchange(channel).to_end(stdin)


@contextmanager
def _typing(stdin: bytes, on_terminal: bool) -> Iterator[dict[str, Any]]:
    """The standard input of a client: dropbear's asks for a terminal only when it has one."""
    if not on_terminal:
        yield {"input": stdin}
        return
    ours, theirs = os.openpty()
    try:
        yield {"stdin": theirs}
    finally:
        os.close(ours)
        os.close(theirs)


class Exchange:
    """Reads the output of a channel while it writes to it."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self.channel = channel
        channel.settimeout(0.05)
        self.out, self.err = bytearray(), bytearray()

    def look(self) -> None:
        for ready, read, into in (
            (self.channel.recv_ready, self.channel.recv, self.out),
            (self.channel.recv_stderr_ready, self.channel.recv_stderr, self.err),
        ):
            while ready():
                into += read(1 << 16)

    def wait_for_stdout(self, wanted: bytes) -> None:
        def holds() -> bool:
            self.look()
            return wanted in self.out

        wait_until(holds, f"{wanted!r}", 30, lambda: (bytes(self.out[-500:]), bytes(self.err)))

    def to_end(self, stdin: bytes = b"") -> CommandResult:
        rest = memoryview(stdin)
        while rest:
            self.look()
            try:
                rest = rest[self.channel.send(bytes(rest[: 1 << 15])) :]
            except TimeoutError:
                continue
        self.channel.shutdown_write()

        def ended() -> bool:
            self.look()
            return bool(self.channel.exit_status_ready() and (self.channel.eof_received or self.channel.closed))

        wait_until(ended, "the end", SECONDS, lambda: (bytes(self.out[-500:]), bytes(self.err)))
        self.look()
        return CommandResult(self.channel.recv_exit_status(), bytes(self.out), self.err.decode(errors="replace"))


CLIENTS = ("openssh", "dropbear", "plink", "paramiko")
TOOLS = {"openssh": ("ssh",), "dropbear": ("dbclient", "dropbearconvert"), "plink": ("plink", "puttygen")}


def require(client: str) -> None:
    """Skip on a machine without it, unless the lab must be whole."""
    missing = [tool for tool in TOOLS.get(client, ()) if shutil.which(tool) is None]
    if missing and not os.environ.get("SSHGRID_REQUIRE_LAB"):
        pytest.skip(f"needs {', '.join(missing)}: scripts/setup-test-host.sh")
    assert not missing, missing


def remote(gateway: Gateway, folder: Path, name: str = "alice") -> Commands:
    """The command line on another machine, whose `ssh` has the key of this user and knows the host."""
    commands = Commands(folder)
    wrapper = commands.home / "bin" / "ssh"
    wrapper.parent.mkdir()
    options = " ".join(["-F", "none", "-i", str(gateway.keys[name].path), "-o", "IdentitiesOnly=yes", *gateway.known])
    wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} {options} "$@"\n')
    wrapper.chmod(0o700)
    return commands
