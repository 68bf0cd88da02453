"""Checks of a sweep's description, and counts of its tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sshgrid.errors import UsageError
from sshgrid.model import (
    MAX_TASKS,
    Exited,
    OnHostLoss,
    Struct,
    Submission,
    Sweep,
    Verdict,
)
from sshgrid.sweeps import inputs, parameters
from sshgrid.sweeps.templates import Template


class Counts(Struct, frozen=True):
    """Where the tasks of a sweep stand; together they are all tasks that it has."""

    tasks: int
    ended: int
    failed: int  # among those that ended
    running: int
    waiting: int
    left: int  # never to begin


def fits_batch(submission: Submission) -> bool:
    """Whether tasks of this sweep may share one start: no process limit, as it takes a watchdog beside each task."""
    program = submission.program
    alone = submission.keep_children or submission.slots > 1 or submission.gpus
    return program.limits.processes is None and not alone and not program.fetch


def is_success(verdict: Verdict | None) -> bool:
    """Whether a task ended as it should."""
    return isinstance(verdict, Exited) and verdict.code == 0


def check(submission: Submission, read: Callable[[str], bytes]) -> None:
    """UsageError unless this sweep can be run: its table is whole and fits its template. `read`: a file by digest."""
    plan = submission.sweep
    if plan is None:
        return
    if submission.interactive:
        raise UsageError("a sweep cannot be interactive")
    table = parameters.decode(read(plan.table.sha256))
    if len(table) != plan.tasks or not 0 < plan.tasks <= MAX_TASKS:
        raise UsageError(f"the table of this sweep has {len(table)} rows, and {plan.tasks} were announced")
    if plan.backup and submission.on_host_loss is not OnHostLoss.RELAUNCH:
        raise UsageError(
            f"--backup runs a task twice at the same time, and --on-host-loss {submission.on_host_loss} forbids that",
            "leave out one of them",
        )
    if plan.at_once is not None and plan.at_once < 1:
        raise UsageError("a sweep that may run no task at once never ends")
    Template(submission.program.args, table.names)
    chosen = chosen_tasks(plan)
    if plan.inputs:
        _check_inputs(plan, chosen, inputs.decode(read(plan.inputs.sha256)))


def _check_inputs(plan: Sweep, chosen: Sequence[range], found: inputs.Inputs) -> None:
    if len(found) != plan.tasks:
        raise UsageError(f"the inputs of this sweep are for {len(found)} tasks, and {plan.tasks} were announced")
    if not found.has_all(chosen):
        raise UsageError("a task of this sweep has no input, though others have")


def chosen_tasks(plan: Sweep) -> Sequence[range]:
    """The numbers of those that are to be run."""
    return parameters.parse_ranges(plan.chosen, plan.tasks) if plan.chosen else (range(1, plan.tasks + 1),)
