"""What the hosts' kernels give: `sh` starting the program in a loop, on every host at once, one loop for each slot.

Nobody can be quicker who starts a process for each run. Refuses programs that are not on the hosts.
"""

from __future__ import annotations

import threading
import time

from bench.peers.ground import Ground
from bench.work import Work

LOOP = 'n=0; while [ $n -lt $2 ] && "$1" $n; do n=$((n + 1)); done; echo $n'


class Limit:
    name = "fork+exec on the hosts"

    def __init__(self, ground: Ground) -> None:
        self._ground = ground

    def install(self) -> str:
        return ""

    def run(self, work: Work) -> float:
        each, said = len(work.arguments) // self._ground.all_slots, list[str]()

        def loop(host: str) -> None:
            command = ["sh", "-c", LOOP, "sh", str(work.program), str(each)]
            said.append(self._ground.lab[host].run(command, user="grid").stdout)

        loops = [threading.Thread(target=loop, args=(host,)) for host in self._ground.hosts * self._ground.slots]
        start = time.perf_counter()
        for thread in loops:
            thread.start()
        for thread in loops:
            thread.join()
        taken = time.perf_counter() - start
        ran = sum(map(int, said))
        work.check(self.name, "", [0] * (ran + len(work.arguments) % self._ground.all_slots))
        return taken * len(work.arguments) / ran

    def close(self) -> None:
        """Nothing of it outlives a run."""
