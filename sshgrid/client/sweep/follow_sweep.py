"""Follow a sweep: each task is shown and recorded once it has ended and all of its output is here.

A master that goes away is looked for again, and told which tasks need not be said again. Refuses to show half of a
task's output: what came of one that was not said to have ended is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from sshgrid.client.connection import Connection
from sshgrid.client.follow import Follower
from sshgrid.client.sweep.joblog import Joblog, unwritable
from sshgrid.client.sweep.plan import Plan
from sshgrid.client.sweep.results import STREAMS, ResultOutput, Results, passing_output
from sshgrid.model import JobId
from sshgrid.protocol.messages import JobLine, Message, Notice, Request
from sshgrid.protocol.sweep_messages import SweepProgress, TaskEnded, TaskLine, TaskOutput, WatchSweep
from sshgrid.sweeps.parameters import spell_ranges
from sshgrid.terminal import render
from sshgrid.terminal.bar import ProgressBar
from sshgrid.terminal.screen import JsonScreen, write_all

# Of these nothing is recorded, as nothing came of them: --resume runs them.
UNRECORDED = frozenset({"CANCELLED", "COMPILE_ERROR"})
_FAULT_STATES = frozenset({"TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"})


class SweepScreen(Protocol):
    """Where a followed sweep is shown."""

    def accepted(self, job: JobId) -> None: ...
    def task(self, task: TaskLine, output: ResultOutput) -> None: ...
    def progress(self, progress: SweepProgress) -> None: ...
    def notice(self, text: str) -> None: ...
    def left(self) -> None: ...
    def ended(self, job: JobLine, *, interrupted: bool) -> None: ...


class Records:
    """What is kept of each task besides showing it: a line of the joblog, files and a row, both or nothing."""

    def __init__(self, plan: Plan | None, joblog: Joblog | None = None, results: Results | None = None) -> None:
        self._plan, self._joblog, self._results = plan, joblog, results

    def done(self) -> set[int]:
        """The tasks that need not be told again: every record has them."""
        known = [set(self._joblog.entries)] if self._joblog else []
        known += [set(self._results.failed)] if self._results else []
        return set.intersection(*known) if known else set()

    def output(self, number: int) -> ResultOutput:
        """Where a task's output is kept until it has ended."""
        if self._results is not None and number not in self._results.failed:
            return self._results.output(number)
        return passing_output()

    def add(self, task: TaskLine, output: ResultOutput) -> None:
        """Files, row and line, in this order. Unwritable."""
        if self._plan is None or task.state in UNRECORDED:
            return
        if self._results is not None and task.number not in self._results.failed:
            self._results.add(task, self._plan.values(task.number), output)
        if self._joblog is not None and task.number not in self._joblog.entries:
            self._joblog.add(task, self._plan.command(task.number))


class SweepFollower(Follower):
    """One followed sweep. `told`: the tasks that are not to be said again."""

    def __init__(
        self,
        connection: Connection,
        job: JobId,
        outlet: SweepScreen,
        records: Records,
        reopen: Callable[[], Connection],
        *,
        told: Iterable[int] = (),
        bring: Callable[[TaskLine], None] | None = None,
        keep_order: bool = False,
        interrupt_cancels: bool = True,
    ) -> None:
        super().__init__(connection, job, reopen, interrupt_cancels=interrupt_cancels)
        self._outlet, self._records, self._keep_order = outlet, records, keep_order
        self._told = set(told)
        self._bring = bring
        self._outputs: dict[int, ResultOutput] = {}

    def _request(self) -> Request:
        return WatchSweep(self._job, have=spell_ranges(self._told), keep_order=self._keep_order)

    def _rewind(self) -> None:
        for output in self._outputs.values():
            output.close()
        self._outputs.clear()

    def _event(self, message: Message, payload: bytes) -> None:
        match message:
            case TaskOutput(number=number, stream=stream):
                self._keep(number, stream, payload)
            case TaskEnded(task=task):
                self._task(task)
            case SweepProgress():
                self._outlet.progress(message)
            case Notice(text=text):
                self._outlet.notice(text)

    def _keep(self, number: int, stream: str, piece: bytes) -> None:
        if number not in self._outputs:
            self._outputs[number] = self._records.output(number)
        try:
            self._outputs[number].write(stream, piece)
        except OSError as error:
            raise unwritable("the output of a task", error) from error

    def _task(self, task: TaskLine) -> None:
        output = self._outputs.pop(task.number, None) or self._records.output(task.number)
        try:
            if self._bring is not None and task.state not in UNRECORDED:
                self._bring(task)
            # Recorded first: what is on the screen must not be lost when the disk is full.
            self._records.add(task, output)
            self._told.add(task.number)
            self._outlet.task(task, output)
        finally:
            output.close()


