"""The time of the JVM starts: `java -cp . Square N` in a loop of `sh`, one loop for each slot of each host.

The program is compiled before, in a folder that all hosts share, and no connection is used. No tool that starts a JVM
for each run can be much faster. Only for programs in Java.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from bench.installed import Failed, seconds
from bench.peers.environment import Environment
from bench.work import Work

LOOP = 'cd "$1" && main=$2 && shift 2 && for n do java -cp . "$main" "$n" || exit; done'


class JvmLoop:
    name = "JVMs started by sh on the hosts"

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def install(self) -> str:
        return ""

    def run(self, work: Work) -> float:
        if work.program.suffix != ".java":
            raise Failed(f"{self.name} cannot run {work.program.name}")
        seconds(["javac", "-d", str(self._environment.shared), str(work.program)], cwd=work.program.parent)
        loops = self._environment.hosts * self._environment.slots
        shares = [work.arguments[at :: len(loops)] for at in range(len(loops))]
        with ThreadPoolExecutor(len(loops)) as pool:
            start = time.perf_counter()
            outputs = list(pool.map(partial(self._loop, work), loops, shares))
            taken = time.perf_counter() - start
        work.check(self.name, "".join(outputs), [0] * len(work.arguments))
        return taken

    def close(self) -> None:
        """No process to end."""

    def _loop(self, work: Work, host: str, arguments: tuple[str, ...]) -> str:
        """The output of these runs. A failed run ends the loop, so lines are missing."""
        command = ["sh", "-c", LOOP, "sh", str(self._environment.shared), work.program.stem, *arguments]
        return self._environment.lab[host].run(command, user="grid").stdout
