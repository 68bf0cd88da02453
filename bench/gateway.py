"""What a command through the gateway costs, against `ssh host true` to an ordinary sshd, and what a crowd there finds.

Both sides are the system's own `ssh`, cold, with a key. Refuses the figures of a crowd of which one was refused, or was
told what another one's program said.
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
            say("waiting until every host has proved sh")
            self._grid.wait_for_toolchains(set(TOOLCHAINS))
            for name in self._lab.hosts:
                self._grid.seconds("run", "--on", name, str(self._hello), expected=b"hello\n")
            yield self._against_ssh("version through the gateway / ssh host true", "version")
            yield self._against_ssh("warm run through the gateway / ssh host true", "run --stdin none hello.sh", MOST)
            yield from asyncio.run(self._crowd())

    def _open(self) -> None:
        self._grid.seconds("master", "start", "--listen", "127.0.0.1", "--ssh-port", "0")
        self._grid.seconds("user", "add", USER, "--key", f"{self._key}.pub")
        status = self._grid.json("master", "status")
        self._port = int(status["gateway"].rpartition(":")[2])
        folder = Path(status["state_dir"]) / "users" / USER
        folder.mkdir(mode=0o700, exist_ok=True)
        self._hello = folder / "hello.sh"
        self._hello.write_text("echo hello\n")

    def _ssh(self, words: str) -> list[str]:
        options = ("IdentitiesOnly=yes", "BatchMode=yes", "StrictHostKeyChecking=no", "LogLevel=ERROR")
        known = f"UserKnownHostsFile={self._home}/known"
        chosen = [word for option in (*options, known) for word in ("-o", option)]
        where = ["-p", str(self._port), "-i", str(self._key), f"{USER}@127.0.0.1"]
        return ["ssh", "-F", "none", *chosen, *where, words]

    def _against_ssh(self, what: str, words: str, at_most: float | None = None) -> Row:
        through, plain = self._ssh(words), self._lab.ssh(HOST, "true")
        for command in (through, plain):
            seconds(command)
        return ratio_row(what, pairs(lambda: seconds(through), lambda: seconds(plain), self._repeats), at_most)

    # --- a crowd

    async def _crowd(self) -> list[Row]:
        began = time.perf_counter()
        found = await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))
        lasted = time.perf_counter() - began
        taken = [each for client in found for each in client]
        jobs = CLIENTS * JOBS
        return [
            Row(
                f"{CLIENTS} clients at once through the gateway, {JOBS} runs each: none refused, none mixed up",
                f"{jobs / lasted:.0f}/s",
                "",
                note=f"{jobs} runs in {lasted:.1f} s",
            ),
            Row("the same: one run", f"{statistics.median(taken) * 1000:.0f} ms", spread([1000 * t for t in taken], 0)),
        ]

    async def _client(self, number: int) -> list[float]:
        """Runs one after the other; each must say what it was told to say."""
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
