"""xargs with ssh for each host: as many parallel runs as sshgrid has slots there, through an open connection.

Each host gets its part of the runs in advance. The program must be on the hosts.
"""

from __future__ import annotations

import re
import subprocess
import time

from bench.installed import TIMEOUT_SECONDS, Failed
from bench.peers.environment import Environment
from bench.work import Work


class Xargs:
    name = "xargs -P of ssh"

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def install(self) -> str:
        output = subprocess.run(["xargs", "--version"], check=True, capture_output=True, text=True).stdout
        return output.splitlines()[0].rpartition(" ")[2]

    def run(self, work: Work) -> float:
        if work.program.suffix:
            raise Failed(f"{self.name} cannot run {work.program.name}")
        start, hosts = time.perf_counter(), self._environment.hosts
        loops = [self._loop(work, host) for host in hosts]
        outputs = [
            loop.communicate("\n".join(work.arguments[at :: len(hosts)]), TIMEOUT_SECONDS)
            for at, loop in enumerate(loops)
        ]
        taken = time.perf_counter() - start
        if any(loop.returncode for loop in loops):
            raise Failed(f"{self.name}: {outputs}")
        # Every run prints its argument after the program has ended.
        done = re.findall(r"^\d+$", "".join(out for out, _ in outputs), re.MULTILINE)
        work.check(self.name, "", [0 for argument in work.arguments if done.count(argument) == 1])
        return taken

    def close(self) -> None:
        """No process to end."""

    def _loop(self, work: Work, host: str) -> subprocess.Popen[str]:
        line = f"{work.program} {{}} && echo {{}}"
        command = ["xargs", "-P", str(self._environment.slots), "-I{}", *self._environment.ssh("-n", host, line)]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
