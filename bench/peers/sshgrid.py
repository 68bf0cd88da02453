"""`sshgrid sweep` as a peer: the master is connected to every host, and the toolchains are tested.

The start of the client is measured with each run.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.installed import Failed, Grid
from bench.peers.environment import Environment
from bench.table import say
from bench.work import Work, joblog_codes


class Sshgrid:
    name = "sshgrid sweep"

    def __init__(
        self, environment: Environment, command: Path, toolchains: Collection[str], weights: Mapping[str, float]
    ) -> None:
        node = {"toolchains": [*toolchains], "slots": environment.slots}
        fields = {name: node | {"weight": weights.get(name, 1.0)} for name in environment.hosts}
        self.grid = Grid(command, environment.home / "grid", environment.lab.inventory_yaml(fields=fields))
        self._toolchains = set(toolchains)

    def install(self) -> str:
        self.grid.seconds("master", "start")
        say("waiting until the toolchains of every host are tested")
        self.grid.wait_for_toolchains(self._toolchains)
        return str(self.grid.json("version")["version"])

    def run(self, work: Work) -> float:
        log, values = self.grid.home / "joblog", self.grid.home / "values"
        log.unlink(missing_ok=True)
        values.write_text("".join(f"{argument}\n" for argument in work.arguments))
        start = time.perf_counter()
        done = self.grid.run("sweep", "--each-line", str(values), "--joblog", str(log), str(work.program))
        taken = time.perf_counter() - start
        if done.returncode != 0:
            raise Failed(f"{self.name} {work.program}: status {done.returncode}, printed {done.stderr[-500:]!r}")
        work.check(self.name, done.stdout.decode(), joblog_codes(log))
        return taken

    def close(self) -> None:
        self.grid.stop()


class SshgridWith(Sshgrid):
    """`sshgrid run --with` on all hosts at once; the program counts the files that it gets."""

    name = "sshgrid run --with"

    def run(self, work: Work) -> float:
        def run_on(host: str) -> subprocess.CompletedProcess[bytes]:
            return self.grid.run("run", "--on", host, "--with", str(work.data), str(work.program))

        start = time.perf_counter()
        with ThreadPoolExecutor(len(work.arguments)) as pool:
            ends = list(pool.map(run_on, work.arguments))
        taken = time.perf_counter() - start
        if failed := [end for end in ends if end.returncode != 0]:
            raise Failed(f"{self.name}: status {failed[0].returncode}, printed {failed[0].stderr[-500:]!r}")
        work.check(self.name, b"".join(end.stdout for end in ends).decode(), [0] * len(ends))
        return taken
