"""Follow a sweep: print and record each task once it has ended and all of its output has arrived.

When the master goes away, the client connects to the next one and names the tasks that it already has. Output of a
task that has not ended by then is dropped and comes again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sshgrid.client.connection import Connection
from sshgrid.client.follow import EventFollower
from sshgrid.client.sweep.record_files import unwritable
from sshgrid.client.sweep.records import UNRECORDED, Records
from sshgrid.client.sweep.results import ResultOutput
from sshgrid.client.sweep.screens import SweepScreen
from sshgrid.model import JobId
from sshgrid.protocol.messages import Message, Notice, Request
from sshgrid.protocol.sweep_messages import SweepProgress, TaskEnded, TaskLine, TaskOutput, WatchSweep
from sshgrid.sweeps.parameters import spell_ranges


class SweepFollower(EventFollower):
    """Follows one sweep. `have`: numbers of tasks that the master need not send."""

    def __init__(
        self,
        connection: Connection,
        job: JobId,
        screen: SweepScreen,
        records: Records,
        reopen: Callable[[], Connection],
        *,
        have: Iterable[int] = (),
        fetch_files: Callable[[TaskLine], None] | None = None,
        keep_order: bool = False,
        interrupt_cancels: bool = True,
    ) -> None:
        super().__init__(connection, job, reopen, interrupt_cancels=interrupt_cancels)
        self._screen, self._records, self._keep_order = screen, records, keep_order
        self._have = set(have)
        self._fetch_files = fetch_files
        self._outputs: dict[int, ResultOutput] = {}

    def _request(self) -> Request:
        return WatchSweep(self._job, have=spell_ranges(self._have), keep_order=self._keep_order)

    def _rewind(self) -> None:
        for output in self._outputs.values():
            output.close()
        self._outputs.clear()

    def _event(self, message: Message, payload: bytes) -> None:
        match message:
            case TaskOutput(number=number, stream=stream):
                self._collect(number, stream, payload)
            case TaskEnded(task=task):
                self._finish(task)
            case SweepProgress():
                self._screen.progress(message)
            case Notice(text=text):
                self._screen.notice(text)

    def _collect(self, number: int, stream: str, piece: bytes) -> None:
        if number not in self._outputs:
            self._outputs[number] = self._records.output(number)
        try:
            self._outputs[number].write(stream, piece)
        except OSError as error:
            raise unwritable("the output of a task", error) from error

    def _finish(self, task: TaskLine) -> None:
        output = self._outputs.pop(task.number, None) or self._records.output(task.number)
        try:
            if self._fetch_files is not None and task.state not in UNRECORDED:
                self._fetch_files(task)
            # Record first: a task that is on the screen must be recorded even when the disk is full.
            self._records.add(task, output)
            self._have.add(task.number)
            self._screen.task(task, output)
        finally:
            output.close()
