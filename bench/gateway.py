"""Measures commands through the SSH gateway: one against `ssh host true` with an ordinary sshd, and 50 clients at once.

Both sides use the `ssh` of the system with a key, without an open connection. The measurement fails when a client is
refused, or gets the output of another client.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import asyncssh

from bench.installed import Failed, Grid, seconds
from bench.table import Row, pairs, ratio_row, say, spread
from tests.lab.hosts import Lab

HOST = "h1"
USER = "ann"
TOOLCHAINS = ("sh",)
MOST = 1.5
CLIENTS = 50
JOBS = 20


class GatewayBench:
    """A grid over the lab's hosts with an SSH gateway on loopback, and one user."""

    def __init__(self, lab: Lab, command: Path, home: Path, repeats: int) -> None:
        self._lab = lab
        self._home = home
        self._repeats = repeats
        self._grid = Grid(
            command, home, lab.inventory_yaml(fields={name: {"toolchains": [*TOOLCHAINS]} for name in lab.hosts})
        )
        self._key = home / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._key)], check=True)

    def rows(self) -> Iterator[Row]:
        with self._grid:
            self._open()
            say("waiting until the toolchain sh is tested on every host")
            self._grid.wait_for_toolchains(set(TOOLCHAINS))
            for name in self._lab.hosts:
                self._grid.seconds("run", "--on", name, str(self._hello), expected=b"hello\n")
            yield self._against_ssh("version through the gateway / ssh host true", "version")
            yield self._against_ssh("warm run through the gateway / ssh host true", "run --stdin none hello.sh", MOST)
            yield from asyncio.run(self._many_clients())

    def _open(self) -> None:
        self._grid.seconds("master", "start", "--listen", "127.0.0.1", "--ssh-port", "0")
        self._grid.seconds("user", "add", USER, "--key", f"{self._key}.pub")
        status = self._grid.json("master", "status")
        self._port = int(status["gateway"].rpartition(":")[2])
        folder = Path(status["state_dir"]) / "users" / USER
        folder.mkdir(mode=0o700, exist_ok=True)
        self._hello = folder / "hello.sh"
        self._hello.write_text("echo hello\n")

    def _ssh(self, command: str) -> list[str]:
        options = ("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=no", "LogLevel=ERROR")
        known = f"UserKnownHostsFile={self._home}/known"
        chosen = [word for option in (*options, known) for word in ("-o", option)]
        where = ["-p", str(self._port), "-i", str(self._key), f"{USER}@127.0.0.1"]
        return ["ssh", "-F", "none", *chosen, *where, command]

    def _against_ssh(self, what: str, command: str, at_most: float | None = None) -> Row:
        through, plain = self._ssh(command), self._lab.ssh(HOST, "true")
        for ssh in (through, plain):
            seconds(ssh)
        return ratio_row(what, pairs(lambda: seconds(through), lambda: seconds(plain), self._repeats), at_most)

    # --- many clients

    async def _many_clients(self) -> list[Row]:
        began = time.perf_counter()
        found = await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))
        lasted = time.perf_counter() - began
        taken = [each for client in found for each in client]
        jobs = CLIENTS * JOBS
        return [
            Row(
                f"{CLIENTS} clients at once through the gateway, {JOBS} runs each",
                f"{jobs / lasted:.0f}/s",
                "",
                note=f"{jobs} runs in {lasted:.1f} s",
            ),
            Row("the same: one run", f"{statistics.median(taken) * 1000:.0f} ms", spread([1000 * t for t in taken], 0)),
        ]

    async def _client(self, number: int) -> list[float]:
        """The seconds of each run, one after the other. Each run must print its own word."""
        connection = await asyncssh.connect(
            "127.0.0.1", self._port, username=USER, client_keys=[str(self._key)], known_hosts=None, config=None,
            agent_path=None,
        )  # fmt: skip
        taken = []
        async with connection:
            for job in range(JOBS):
                word, began = f"{number}-{job}-{os.urandom(4).hex()}", time.perf_counter()
                done = await connection.run("run --lang sh -", input=f"echo {word}\n")
                if (done.exit_status, done.stdout) != (0, f"{word}\n"):
                    raise Failed(f"client {number}, run {job}: {done.exit_status} {done.stdout!r} {done.stderr!r}")
                taken.append(time.perf_counter() - began)
        return taken
