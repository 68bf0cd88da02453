"""What an engine needs to start a run or a batch, and the names of runs on nodes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sshgrid.model import Attempt, Facts, OnHostLoss, Program, Recipe, Struct, job_text

BUILD_LIMIT_SECONDS = 600


# How long a node takes at most to end a run after the end of its lease: it looks once a second, and may be slow.
LEASE_MARGIN_SECONDS = 4.0


class RunSpec(Struct, frozen=True):
    """One attempt, ready to be started on a node."""

    attempt: Attempt
    run: str  # <grid>-<job>.<attempt>: the name of the run folder
    program: Program
    recipe: Recipe
    interactive: bool = False
    terminal: bool = False
    keep_children: bool = False
    on_host_loss: OnHostLoss = OnHostLoss.RELAUNCH
    worked_seconds: float = 0.0  # since its start by an earlier master
    gpus: tuple[int, ...] = ()  # numbers of the GPUs that it can use
    lend: bool = False  # move large objects, which were sent for it, into its folder instead of copying them

    def isolation(self, facts: Facts) -> str:
        """Return the isolation of the run on that node. A pid namespace would end processes that the program leaves."""
        return "session" if self.keep_children else facts.isolation


class BatchSpec(RunSpec, frozen=True):
    """Attempts with one start that differ only in arguments, variables and input. Its other fields are the first's."""

    tasks: tuple[RunSpec, ...] = ()
    keep_warm: bool = False  # after the last task, wait a moment for more


def run_name(grid: str, attempt: Attempt) -> str:
    """Return the name of an attempt's folder on its node."""
    return f"{grid}-{job_text(attempt.job).replace('.', '_')}.{attempt.number}"


def batch_name(first: str) -> str:
    """Return the name of a batch's folder on its node, from the name of its first run: no run is the first of two."""
    grid, _, task = first.partition("-")
    return f"{grid}-b{task}"


def make_batch(specs: Iterable[RunSpec], name: str = "", *, keep_warm: bool = False) -> BatchSpec:
    """Return a batch of runs that differ only in arguments, variables and input.

    `name` is that of a batch that was started before, of which these runs are left.
    """
    tasks = tuple(specs)
    first = msgspec.structs.asdict(tasks[0]) | {"run": name or batch_name(tasks[0].run)}
    return BatchSpec(**first, tasks=tasks, keep_warm=keep_warm)


def task_name(spec: RunSpec) -> str:
    """Return the name of a run within its batch."""
    return name_in_batch(spec.run)


def name_in_batch(run: str) -> str:
    """Return the name of a run within its batch."""
    return run.partition("-")[2]


def place_in(batch: str, run: str) -> str:
    """Return the place of a run in its batch, BATCH/TASK; the run itself when `batch` is empty."""
    return f"{batch}/{name_in_batch(run)}" if batch else run


def needed(spec: RunSpec) -> tuple[str, ...]:
    """Return the digests of the files that a run, or each run of a batch, needs beside its build."""
    return needed_by(spec.tasks if isinstance(spec, BatchSpec) else [spec])


def needed_by(specs: Iterable[RunSpec]) -> tuple[str, ...]:
    """Return the digests of the files that these runs need beside their build."""
    programs = [spec.program for spec in specs]
    files = [
        file
        for program in programs
        for file in (*((program.stdin,) if program.stdin else ()), *program.data, *program.packs)
    ]
    return tuple(dict.fromkeys(file.sha256 for file in files))
