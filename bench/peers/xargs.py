"""A loop of ssh for each host: xargs starts as many at once as sshgrid has slots there, through an open connection.

Each host gets its share of the runs beforehand, as such loops do. Refuses programs that are not on the hosts.
"""

from __future__ import annotations

import re
import subprocess
import time

from bench.installed import TIMEOUT_SECONDS, Failed
from bench.peers.ground import Ground
from bench.work import Work


class Xargs:
    name = "xargs -P of ssh"

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def install(self) -> str:
        said = subprocess.run(["xargs", "--version"], check=True, capture_output=True, text=True).stdout
        return said.splitlines()[0].rpartition(" ")[2]

    def run(self, work: Work) -> float:
        if work.program.suffix:
            raise Failed(f"{self.name} is not told how to run {work.program.name}")
        start, hosts = time.perf_counter(), self._ground.hosts
        loops = [self._loop(work, host) for host in hosts]
        said = [
            loop.communicate("\n".join(work.arguments[at :: len(hosts)]), TIMEOUT_SECONDS)
            for at, loop in enumerate(loops)
        ]
        taken = time.perf_counter() - start
        if any(loop.returncode for loop in loops):
            raise Failed(f"{self.name}: {said}")
        # Every run says its argument after the program's end.
        done = re.findall(r"^\d+$", "".join(out for out, _ in said), re.MULTILINE)
        work.check(self.name, "", [0 for argument in work.arguments if done.count(argument) == 1])
        return taken

    def close(self) -> None:
        """Nothing of it outlives a run."""

    def _loop(self, work: Work, host: str) -> subprocess.Popen[str]:
        line = f"{work.program} {{}} && echo {{}}"
        command = ["xargs", "-P", str(self._ground.slots), "-I{}", *self._ground.ssh("-n", host, line)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
