"""HyperQueue's in-process cluster: its server, and one worker with as many cores as sshgrid has slots in all.

It runs on this machine and knows no ssh: an agent would have to be on every host. Refuses to copy files.
"""

from __future__ import annotations

import importlib.metadata
import sys
import time
from pathlib import Path

from bench.installed import TIMEOUT_SECONDS
from bench.peers.driven import Answers, Driven
from bench.peers.ground import Ground
from bench.work import Work

POLL_SECONDS = 0.005


class HyperQueue:
    name = "HyperQueue"

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._driven = Driven(self.name, "bench.peers.hyperqueue", ground.home / "hyperqueue.log")

    def install(self) -> str:
        python = self._ground.pip("hyperqueue", "hyperqueue")
        return self._driven.start(python, str(self._ground.all_slots))

    def run(self, work: Work) -> float:
        return self._driven.run(work)

    def close(self) -> None:
        self._driven.close()


def _main(cores: str) -> None:
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig

    answers = Answers()

    def run(program: str, arguments: list[str]) -> tuple[float, list[int]]:
        began, job = time.perf_counter(), Job()
        tasks = [job.program([program, word], stdout=None, stderr=None) for word in arguments]
        # Its own wait looks once a second. A last task, after all others, says it at once.
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
