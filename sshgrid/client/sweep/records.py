"""The records of a sweep: the joblog, the results folder, and the state that --resume continues from.

A task counts as recorded when it is in all of them. Records of another sweep raise UsageError.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from sshgrid.client import files
from sshgrid.client.sweep.joblog import Joblog, check_commands
from sshgrid.client.sweep.plan import Plan
from sshgrid.client.sweep.record_files import unwritable
from sshgrid.client.sweep.results import ResultOutput, Results, temporary_output
from sshgrid.client.sweep.resume import ResumeFile, ResumeState
from sshgrid.errors import UsageError

if TYPE_CHECKING:
    from sshgrid.protocol.sweep_messages import TaskLine

# Tasks in these states are not recorded, so that --resume runs them.
UNRECORDED = frozenset({"CANCELLED", "COMPILE_ERROR"})


class Records:
    """The open joblog and results folder, either of which may be missing."""

    def __init__(self, plan: Plan | None, joblog: Joblog | None = None, results: Results | None = None) -> None:
        self._plan, self._joblog, self._results = plan, joblog, results

    def done(self) -> set[int]:
        """The numbers of the tasks that every record has; the master need not send them again."""
        known = [set(self._joblog.entries)] if self._joblog else []
        known += [set(self._results.failed)] if self._results else []
        return set.intersection(*known) if known else set()

    def output(self, number: int) -> ResultOutput:
        """The files that collect a task's output until the task has ended."""
        if self._results is not None and number not in self._results.failed:
            return self._results.output(number)
        return temporary_output()

    def add(self, task: TaskLine, output: ResultOutput) -> None:
        """Record a task: files, row and line, in this order. Raises Unwritable."""
        if self._plan is None or task.state in UNRECORDED:
            return
        if self._results is not None and task.number not in self._results.failed:
            self._results.add(task, self._plan.values(task.number), output)
        if self._joblog is not None and task.number not in self._joblog.entries:
            self._joblog.add(task, self._plan.command(task.number))


class RecordFiles:
    """Opens the records that --joblog and --results name, and the resume state that belongs to them.

    `state` is the sweep to continue, None when there is none.
    """

    def __init__(self, plan: Plan, options: Mapping[str, Any], digest: str) -> None:
        self._plan, self._options, self.digest = plan, options, digest
        self._open = ExitStack()
        self._resume = bool(options["resume"] or options["resume_failed"])
        self._resume_file: ResumeFile | None = None
        self.state: ResumeState | None = None
        self._results: Results | None = None
        self._joblog: Joblog | None = None
        self._beside_joblog = False  # the resume file is not in a results folder
        try:
            # A dry run may read records, but changes nothing.
            if self._resume or not options["dry_run"]:
                self._open_records()
        except BaseException:
            self._open.close()
            raise
        self.records = Records(plan, self._joblog, self._results)

    def __enter__(self) -> RecordFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _open_records(self) -> None:
        if path := str(self._options["results"]):
            self._open_results(path)
        if path := str(self._options["joblog"]):
            self._open_joblog(path)

    def _open_results(self, path: str) -> None:
        results = Results(path, self._plan.names, numbered=self._plan.numbered)
        self._results = self._open.enter_context(results)
        self._resume_file = results.resume_file
        if not self._resume:
            if results.has_rows():
                raise UsageError(f"{path} already has results", "--resume to continue them, or use another folder")
            results.begin(resume=False)
            return
        self.state = self._resume_file.load_for(self.digest)
        if self.state is None and results.has_rows():
            raise UsageError(f"{path} has results, but {self._resume_file.shown} is missing", "use another folder")
        results.begin(without_failed=bool(self._options["resume_failed"]) and not self._options["dry_run"])

    def _open_joblog(self, path: str) -> None:
        joblog = self._joblog = Joblog(path, resume=self._resume)
        self._open.callback(joblog.close)
        check_commands(path, joblog.entries, self._plan.command, len(self._plan))
        if self._options["resume_failed"]:
            joblog.entries = {number: entry for number, entry in joblog.entries.items() if not entry.failed}
        if self._resume_file is None and joblog.regular:
            folder, name = os.path.split(path)
            try:
                descriptor = files.open_folder(folder or ".")
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror} (--joblog)", "use another file") from error
            self._open.callback(os.close, descriptor)
            self._resume_file = ResumeFile(descriptor, f"{name}.sweep.json", f"{path}.sweep.json")
            self._beside_joblog = True
            self.state = self._resume_file.load_for(self.digest) if self._resume else None

    def rest(self) -> Sequence[int]:
        """The numbers of the tasks that are not recorded."""
        done = self.records.done()
        everything = range(1, len(self._plan) + 1)
        return [number for number in everything if number not in done] if done else everything

    def save(self, state: ResumeState) -> None:
        """Persist the state so that --resume can find this sweep. Raises Unwritable."""
        self.state = state
        if self._resume_file is not None:
            try:
                self._resume_file.save(state)
            except OSError as error:
                raise unwritable(self._resume_file.shown, error) from error

    def complete(self) -> None:
        """Remove the resume file beside a joblog once every task is recorded."""
        if self._beside_joblog and self._resume_file is not None and not self.rest():
            self._resume_file.remove()
