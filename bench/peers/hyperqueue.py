"""HyperQueue with its in-process cluster: a server, and one worker with as many cores as sshgrid has slots.

It runs on this machine without ssh, because HyperQueue needs an agent on every host. It copies no files.
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
from pathlib import Path

from bench.installed import TIMEOUT_SECONDS
from bench.peers.environment import Environment
from bench.peers.library_process import Answers, LibraryProcess
from bench.work import Work

POLL_SECONDS = 0.005


class HyperQueue:
    name = "HyperQueue"

    def __init__(self, environment: Environment) -> None:
        self._environment = environment
        self._process = LibraryProcess(self.name, "bench.peers.hyperqueue", environment.home / "hyperqueue.log")

    def install(self) -> str:
        python = self._environment.pip("hyperqueue", "hyperqueue")
        return self._process.start(python, str(self._environment.all_slots))

    def run(self, work: Work) -> float:
        return self._process.run(work)

    def close(self) -> None:
        self._process.close()


def _main(cores: str) -> None:
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig

    answers = Answers()

    def run(program: str, arguments: list[str]) -> tuple[float, list[int]]:
        began, job = time.perf_counter(), Job()
        tasks = [job.program([program, word], stdout=None, stderr=None) for word in arguments]
        # wait_for_jobs polls once a second; a last task that depends on all others marks the end at once.
        marker = Path(f"ended-{time.monotonic_ns()}").absolute()
        job.program(["touch", str(marker)], stdout=None, stderr=None, deps=tasks)
        submitted = client.submit(job)
        while not marker.exists() and time.perf_counter() < began + TIMEOUT_SECONDS:
            time.sleep(POLL_SECONDS)
        taken = time.perf_counter() - began
        client.wait_for_jobs([submitted])  # raises when a task has failed
        return taken, [0] * len(arguments)

    with LocalCluster() as cluster:
        cluster.start_worker(WorkerConfig(cores=int(cores)))
        client = cluster.client()
        answers.serve(importlib.metadata.version("hyperqueue"), run)


if __name__ == "__main__":
    _main(*sys.argv[1:])
