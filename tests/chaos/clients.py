"""The clients of a torture run: each goes about its errands as a person would, and notes what it was shown.

A client that is killed comes again and attaches to its job; one that was not told a job's number looks for it by name
in `ps`. Refuses to judge: everything seen is evidence for the checker.
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
from tests.chaos.plan import Errand

AT_ONCE = 10  # of each client
RETRIES = "60"
SENT_AGAIN = 5
PAUSE_SECONDS = 1.0


@dataclass
class Sighting:
    """One command of one client. `status` None: it was killed, or never came back."""

    label: str
    verb: str
    job: int | None
    status: int | None
    stdout: str
    stderr: str
    began: float
    ended: float


class Clients:
    """All clients of a run, who share nothing but the grid."""

    def __init__(self, grid: Grid, folder: Path, dice: Random) -> None:
        self.sightings: list[Sighting] = []
        self.troubles: list[str] = []  # what a client met that none should meet
        self._grid = grid
        self._folder = folder
        self._dice = dice
        self._lock = threading.Lock()
        self._alive: dict[int, subprocess.Popen[bytes]] = {}
        self._numbers = itertools.count(1)
        self._over = threading.Event()

    # --- the outside: send all, kill one, end all

    def send(self, errands: Sequence[Errand], since: float) -> list[Future[None]]:
        """Every errand at its time; blocks until the last one is sent."""
        pools = {errand.client: ThreadPoolExecutor(AT_ONCE, f"client {errand.client}") for errand in errands}
        sent = []
        for errand in errands:
            if self._over.wait(max(0.0, since + errand.at - time.monotonic())):
                break
            sent.append(pools[errand.client].submit(self._go, errand))
        for pool in pools.values():
            pool.shutdown(wait=False)
        return sent

    def kill_one(self) -> str:
        """SIGKILL for a client, chosen by the dice; what it was doing."""
        with self._lock:
            alive = sorted(self._alive.items())
            if not alive:
                return ""
            number, child = self._dice.choice(alive)
            child.send_signal(signal.SIGKILL)
            return str(number)

    def end(self) -> None:
        """Nobody waits any more."""
        self._over.set()
        with self._lock:
            for child in self._alive.values():
                child.kill()

    # --- one errand

    def _go(self, errand: Errand) -> None:
        try:
            label, job = self._submit(errand)
            if job is not None:
                self._follow(errand, label, job)
        except Exception as error:  # noqa: BLE001 - a client's mishap is evidence, not the end of the run
            self.troubles.append(f"{errand.job.name}: {type(error).__name__}: {error}")

    def _submit(self, errand: Errand) -> tuple[str, int | None]:
        """The job's label and, when there is more to see of it, its number."""
        for again in range(SENT_AGAIN):
            label = errand.job.name if again == 0 else f"{errand.job.name}.{again + 1}"
            sighting = self._run(errand, label)
            if sighting.status is not None and (sighting.status not in (2, 125, 127) or errand.way == "run"):
                attached = errand.way in ("run", "json")
                return label, None if attached else int(Path(sighting.stdout).read_text())
            job = self._find(label)
            if job is not None or self._over.is_set():
                return label, job
            # Killed, or refused, before it was accepted. Should it be accepted after all, it is a job of its own.
            self._over.wait(PAUSE_SECONDS)
        self.troubles.append(f"{errand.job.name}: not accepted in {SENT_AGAIN} tries")
        return errand.job.name, None

    def _run(self, errand: Errand, label: str) -> Sighting:
        words = ["run", "--name", label, "--retries", RETRIES, "--on-host-loss", errand.on_host_loss]
        if errand.way == "json":
            words = ["--json", *words]
        elif errand.way != "run":
            words.append("-d")
        verb = {"run": "run", "json": "json"}.get(errand.way, "submit")
        return self._watch(label, verb, None, *words, str(self._grid.program), *errand.job.words)

    def _follow(self, errand: Errand, label: str, job: int) -> None:
        """As long as it is killed, again."""
        verb = errand.way if errand.way in ("wait", "logs") else "attach"
        words = ["logs", "-f", str(job)] if verb == "logs" else [verb, str(job)]
        while not self._over.is_set():
            if self._watch(label, verb, job, *words).status is not None:
                return

    def _find(self, label: str) -> int | None:
        while not self._over.is_set():
            try:
                found = [job["id"] for job in self._grid.jobs() if job["name"] == label]
            except (RuntimeError, TimeoutError):  # the master was killed while it answered
                self._over.wait(PAUSE_SECONDS)
                continue
            return int(found[0]) if found else None
        return None

    def _watch(self, label: str, verb: str, job: int | None, *words: str) -> Sighting:
        """One command, from its beginning to its end."""
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
        sighting = Sighting(label, verb, job, status, str(out), str(err), began, time.time())
        self.sightings.append(sighting)
        return sighting


def waiting(sent: Sequence[Future[None]]) -> int:
    return sum(not future.done() for future in sent)


def keep(sightings: Sequence[Sighting], path: Path) -> None:
    path.write_text(json.dumps([asdict(sighting) for sighting in sightings], indent=1))
