"""Dask's SSHCluster over the hosts: a worker on each, a thread for each slot, a subprocess for each run.

The scheduler is on the first host, and so is a worker. Refuses to copy files: it runs what is on the hosts.
"""

from __future__ import annotations

import subprocess
import sys
import time

from bench.peers.driven import Answers, Driven
from bench.peers.ground import Ground
from bench.work import Work


class Dask:
    name = "Dask SSHCluster"

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._driven = Driven(self.name, "bench.peers.dask", ground.home / "dask.log")

    def install(self) -> str:
        python = self._ground.pip("dask", "dask[distributed]", "asyncssh")
        lab = self._ground.lab
        addresses = [host.address for host in lab]
        keys = (str(lab.identity_file), str(lab.known_hosts))
        return self._driven.start(python, str(self._ground.slots), *keys, *addresses)

    def run(self, work: Work) -> float:
        return self._driven.run(work)

    def close(self) -> None:
        self._driven.close()


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
