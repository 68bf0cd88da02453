"""Checks of a submitted sweep, and counts of its tasks."""

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
    """The tasks of a sweep by what they do now: `tasks` is the sum of `ended`, `running`, `waiting` and `left`."""

    tasks: int
    ended: int
    failed: int  # of those that ended
    running: int
    speculative: int  # of those that run: with two live attempts
    waiting: int
    left: int  # will never start


def fits_batch(submission: Submission) -> bool:
    """Whether tasks of this sweep may share one start. A limit of processes needs a watchdog for each task."""
    program = submission.program
    alone = submission.keep_children or submission.slots > 1 or submission.gpus
    return program.limits.processes is None and not alone and not program.fetch


def is_success(verdict: Verdict | None) -> bool:
    """Whether a task ended with exit code 0."""
    return isinstance(verdict, Exited) and verdict.code == 0


def check(submission: Submission, read: Callable[[str], bytes]) -> None:
    """Check that the table and the inputs of a sweep fit its template. Raises UsageError.

    `read` returns a file by its digest. A submission that is not a sweep passes.
    """
    plan = submission.sweep
    if plan is None:
        return
    if submission.interactive:
        raise UsageError("a sweep cannot be interactive")
    table = parameters.decode(read(plan.table.sha256))
    if len(table) != plan.tasks or not 0 < plan.tasks <= MAX_TASKS:
        raise UsageError(f"the table of this sweep has {len(table)} rows, but the sweep has {plan.tasks} tasks")
    if plan.backup and submission.on_host_loss is not OnHostLoss.RELAUNCH:
        raise UsageError(
            f"--backup runs a task twice at the same time, and --on-host-loss {submission.on_host_loss} forbids that",
            "leave out one of them",
        )
    if plan.at_once is not None and plan.at_once < 1:
        raise UsageError("a sweep must run at least one task at a time")
    Template(submission.program.args, table.names)
    chosen = chosen_tasks(plan)
    if plan.inputs:
        _check_inputs(plan, chosen, inputs.decode(read(plan.inputs.sha256)))


def _check_inputs(plan: Sweep, chosen: Sequence[range], found: inputs.Inputs) -> None:
    if len(found) != plan.tasks:
        raise UsageError(f"the inputs of this sweep are for {len(found)} tasks, but the sweep has {plan.tasks} tasks")
    if not found.has_all(chosen):
        raise UsageError("a task of this sweep has no input, but other tasks have one")


def chosen_tasks(plan: Sweep) -> Sequence[range]:
    """The numbers of the tasks that run."""
    return parameters.parse_ranges(plan.chosen, plan.tasks) if plan.chosen else (range(1, plan.tasks + 1),)
