"""Dask with an SSHCluster: a worker on each host, a thread for each slot, a subprocess for each run.

The scheduler runs on the first host, beside a worker. It copies no files: the program must be on the hosts.
"""

from __future__ import annotations

import subprocess
import sys
import time

from bench.peers.environment import Environment
from bench.peers.library_process import Answers, LibraryProcess
from bench.work import Work


class Dask:
    name = "Dask SSHCluster"

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._process = LibraryProcess(self.name, "bench.peers.dask", environment.home / "dask.log")

    def install(self) -> str:
        python = self._environment.pip("dask", "dask[distributed]", "asyncssh")
        lab = self._environment.lab
        addresses = [host.address for host in lab]
        keys = (str(lab.identity_file), str(lab.known_hosts))
        return self._process.start(python, str(self._environment.slots), *keys, *addresses)

    def run(self, work: Work) -> float:
        return self._process.run(work)

    def close(self) -> None:
        self._process.close()


def _main(slots: str, key: str, known_hosts: str, *addresses: str) -> None:
    import distributed

    answers = Answers()

    def start(command: list[str]) -> int:
        return subprocess.run(command, check=False).returncode

    def run(program: str, arguments: list[str]) -> tuple[float, list[int]]:
        began = time.perf_counter()
        codes = client.gather(client.map(start, [[program, word] for word in arguments], pure=False))
        return time.perf_counter() - began, codes

    cluster = distributed.SSHCluster(
        [addresses[0], *addresses],
        connect_options={"username": "grid", "client_keys": [key], "known_hosts": known_hosts, "config": None},
        scheduler_options={"host": addresses[0], "dashboard": False},
        worker_options={"nthreads": int(slots), "dashboard": False},
        remote_python=sys.executable,
    )
    with cluster, distributed.Client(cluster) as client:
        client.wait_for_workers(len(addresses), timeout=60)
        answers.serve(distributed.__version__, run)


if __name__ == "__main__":
    _main(*sys.argv[1:])
