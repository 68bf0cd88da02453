"""What an engine needs to start a run or a batch, and the names of runs on nodes."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from sshgrid.model import Attempt, Facts, OnHostLoss, Program, Recipe, Struct, job_text

BUILD_LIMIT_SECONDS = 600


# What a node may take to see that a lease has ended, and to end the run: a look a second, KILL, and a slow machine.
LEASE_MARGIN_SECONDS = 4.0


class RunSpec(Struct, frozen=True):
    """One attempt, ready to be given to a node."""

    attempt: Attempt
    run: str  # <grid>-<job>.<attempt>: the name of the run folder
    program: Program
    recipe: Recipe
    interactive: bool = False
    terminal: bool = False
    keep_children: bool = False
    on_host_loss: OnHostLoss = OnHostLoss.RELAUNCH
    worked_seconds: float = 0.0  # of a run that an earlier master started: how long ago
    gpus: tuple[int, ...] = ()  # numbers of those that it may see
    lend: bool = False  # large objects were sent for it, and go into its folder instead of a copy

    def isolation(self, facts: Facts) -> str:
        """What keeps the run apart on that node. A pid namespace would end whatever the program leaves running."""
        return "session" if self.keep_children else facts.isolation


class BatchSpec(RunSpec, frozen=True):
    """Many attempts at once: orders that differ in nothing but words, variables and input. As an order, the first."""

    tasks: tuple[RunSpec, ...] = ()
    lanes: int = 1  # so many run at the same time
    keep_warm: bool = False  # when all have ended it waits a moment for more


def run_name(grid: str, attempt: Attempt) -> str:
    """The name of an attempt's folder on its node."""
    return f"{grid}-{job_text(attempt.job).replace('.', '_')}.{attempt.number}"


def batch_name(first: str) -> str:
    """The name of the folder of a batch on its node, by the name of its first run: no run is the first of two."""
    grid, _, task = first.partition("-")
    return f"{grid}-b{task}"


def make_batch(orders: Iterable[RunSpec], lanes: int = 1, name: str = "", *, keep_warm: bool = False) -> BatchSpec:
    """A batch of orders that differ in nothing but words, variables and input; `lanes` run at the same time.

    `name`: of one that was started before, of which these are what is left.
    """
    tasks = tuple(orders)
    first = msgspec.structs.asdict(tasks[0]) | {"run": name or batch_name(tasks[0].run)}
    return BatchSpec(**first, tasks=tasks, lanes=min(lanes, len(tasks)), keep_warm=keep_warm)


def task_name(order: RunSpec) -> str:
    """The name of an order within its batch."""
    return name_in_batch(order.run)


def name_in_batch(run: str) -> str:
    """The name of a run within its batch."""
    return run.partition("-")[2]


def place_in(batch: str, run: str) -> str:
    """What a run of a batch is called where it is to be found; as it is when there is no batch."""
    return f"{batch}/{name_in_batch(run)}" if batch else run


def needed(order: RunSpec) -> tuple[str, ...]:
    """Digests of what a run, or each run of a batch, needs beside its build."""
    return needed_by(order.tasks if isinstance(order, BatchSpec) else [order])


def needed_by(orders: Iterable[RunSpec]) -> tuple[str, ...]:
    """The same for these runs."""
    programs = [order.program for order in orders]
    files = [
        file
        for program in programs
        for file in (*((program.stdin,) if program.stdin else ()), *program.data, *program.packs)
    ]
    return tuple(dict.fromkeys(file.sha256 for file in files))
