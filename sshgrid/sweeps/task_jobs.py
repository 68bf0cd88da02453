"""The job that a task of a sweep is: the program of the sweep with the arguments and the input of one task."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import cached_property
from os import fsdecode

import msgspec

from sshgrid.model import Job, task_id
from sshgrid.sweeps import inputs, parameters
from sshgrid.sweeps.templates import Template


class TaskJobs:
    """The tasks of one sweep as jobs. `read` returns a file by its digest; it is called when the first task starts."""

    def __init__(self, sweep: Job, read: Callable[[str], bytes]) -> None:
        assert sweep.submission.sweep is not None
        self._sweep = sweep
        self._plan = sweep.submission.sweep
        self._read = read

    @cached_property
    def _table(self) -> parameters.Table:
        return parameters.decode(self._read(self._plan.table.sha256))

    @cached_property
    def _inputs(self) -> inputs.Inputs | None:
        return inputs.decode(self._read(self._plan.inputs.sha256)) if self._plan.inputs else None

    @cached_property
    def _template(self) -> Template:
        return Template(self._sweep.submission.program.args, self._table.names)

    def job(self, number: int) -> Job:
        """The job that a task is before it starts."""
        submission = self._sweep.submission
        args = self._template.expand(self._table.row(number), number)
        stdin = self._inputs.of(number) if self._inputs else submission.program.stdin
        program = msgspec.structs.replace(submission.program, args=args, stdin=stdin)
        changed = msgspec.structs.replace(
            submission,
            program=program,
            command=shlex.join((submission.program.entry, *map(fsdecode, args))).encode(errors="replace").decode(),
            sweep=None,
            wait_for_nodes=True,
        )
        return Job(task_id(self._sweep.id, number), self._sweep.owner, changed, self._sweep.submitted)
