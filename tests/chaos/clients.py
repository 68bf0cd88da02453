"""The clients of a chaos run: each submits its jobs, follows them, and records all output.

A killed client attaches to its job again. A client without a job number finds its job by name in `ps`. The records are
evidence for the checker; nothing is checked here.
"""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from tests.chaos.grid import Grid
from tests.chaos.plan import ClientJob

AT_ONCE = 10  # of each client
RETRIES = "60"
SENT_AGAIN = 5
PAUSE_SECONDS = 1.0


@dataclass
class CommandRecord:
    """One command of a client. `status` is None when it was killed."""

    label: str
    verb: str
    job: int | None
    status: int | None
    stdout: str
    stderr: str
    began: float
    ended: float


class Clients:
    """All clients of a run."""

    def __init__(self, grid: Grid, folder: Path, rng: Random) -> None:
        self.observations: list[CommandRecord] = []
        self.errors: list[str] = []  # unexpected errors of the clients
        self._grid = grid
        self._folder = folder
        self._rng = rng
        self._lock = threading.Lock()
        self._alive: dict[int, subprocess.Popen[bytes]] = {}
        self._numbers = itertools.count(1)
        self._ended = threading.Event()

    # --- all clients

    def send(self, client_jobs: Sequence[ClientJob], since: float) -> list[Future[None]]:
        """Submit every job at its time; returns after the last one."""
        pools = {
            client_job.client: ThreadPoolExecutor(AT_ONCE, f"client {client_job.client}") for client_job in client_jobs
        }
        sent = []
        for client_job in client_jobs:
            if self._ended.wait(max(0.0, since + client_job.at - time.monotonic())):
                break
            sent.append(pools[client_job.client].submit(self._do, client_job))
        for pool in pools.values():
            pool.shutdown(wait=False)
        return sent

    def kill_one(self) -> str:
        """Send SIGKILL to a random client; returns the number of its command."""
        with self._lock:
            alive = sorted(self._alive.items())
            if not alive:
                return ""
            number, child = self._rng.choice(alive)
            child.send_signal(signal.SIGKILL)
            return str(number)

    def end(self) -> None:
        """End all clients."""
        self._ended.set()
        with self._lock:
            for child in self._alive.values():
                child.kill()

    # --- one job

    def _do(self, client_job: ClientJob) -> None:
        try:
            label, job = self._submit(client_job)
            if job is not None:
                self._follow(client_job, label, job)
        except Exception as error:  # noqa: BLE001 - it is reported as a finding
            self.errors.append(f"{client_job.job.name}: {type(error).__name__}: {error}")

    def _submit(self, client_job: ClientJob) -> tuple[str, int | None]:
        """The label of the job, and its number if it must still be followed."""
        for again in range(SENT_AGAIN):
            label = client_job.job.name if again == 0 else f"{client_job.job.name}.{again + 1}"
            record = self._run(client_job, label)
            if record.status is not None and (record.status not in (2, 125, 127) or client_job.way == "run"):
                attached = client_job.way in ("run", "json")
                return label, None if attached else int(Path(record.stdout).read_text())
            job = self._find(label)
            if job is not None or self._ended.is_set():
                return label, job
            # The client was killed or refused before the job was accepted. If it was accepted later, it is another job.
            self._ended.wait(PAUSE_SECONDS)
        self.errors.append(f"{client_job.job.name}: not accepted in {SENT_AGAIN} tries")
        return client_job.job.name, None

    def _run(self, client_job: ClientJob, label: str) -> CommandRecord:
        words = ["run", "--name", label, "--retries", RETRIES, "--on-host-loss", client_job.on_host_loss]
        if client_job.way == "json":
            words = ["--json", *words]
        elif client_job.way != "run":
            words.append("-d")
        verb = {"run": "run", "json": "json"}.get(client_job.way, "submit")
        return self._watch(label, verb, None, *words, str(self._grid.program), *client_job.job.words)

    def _follow(self, client_job: ClientJob, label: str, job: int) -> None:
        """Follow the job; start again each time that the client is killed."""
        verb = client_job.way if client_job.way in ("wait", "logs") else "attach"
        words = ["logs", "-f", str(job)] if verb == "logs" else [verb, str(job)]
        while not self._ended.is_set():
            if self._watch(label, verb, job, *words).status is not None:
                return

    def _find(self, label: str) -> int | None:
        while not self._ended.is_set():
            try:
                found = [job["id"] for job in self._grid.jobs() if job["name"] == label]
            except (RuntimeError, TimeoutError):  # the master was killed while it answered
                self._ended.wait(PAUSE_SECONDS)
                continue
            return int(found[0]) if found else None
        return None

    def _watch(self, label: str, verb: str, job: int | None, *words: str) -> CommandRecord:
        """Run one command to its end and record it."""
        number = next(self._numbers)
        out, err = self._folder / f"{number}.{label}.{verb}.out", self._folder / f"{number}.{label}.{verb}.err"
        began = time.time()
        child = self._grid.start(*words, stdout=out, stderr=err)
        with self._lock:
            self._alive[number] = child
        status: int | None = child.wait()
        with self._lock:
            del self._alive[number]
        if status == -signal.SIGKILL:
            status = None
        record = CommandRecord(label, verb, job, status, str(out), str(err), began, time.time())
        self.observations.append(record)
        return record


def waiting(sent: Sequence[Future[None]]) -> int:
    return sum(not future.done() for future in sent)


def store(observations: Sequence[CommandRecord], path: Path) -> None:
    path.write_text(json.dumps([asdict(record) for record in observations], indent=1))