# --- screens ---------------------------------------------------------------------------------------------------------


def tagged(pieces: Iterable[bytes], tag: bytes) -> Iterator[bytes]:
    """The same with `tag` in front of each line, as GNU parallel does it; nothing is added to a last line."""
    begins = True
    for piece in pieces:
        text = piece.replace(b"\n", b"\n" + tag)
        if piece.endswith(b"\n"):
            text = text[: -len(tag)]
        yield tag + text if begins else text
        begins = piece.endswith(b"\n")


class PlainSweepScreen:
    """Output raw, a task's at a time; our own words on stderr."""

    def __init__(
        self,
        warn: Callable[[str], None],
        err: render.TextStyle,
        bar: ProgressBar,
        tag: Callable[[int], bytes] | None,
        *,
        out_is_terminal: bool,
        notes: bool,
    ) -> None:
        self._warn, self._err, self._bar, self._tag = warn, err, bar, tag
        self._out_is_terminal, self._notes = out_is_terminal, notes
        self._sweep = JobId(0)

    def accepted(self, job: JobId) -> None:
        self._sweep = job

    def task(self, task: TaskLine, output: ResultOutput) -> None:
        for stream in STREAMS:
            pieces = output.pieces(stream)
            for piece in pieces if self._tag is None else tagged(pieces, self._tag(task.number)):
                self._write(stream, piece)
        if task.state in _FAULT_STATES:
            self._say(f"{self._err.paint('error:', 'red')} task {self._sweep}.{task.number}: {task.reason}")
        self._bar.again()

    def _write(self, stream: str, piece: bytes) -> None:
        self._bar.clear()
        if stream == "stdout":
            write_all(1, piece)
        else:
            try:
                write_all(2, piece)
            except OSError:
                return  # a closed stderr is no reason to lose stdout
        if self._out_is_terminal or stream == "stderr":
            self._bar.in_line = not piece.endswith(b"\n")

    def progress(self, progress: SweepProgress) -> None:
        self._bar.progress(progress)

    def notice(self, text: str) -> None:
        self._say(self._err.safe(text))

    def _say(self, text: str) -> None:
        self._bar.clear()
        self._warn(text)

    def left(self) -> None:
        self._bar.clear()

    def ended(self, job: JobLine, *, interrupted: bool) -> None:
        self._bar.end()
        if interrupted or job.state == "COMPLETED" or not job.reason:
            return
        if job.state != "FAILED":
            self._warn(f"{self._err.paint('error:', 'red')} sweep {job.id}: {job.reason}")
            self._warn(f"{self._err.paint('hint:', 'cyan')} sshgrid info {job.id}")
        elif self._notes:
            self._warn(f"sweep {job.id}: {job.reason}")


class JsonSweepScreen:
    """JSON Lines: one object an event, the sweep's own object last."""

    def __init__(self, plan: Plan | None) -> None:
        self._plan = plan
        self._lines = JsonScreen()
        self._sweep = JobId(0)

    def accepted(self, job: JobId) -> None:
        self._sweep = job
        self._lines.accepted(job)

    def task(self, task: TaskLine, output: ResultOutput) -> None:
        for stream in STREAMS:
            for piece in output.pieces(stream):
                self._lines.line(
                    {"event": "output", "task": task.number, "stream": stream, **render.bytes_object(piece)}
                )
        self._lines.line({"event": "task", **render.task_object(self._sweep, task), **self._parameters(task.number)})

    def _parameters(self, number: int) -> dict[str, object]:
        if self._plan is None:
            return {}
        values = (value.decode("utf-8", "backslashreplace") for value in self._plan.values(number))
        return {"parameters": dict(zip(self._plan.names, values, strict=True))}

    def progress(self, progress: SweepProgress) -> None:
        self._lines.line({"event": "progress", **render.progress_object(progress)})

    def notice(self, text: str) -> None:
        self._lines.notice(Notice(text))

    def left(self) -> None:
        """What goes on is said on stderr."""

    def ended(self, job: JobLine, *, interrupted: bool) -> None:
        self._lines.ended(job, interrupted)
