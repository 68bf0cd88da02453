"""One torture run: a lab, a grid over it, clients that send jobs, faults that strike, and the evidence for the checker.

`python -m tests.chaos --seed 7` replays the jobs and the faults of seed 7 (not the thousand races between them). A run
that is not clean keeps its evidence and says where. Needs root, as the lab does.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from tests.chaos import check, clients, plan
from tests.chaos.clients import Clients
from tests.chaos.grid import Grid, grid_over
from tests.chaos.program import LEDGER, read_ledger
from tests.chaos.troubles import Troubles
from tests.lab import machine
from tests.lab.hosts import Lab, LabHost

SLOTS = 6
RETRY = "retry: {backoff: 1s, backoff_max: 5s}\n"
PATIENT_SECONDS = 300.0  # after the last fault everything has to come to its end
CLEAN_SECONDS = 30.0  # a host that is back is clean after so long
LOOK_SECONDS = 1.0
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "COMPILE_ERROR"}


@dataclass(frozen=True)
class Wish:
    """What kind of run."""

    seed: int
    jobs: int
    hosts: int
    clients: int
    seconds: float
    kinds: tuple[str, ...] = ()
    every: float = plan.SECONDS_BETWEEN_FAULTS


def torture(wish: Wish, lab: Lab, folder: Path) -> check.Report:
    """One run; its evidence in `folder`."""
    drawn = plan.draw(wish.seed, wish.jobs, list(lab.hosts), wish.clients, wish.seconds, wish.kinds, wish.every)
    (folder / "plan.json").write_text(json.dumps(asdict(drawn)))
    seen = folder / "seen"
    seen.mkdir()
    watch = _Watch()
    with grid_over(lab, slots=SLOTS, extra=RETRY) as grid:
        users = Clients(grid, seen, Random(f"{wish.seed} victims"))
        troubles = Troubles(drawn, grid, users)
        try:
            watch.lap("beginning")
            _live(grid, drawn, users, troubles, watch)
            _testify(grid, folder, watch)
        finally:
            users.end()
            troubles.end()
            clients.keep(users.sightings, folder / "sightings.json")
            (folder / "troubles.json").write_text(json.dumps([asdict(each) for each in troubles.done]))
            with contextlib.suppress(OSError, StopIteration):
                shutil.copy(grid.state / "master.log", folder / "master.log")
    report = check.check(check.load(folder))
    report.figures["took"] = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in watch.laps.items())
    report.figures["machine"] = f"load {_machine_load()}"
    for mishap in (*users.troubles, *troubles.mishaps):
        report.findings.setdefault("mishaps", []).append(mishap)
    return report


def _machine_load() -> str:
    return " ".join(Path("/proc/loadavg").read_text().split()[:3])


class _Watch:
    """How long each part of a run took."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._at = time.monotonic()

    def lap(self, name: str) -> None:
        before, self._at = self._at, time.monotonic()
        self.laps[name] = self._at - before


def _live(grid: Grid, drawn: plan.Plan, users: Clients, troubles: Troubles, watch: _Watch) -> None:
    """From the first job to the last result."""
    grid("master", "start")
    since = time.monotonic()
    troubles.begin(since)
    sent = users.send(drawn.errands, since)
    troubles.wait()
    troubles.end()
    watch.lap("faults")
    deadline = time.monotonic() + PATIENT_SECONDS
    while time.monotonic() < deadline:
        held = release_held(grid)
        if not clients.waiting(sent) and not held and all(job["state"] in FINISHED for job in grid.jobs()):
            watch.lap("coming to an end")
            return
        time.sleep(LOOK_SECONDS)
    users.troubles.append(f"{clients.waiting(sent)} clients still wait {PATIENT_SECONDS:g} s after the last fault")


def release_held(grid: Grid) -> int:
    """Jobs that lost three hosts are held until a person says otherwise: here that person is."""
    held = [job["id"] for job in grid.jobs() if job["state"] == "PENDING" and job["reason"].startswith("lost ")]
    for job in held:
        grid("release", str(job))
    return len(held)


# --- the evidence -----------------------------------------------------------------------------------------------------
def _testify(grid: Grid, folder: Path, watch: _Watch) -> None:
    """What the queue, the logs, the ledgers and the hosts say."""
    with ThreadPoolExecutor(2) as pool:
        queue = list(pool.map(grid.job, [job["id"] for job in grid.jobs()]))
        (folder / "queue.json").write_text(json.dumps(queue))
        logs = folder / "logs"
        logs.mkdir()
        list(pool.map(lambda job: _keep_logs(grid, logs, job), [job["id"] for job in queue]))
    watch.lap("hearing the queue")
    runs = _left(grid.lab, CLEAN_SECONDS, LabHost.leftovers)
    grid("master", "stop")
    # Whoever was cut off from a session is not told that it ended: that is sshd's way, not ours.
    for host in grid.lab:
        host.reset_sessions()
    processes = _left(grid.lab, 10.0, lambda host: [" ".join(process.argv) for process in host.processes()])
    (folder / "left.json").write_text(json.dumps({"runs": runs, "processes": processes}))
    (folder / "ledger").mkdir()
    for host in grid.lab:
        lines = read_ledger(host.disk_path(LEDGER))
        (folder / "ledger" / host.name).write_text("".join(f"{line}\n" for line in lines))
    watch.lap("becoming quiet")


def _keep_logs(grid: Grid, folder: Path, job: int) -> None:
    done = grid("logs", str(job))
    (folder / f"{job}.out").write_bytes(done.stdout)
    (folder / f"{job}.err").write_bytes(done.stderr)


def _left(lab: Lab, seconds: float, look: Callable[[LabHost], Sequence[str]]) -> dict[str, list[str]]:
    """What is there on each host, given some time to go."""
    deadline = time.monotonic() + seconds
    while True:
        left = {host.name: list(look(host)) for host in lab}
        if not any(left.values()) or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


# --- as a program -----------------------------------------------------------------------------------------------------
def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    if reason := machine.missing():
        say(f"error: {reason}")
        return 125
    seed = arguments.seed if arguments.seed is not None else Random().randrange(1_000_000)
    wish = Wish(
        seed,
        arguments.jobs,
        arguments.hosts,
        arguments.clients,
        arguments.minutes * 60,
        tuple(arguments.only or ()),
        arguments.every,
    )
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-", dir="/tmp"))
    say(f"seed {seed}: {wish.jobs} jobs of {wish.clients} clients on {wish.hosts} hosts, faults for {wish.seconds:g} s")
    with Lab(wish.hosts) as lab:
        report = torture(wish, lab, folder)
    say(report.text)
    if report.is_clean and not arguments.keep:
        shutil.rmtree(folder)
        return 0
    say(f"evidence: {folder} (python -m tests.chaos.check looks again)")
    return 0 if report.is_clean else 1


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="replays the run of this seed (default: any)")
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0, help="for so long faults strike (5)")
    kinds: list[str] = [*plan.HOST_FAULTS, *plan.GRID_FAULTS]
    parser.add_argument("--only", action="append", choices=kinds, help="only this kind of fault (may be repeated)")
    parser.add_argument("--every", type=float, default=plan.SECONDS_BETWEEN_FAULTS, help="seconds between two faults")
    parser.add_argument("--keep", action="store_true", help="keep the evidence of a clean run, too")
    return parser
