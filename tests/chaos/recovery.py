"""Measures on the lab how long sshgrid takes to recover from each fault, and prints it with its limit.

`python -m tests.chaos recovery` exits with 1 when a limit is exceeded. Each figure is the maximum of its rounds. The
times are read from the output of the program, the queue and the clients.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any

from tests.chaos.grid import Grid, grid_over
from tests.lab import machine
from tests.lab.host import LabHost
from tests.lab.hosts import Lab
from tests.lab.machine import wait_until

PATIENCE_SECONDS = 10.0  # the minimum, which holds for young runs
SLOTS = 30
MANY_JOBS = 100
TICKER = """\
import sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    print(f"{time.time():.3f}", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@dataclass(frozen=True)
class Row:
    what: str
    limit: float
    measured: tuple[float, ...]

    @property
    def is_met(self) -> bool:
        return max(self.measured) <= self.limit

    @property
    def text(self) -> str:
        each = " ".join(f"{seconds:.2f}" for seconds in self.measured)
        met = "met" if self.is_met else "NOT MET"
        return f"{self.what:<66} {max(self.measured):6.2f} s  <= {self.limit:g} s  {met:<7}  ({each})"


class RecoveryTest:
    """A grid with a program that prints the time, and queries of its jobs."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.lab = grid.lab
        self.rng = Random(1)
        self.ticker = grid.folder / "ticker.py"
        self.ticker.write_text(TICKER)

    def with_new_master(self) -> RecoveryTest:
        """Restart the master, so that no node is in quarantine after losses of an earlier round."""
        self.grid("master", "stop")
        self.grid("master", "start")
        wait_until(lambda: self.all_up(), "every node to be up", 60, lambda: self.grid.json("nodes"))
        return self

    def send(self, *options: str, seconds: float = 600.0, step: float = 0.2) -> int:
        done = self.grid("run", "-d", *options, str(self.ticker), str(seconds), str(step))
        if done.returncode != 0:
            raise RuntimeError(done.stderr.decode(errors="replace"))
        return int(done.stdout)

    def runs(self, job: int) -> bool:
        found = self.grid.job(job)
        return bool(found["state"] == "RUNNING" and found["phase"] == "running")

    def attempts(self, job: int) -> list[dict[str, Any]]:
        return list(self.grid.job(job)["attempts"])

    @contextlib.contextmanager
    def running(self, *options: str, seconds: float = 600.0) -> Iterator[tuple[int, LabHost]]:
        """A running job and its host. At the end the job is killed, and all hosts are up again."""
        job = self.send(*options, seconds=seconds)
        wait_until(lambda: self.runs(job), f"job {job} to run", 30, lambda: self.grid.job(job))
        try:
            yield job, self.lab[self.attempts(job)[-1]["node"]]
        finally:
            for host in self.lab:
                host.power_on()
                host.heal()
            self.grid("kill", str(job), "--signal", "KILL")
            wait_until(lambda: self.all_up(), "every node to be up", 60, lambda: self.grid.json("nodes"))

    def all_up(self) -> bool:
        return all(node["state"] not in ("DOWN", "UNKNOWN") for node in self.grid.json("nodes")["nodes"])

    def relaunched(self, job: int, attempts: int, seconds: float = 120.0) -> float:
        """Wait for the attempt after `attempts` attempts; returns its start time in Unix seconds."""
        wait_until(
            lambda: len(self.attempts(job)) > attempts, f"job {job} to move", seconds, lambda: self.grid.job(job)
        )
        return datetime.fromisoformat(self.attempts(job)[attempts]["started"]).timestamp()


# --- the measurements -------------------------------------------------------------------------------------------------


def reset_connection(test: RecoveryTest) -> float:
    """Seconds from the reset until the client prints a line that is newer than the reset."""
    words = ("run", "--on", "h1", str(test.ticker), "600", "0.05")
    with test.grid.start(*words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as client:
        assert client.stdout is not None
        for _ in range(20):
            client.stdout.readline()
        test.lab["h1"].reset_sessions()
        reset = time.time()
        while float(client.stdout.readline()) <= reset:
            pass
        seconds = time.time() - reset
        client.kill()
    test.grid("kill", "last", "--signal", "KILL")
    return seconds


def rebooted_host(test: RecoveryTest, worked_seconds: float = 0.0, off_seconds: float = 0.0) -> float:
    """Seconds from the first answer of the host to the start of the next attempt."""
    with test.running() as (job, host):
        time.sleep(worked_seconds)
        host.power_off()
        time.sleep(off_seconds)
        host.power_on()
        return _since(test, job)


def _since(test: RecoveryTest, job: int) -> float:
    answered = time.time()
    return max(0.0, test.relaunched(job, 1) - answered)


def vanished_run(test: RecoveryTest) -> float:
    """Seconds from SIGKILL of the wrapper and the program, as by the OOM killer, to the start of the next attempt."""
    with test.running() as (job, host):
        victims = [str(each.pid) for each in host.processes() if any("wrapper" in word for word in each.argv)]
        victims += [str(each.pid) for each in host.processes() if any("ticker" in word for word in each.argv)]
        host.run(["kill", "-9", *victims], check=False)
        return _since(test, job)


def healed_host(test: RecoveryTest) -> float:
    """Seconds from the end of a network cut until new output is stored."""
    with test.running() as (job, host):
        time.sleep(25.0)
        host.cut()
        time.sleep(test.rng.uniform(6.0, 20.0))
        host.heal()
        healed = time.time()
        wait_until(lambda: _last_line(test, job) > healed, "new output", 60)
        return time.time() - healed


def _last_line(test: RecoveryTest, job: int) -> float:
    return float(test.grid("logs", "--tail", "1", str(job)).stdout or 0)


def silent_host(test: RecoveryTest, worked_seconds: float = 0.0) -> float:
    """Seconds from the end of the patience, counted from the last sign of life, to the start of the next attempt."""
    with test.running() as (job, host):
        time.sleep(worked_seconds)
        host.cut()
        began = datetime.fromisoformat(test.attempts(job)[0]["started"]).timestamp()
        relaunched = test.relaunched(job, 1)
        last_sign = next(
            datetime.fromisoformat(node["last_seen"]).timestamp()
            for node in test.grid.json("nodes")["nodes"]
            if node["name"] == host.name
        )
        return relaunched - last_sign - max(PATIENCE_SECONDS, last_sign - began)


def master_restart(test: RecoveryTest) -> float:
    """Seconds from the start of the new master until new output of every job is stored."""
    jobs = [test.send(seconds=900, step=0.5) for _ in range(MANY_JOBS)]
    wait_until(lambda: _running(test) >= MANY_JOBS, f"{MANY_JOBS} jobs to run", 120, lambda: _not_running(test, jobs))
    test.grid.kill_master()
    before = _outputs(test)
    start = time.time()
    test.grid("master", "start")
    wait_until(
        lambda: _grown(before, _outputs(test)) >= MANY_JOBS, "all to grow", 60, lambda: _grown(before, _outputs(test))
    )
    seconds = time.time() - start
    test.grid("kill", ",".join(map(str, jobs)), "--signal", "KILL")
    wait_until(lambda: _running(test) == 0, "all to end", 60, lambda: _running(test))
    return seconds


def _running(test: RecoveryTest) -> int:
    return sum(job["state"] == "RUNNING" and job["phase"] == "running" for job in test.grid.jobs())


def _not_running(test: RecoveryTest, jobs: Sequence[int]) -> list[dict[str, Any]]:
    return [job for job in test.grid.jobs() if job["id"] in jobs and job["phase"] != "running"]


def _outputs(test: RecoveryTest) -> dict[Path, int]:
    return {path: path.stat().st_size for path in (test.grid.state / "spool").rglob("*") if path.is_file()}


def _grown(before: dict[Path, int], now: dict[Path, int]) -> int:
    return sum(size > before.get(path, 0) for path, size in now.items())


ROWS: dict[str, tuple[str, float, Callable[[RecoveryTest], float]]] = {
    "reset": ("a reset connection: re-attached", 2.0, reset_connection),
    "reboot": ("a rebooted host: relaunch begins after its first answer", 3.0, rebooted_host),
    "reboot-later": (
        "the same for a run of 25 s, switched off for 6 to 20 s",
        3.0,
        lambda test: rebooted_host(test, 25.0, test.rng.uniform(6.0, 20.0)),
    ),
    "healed": ("a cut of 6 to 20 s, for a run of 25 s: re-attached", 3.0, healed_host),
    "vanished": ("a run that vanished: relaunch begins", 3.0, vanished_run),
    "silent": ("a silent host: relaunch begins after the end of patience", 3.0, silent_host),
    "silent-later": (
        "the same for a run of 15 s",
        3.0,
        lambda test: silent_host(test, 15.0),
    ),
    "master": (f"master restart with {MANY_JOBS} running jobs: all re-attached", 5.0, master_restart),
}


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if reason := machine.missing():
        sys.stdout.write(f"error: {reason}\n")
        return 125
    rows = []
    with Lab(4) as lab, grid_over(lab, slots=SLOTS, small_disks=False) as grid:
        test = RecoveryTest(grid)
        for name in arguments.only or ROWS:
            what, limit, measure = ROWS[name]
            rounds = 1 if name == "master" else arguments.rounds
            row = Row(what, limit, tuple(measure(test.with_new_master()) for _ in range(rounds)))
            sys.stdout.write(f"{row.text}\n")
            sys.stdout.flush()
            rows.append(row)
    return 0 if all(row.is_met for row in rows) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos recovery", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=list(ROWS))
    return parser
