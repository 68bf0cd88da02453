"""`sshgrid sweep`, as its peers are: a master is connected to every host, and has proved what it needs there.

The client's own start is measured with each run. Refuses nothing that a sweep takes.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.installed import Failed, Grid
from bench.peers.ground import Ground
from bench.table import say
from bench.work import Work, joblog_codes


class Sshgrid:
    name = "sshgrid sweep"

    def __init__(
        self, ground: Ground, command: Path, toolchains: Collection[str], weights: Mapping[str, float]
    ) -> None:
        node = {"toolchains": [*toolchains], "slots": ground.slots}
        fields = {name: node | {"weight": weights.get(name, 1.0)} for name in ground.hosts}
        self.grid = Grid(command, ground.home / "grid", ground.lab.inventory_yaml(fields=fields))
        self._toolchains = set(toolchains)

    def install(self) -> str:
        self.grid.seconds("master", "start")
        say("waiting until every host has proved its toolchains")
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
            raise Failed(f"{self.name} {work.program}: status {done.returncode}, said {done.stderr[-500:]!r}")
        work.check(self.name, done.stdout.decode(), joblog_codes(log))
        return taken

    def close(self) -> None:
        self.grid.stop()


class SshgridWith(Sshgrid):
    """`sshgrid run --with` on all hosts at once; the program counts what has come."""

    name = "sshgrid run --with"

    def run(self, work: Work) -> float:
        def to(host: str) -> subprocess.CompletedProcess[bytes]:
            return self.grid.run("run", "--on", host, "--with", str(work.cargo), str(work.program))

        start = time.perf_counter()
        with ThreadPoolExecutor(len(work.arguments)) as pool:
            ends = list(pool.map(to, work.arguments))
        taken = time.perf_counter() - start
        if failed := [end for end in ends if end.returncode != 0]:
            raise Failed(f"{self.name}: status {failed[0].returncode}, said {failed[0].stderr[-500:]!r}")
        work.check(self.name, b"".join(end.stdout for end in ends).decode(), [0] * len(ends))
        return taken
