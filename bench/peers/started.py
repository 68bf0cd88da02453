"""What starting the JVMs takes: `java -cp . Square N` one after the other, one loop of `sh` for each slot of each host.

Compiled beforehand, in a folder that all hosts see, and through no connection: nobody who starts a JVM for each run can
be much quicker. Refuses other programs than those of Java.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from bench.installed import Failed, seconds
from bench.peers.ground import Ground
from bench.work import Work

LOOP = 'cd "$1" && main=$2 && shift 2 && for n do java -cp . "$main" "$n" || exit; done'


class Started:
    name = "JVMs started by sh on the hosts"

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def install(self) -> str:
        return ""

    def run(self, work: Work) -> float:
        if work.program.suffix != ".java":
            raise Failed(f"{self.name} is not told how to run {work.program.name}")
        seconds(["javac", "-d", str(self._ground.shared), str(work.program)], cwd=work.program.parent)
        loops = self._ground.hosts * self._ground.slots
        shares = [work.arguments[at :: len(loops)] for at in range(len(loops))]
        with ThreadPoolExecutor(len(loops)) as pool:
            start = time.perf_counter()
            said = list(pool.map(partial(self._loop, work), loops, shares))
            taken = time.perf_counter() - start
        work.check(self.name, "".join(said), [0] * len(work.arguments))
        return taken

    def close(self) -> None:
        """Nothing of it outlives a run."""

    def _loop(self, work: Work, host: str, arguments: tuple[str, ...]) -> str:
        """What its share of the runs has printed. A run that fails ends the loop, and its lines are missing."""
        command = ["sh", "-c", LOOP, "sh", str(self._ground.shared), work.program.stem, *arguments]
        return self._ground.lab[host].run(command, user="grid").stdout
