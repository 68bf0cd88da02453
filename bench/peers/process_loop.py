"""The upper limit of the rate: `sh` starts the program in a loop, one loop for each slot of each host.

No tool that starts a process for each run can be faster. The program must be on the hosts.
"""

from __future__ import annotations

import threading
import time

from bench.peers.environment import Environment
from bench.work import Work

LOOP = 'n=0; while [ $n -lt $2 ] && "$1" $n; do n=$((n + 1)); done; echo $n'


class ProcessLoop:
    name = "fork+exec on the hosts"

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def install(self) -> str:
        return ""

    def run(self, work: Work) -> float:
        each, counts = len(work.arguments) // self._environment.all_slots, list[str]()

        def loop(host: str) -> None:
            command = ["sh", "-c", LOOP, "sh", str(work.program), str(each)]
            counts.append(self._environment.lab[host].run(command, user="grid").stdout)

        loops = [
            threading.Thread(target=loop, args=(host,)) for host in self._environment.hosts * self._environment.slots
        ]
        start = time.perf_counter()
        for thread in loops:
            thread.start()
        for thread in loops:
            thread.join()
        taken = time.perf_counter() - start
        ran = sum(map(int, counts))
        work.check(self.name, "", [0] * (ran + len(work.arguments) % self._environment.all_slots))
        return taken * len(work.arguments) / ran

    def close(self) -> None:
        """No process to end."""
