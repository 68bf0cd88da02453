"""One chaos run: a lab, a grid on it, clients that submit jobs, injected faults, and the evidence for the checker.

`python -m tests.chaos --seed 7` repeats the jobs and the faults of seed 7, but not the order of concurrent events. A
run with findings keeps its evidence and prints the folder. Needs root for the lab.
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
from tests.chaos.fault_injector import FaultInjector
from tests.chaos.grid import Grid, grid_over
from tests.chaos.program import LEDGER, read_ledger
from tests.lab import machine
from tests.lab.hosts import Lab, LabHost

SLOTS = 6
RETRY = "retry: {backoff: 1s, backoff_max: 5s}\n"
END_SECONDS = 300.0  # all jobs must end within this time after the last fault
CLEAN_SECONDS = 30.0  # a host that is back is clean within this time
POLL_SECONDS = 1.0
FINISHED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "COMPILE_ERROR"}


@dataclass(frozen=True)
class Settings:
    """The parameters of a run."""

    seed: int
    jobs: int
    hosts: int
    clients: int
    seconds: float
    kinds: tuple[str, ...] = ()
    every: float = plan.SECONDS_BETWEEN_FAULTS


def chaos_run(settings: Settings, lab: Lab, folder: Path) -> check.Report:
    """Do one run, and store its evidence in `folder`."""
    run_plan = plan.draw(
        settings.seed,
        settings.jobs,
        list(lab.hosts),
        settings.clients,
        settings.seconds,
        settings.kinds,
        settings.every,
    )
    (folder / "plan.json").write_text(json.dumps(asdict(run_plan)))
    seen = folder / "output"
    seen.mkdir()
    watch = _Stopwatch()
    with grid_over(lab, slots=SLOTS, extra=RETRY) as grid:
        users = Clients(grid, seen, Random(f"{settings.seed} victims"))
        fault_injector = FaultInjector(run_plan, grid, users)
        try:
            watch.lap("setup")
            _run_faults(grid, run_plan, users, fault_injector, watch)
            _collect_evidence(grid, folder, watch)
        finally:
            users.end()
            fault_injector.end()
            clients.store(users.observations, folder / "observations.json")
            (folder / "faults.json").write_text(json.dumps([asdict(each) for each in fault_injector.done]))
            with contextlib.suppress(OSError, StopIteration):
                shutil.copy(grid.state / "master.log", folder / "master.log")
    report = check.check(check.load(folder))
    report.figures["took"] = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in watch.laps.items())
    report.figures["machine"] = f"load {_machine_load()}"
    for error in (*users.errors, *fault_injector.errors):
        report.findings.setdefault("errors", []).append(error)
    return report


def _machine_load() -> str:
    return " ".join(Path("/proc/loadavg").read_text().split()[:3])


class _Stopwatch:
    """The seconds of each part of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._at = time.monotonic()

    def lap(self, name: str) -> None:
        before, self._at = self._at, time.monotonic()
        self.laps[name] = self._at - before


def _run_faults(
    grid: Grid, run_plan: plan.Plan, users: Clients, fault_injector: FaultInjector, watch: _Stopwatch
) -> None:
    """Submit all jobs, inject all faults, and wait until the jobs have ended."""
    grid("master", "start")
    since = time.monotonic()
    fault_injector.begin(since)
    sent = users.send(run_plan.client_jobs, since)
    fault_injector.wait()
    fault_injector.end()
    watch.lap("faults")
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        held = release_held(grid)
        if not clients.waiting(sent) and not held and all(job["state"] in FINISHED for job in grid.jobs()):
            watch.lap("end of jobs")
            return
        time.sleep(POLL_SECONDS)
    users.errors.append(f"{clients.waiting(sent)} clients still wait {END_SECONDS:g} s after the last fault")


def release_held(grid: Grid) -> int:
    """Release the jobs that are held because they lost three hosts, as a user would. Returns their number."""
    held = [job["id"] for job in grid.jobs() if job["state"] == "PENDING" and job["reason"].startswith("lost ")]
    for job in held:
        grid("release", str(job))
    return len(held)


# --- the evidence -----------------------------------------------------------------------------------------------------
def _collect_evidence(grid: Grid, folder: Path, watch: _Stopwatch) -> None:
    """Store the queue, the logs, the ledgers, and what is left on the hosts."""
    with ThreadPoolExecutor(2) as pool:
        queue = list(pool.map(grid.job, [job["id"] for job in grid.jobs()]))
        (folder / "queue.json").write_text(json.dumps(queue))
        logs = folder / "logs"
        logs.mkdir()
        list(pool.map(lambda job: _store_logs(grid, logs, job), [job["id"] for job in queue]))
    watch.lap("reading the queue")
    runs = _left(grid.lab, CLEAN_SECONDS, LabHost.leftovers)
    grid("master", "stop")
    # sshd keeps sessions whose client was cut off; they are not leftovers of sshgrid.
    for host in grid.lab:
        host.reset_sessions()
    processes = _left(grid.lab, 10.0, lambda host: [" ".join(process.argv) for process in host.processes()])
    (folder / "left.json").write_text(json.dumps({"runs": runs, "processes": processes}))
    (folder / "ledger").mkdir()
    for host in grid.lab:
        lines = read_ledger(host.disk_path(LEDGER))
        (folder / "ledger" / host.name).write_text("".join(f"{line}\n" for line in lines))
    watch.lap("cleanup")


def _store_logs(grid: Grid, folder: Path, job: int) -> None:
    done = grid("logs", str(job))
    (folder / f"{job}.out").write_bytes(done.stdout)
    (folder / f"{job}.err").write_bytes(done.stderr)


def _left(lab: Lab, seconds: float, look: Callable[[LabHost], Sequence[str]]) -> dict[str, list[str]]:
    """What `look` finds on each host, after waiting up to `seconds` for nothing."""
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
    settings = Settings(
        seed,
        arguments.jobs,
        arguments.hosts,
        arguments.clients,
        arguments.minutes * 60,
        tuple(arguments.only or ()),
        arguments.every,
    )
    folder = Path(tempfile.mkdtemp(prefix=f"chaos-{seed}-", dir="/tmp"))
    work = f"{settings.jobs} jobs of {settings.clients} clients on {settings.hosts} hosts"
    say(f"seed {seed}: {work}, faults for {settings.seconds:g} s")
    with Lab(settings.hosts) as lab:
        report = chaos_run(settings, lab, folder)
    say(report.text)
    if report.is_clean and not arguments.keep:
        shutil.rmtree(folder)
        return 0
    say(f"evidence: {folder} (check it again: python -m tests.chaos.check {folder})")
    return 0 if report.is_clean else 1


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, help="repeat the run of this seed (default: random)")
    parser.add_argument("--jobs", type=int, default=500)
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=5.0, help="minutes with faults (5)")
    kinds: list[str] = [*plan.HOST_FAULTS, *plan.GRID_FAULTS]
    parser.add_argument(
        "--only", action="append", choices=kinds, help="inject only this kind of fault (may be repeated)"
    )
    parser.add_argument("--every", type=float, default=plan.SECONDS_BETWEEN_FAULTS, help="seconds between two faults")
    parser.add_argument("--keep", action="store_true", help="keep the evidence of a clean run too")
    return parser
