"""Many runs of one program with one start: a batch is an order like any other, and each of its tasks has its own end.

The node works through the tasks by itself (`remote/batch.sh`); one look brings all that is new of the whole batch.
Refuses to take an exit code from anything but the batch's ledger.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

import msgspec

from sshgrid.engines import Finish, Sink
from sshgrid.engines.direct import STREAMS, DirectEngine, Run, usage
from sshgrid.errors import HostError, NeverBegan, NodeUnfit
from sshgrid.jobscript import Batch, Order, batch_name, task_name
from sshgrid.model import Exited, HostLost, Limits, Outcome, Step
from sshgrid.nodes import LOOK_RECORDS, PIECE_BYTES, Link
from sshgrid.readings import LEDGER_RECORD_BYTES, BatchLook, RunLook, RunRecord, TaskEnd

log = logging.getLogger(__name__)

# Between two looks while tasks end: many small ones are brought at once.
GATHER_SECONDS = 0.1
NEVER_BEGAN = "the batch ended before it was its turn"


class BatchSink(Protocol):
    """Where an engine brings what it learns of a batch."""

    def task(self, order: Order) -> Sink:
        """The sink of one of its tasks."""

    async def ended(self, order: Order, finish: Finish, *, never_began: bool = False) -> None:
        """A task is over. `never_began`: and never can begin any more, so that it may be begun elsewhere at once."""


def fits(order: Order) -> bool:
    """Whether an order can be part of a batch. Limits need a watchdog each; what people talk to needs a channel."""
    return order.program.limits == Limits() and not order.interactive and not order.keep_children


def make_batch(orders: Iterable[Order], lanes: int, run: str = "") -> Batch:
    """A batch of orders that fit and differ in nothing but words, variables and input; `lanes` run at the same time.

    `run`: the name of one that was started before, of which these are what is left.
    """
    tasks = tuple(orders)
    first = msgspec.structs.asdict(tasks[0]) | {"run": run or batch_name(tasks[0])}
    return Batch(**first, tasks=tasks, lanes=min(lanes, len(tasks)))


def place(batch: Batch, order: Order) -> str:
    """What `signal` and `refuse` of the engine call a task."""
    return f"{batch.run}/{task_name(order)}"


class BatchEngine(DirectEngine):
    """Runs of one node, one by one or in batches."""

    async def run_batch(self, batch: Batch, sink: BatchSink, *, resume: bool = False) -> None:
        """Until each task was told to have ended, whatever happened. Nothing is told twice."""
        everyone = _Everyone(batch, sink)
        try:
            finish = await self.run(batch, everyone, resume=resume)
        except HostError as error:
            log.info("%s on %s: %s", batch.run, batch.attempt.node, error.reason)
            await everyone.give_up(HostLost(error.reason), never_began=isinstance(error, NeverBegan))
        else:
            await everyone.give_up(finish.outcome)

    def follower(self, order: Order, sink: Sink) -> Run:
        if isinstance(sink, _Everyone):
            return _BatchRun(self._host, sink.batch, sink, self._patience)
        return super().follower(order, sink)


class _Everyone:
    """The sink of a batch as a run: what happens before there are tasks happens to all of them."""

    def __init__(self, batch: Batch, sink: BatchSink) -> None:
        self.batch = batch
        self._sink = sink
        self._waiting = {task_name(order): order for order in batch.tasks}
        self._begun: set[str] = set()

    @property
    def done(self) -> bool:
        return not self._waiting

    # --- as of any run

    def kept(self, stream: str) -> int:
        return 0

    async def output(self, stream: str, piece: bytes) -> None:
        for order in self._waiting.values():
            await self._sink.task(order).output(stream, piece)

    async def step(self, step: Step) -> None:
        if step in (Step.UPLOADING, Step.COMPILING):
            for order in self._waiting.values():
                await self._sink.task(order).step(step)

    async def uploaded(self, count: int) -> None:
        await self._sink.task(self.batch.tasks[0]).uploaded(count)

    async def compiled(self, compiled: bool) -> None:
        for order in self._waiting.values():
            await self._sink.task(order).compiled(compiled)

    # --- of one task

    def sink_of(self, task: str) -> Sink | None:
        """None when its end was told already."""
        order = self._waiting.get(task)
        return None if order is None else self._sink.task(order)

    async def begun(self, task: str) -> None:
        if (sink := self.sink_of(task)) and task not in self._begun:
            self._begun.add(task)
            await sink.step(Step.RUNNING)

    def note_begun(self, tasks: Iterable[str]) -> None:
        """They have begun, and ended before anybody had to be told."""
        self._begun.update(tasks)

    async def ended(self, task: str, finish: Finish) -> None:
        if order := self._waiting.pop(task, None):
            await self._sink.ended(order, finish)

    async def give_up(self, outcome: Outcome, *, never_began: bool = False) -> None:
        """The tasks that were never told to have ended end like this."""
        for order in list(self._waiting.values()):
            await self._leave(order, outcome, never_began)

    async def over(self, why: str) -> None:
        """The batch is over: who has begun was lost, the others never will."""
        for task, order in list(self._waiting.items()):
            began = task in self._begun
            await self._leave(order, HostLost(why if began else NEVER_BEGAN), not began)

    async def _leave(self, order: Order, outcome: Outcome, never_began: bool) -> None:
        del self._waiting[task_name(order)]
        await self._sink.ended(order, Finish(outcome), never_began=never_began)


class _BatchRun(Run):
    """Follows a batch from wherever its ledger was read to, until every task has ended."""

    _sink: _Everyone
    _order: Batch

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type] # the same, of narrower types
        self._records = 0
        self._lane_seconds: dict[str, float] = {}

    async def _look(self, link: Link) -> Finish | None:
        look = await link.look_batch(self._order.run, self._records * LEDGER_RECORD_BYTES)
        run = look.run
        if await self._not_begun(link, run):
            return None
        await self._tell_step(run)
        await self._take(link, look)
        if self._sink.done:
            return Finish(Exited(0))
        self._pause = 0.0 if look.records >= LOOK_RECORDS else GATHER_SECONDS if look.records else self._pause
        # What was written before the wrapper went is read to its end first.
        if look.records or (run.record is None and run.alive):
            return None
        if run.record is not None and run.record.stage in ("layout", "build"):
            return Finish(await self._outcome(link, run, run.record), usage(run.record))
        await self._sink.over(self._why_lost(run))
        return Finish(Exited(0))

    def _why_lost(self, run: RunLook) -> str:
        if run.why == "lease":
            return "its lease ended, as no master renewed it in time"
        return "the run vanished: its wrapper was killed, or the machine restarted"

    async def _take(self, link: Link, look: BatchLook) -> None:
        """What is new in the ledger, in its order."""
        before, ended = self._records, {end.task for end in look.ended}
        self._sink.note_begun(ended)
        for task in look.begun:
            if task not in ended:
                await self._sink.begun(task)
        for end in look.ended:
            finish = Finish(await self._task_outcome(link, end), usage(self._own(end)))
            if sink := self._sink.sink_of(end.task):
                for stream, file in STREAMS.items():
                    await self._bring(link, end, sink, stream, file)
            await self._sink.ended(end.task, finish)
            # Only what was told is behind us: after a lost connection the rest comes again.
            self._records = before + end.at
            self._lane_seconds[end.lane] = end.record.cpu_seconds or 0.0
        self._records = before + look.records

    async def _bring(self, link: Link, end: TaskEnd, sink: Sink, stream: str, file: str) -> None:
        size, here = end.sizes.get(file, 0), end.small.get(file)
        while (at := sink.kept(stream)) < size:
            if here is not None:
                piece = here[at:]
            else:
                count = min(size - at, PIECE_BYTES)
                piece = await link.piece(self._order.run, f"{end.task}.{file}", at, count)
            if not piece:
                raise NodeUnfit(link.node.name, f"the output of {end.task} is no longer there")
            await sink.output(stream, piece)

    async def _task_outcome(self, link: Link, end: TaskEnd) -> Outcome:
        return await self._outcome(link, RunLook(why=end.why), end.record)

    def _own(self, end: TaskEnd) -> RunRecord:
        """The record with the CPU seconds of this task alone: a lane counts those of all its tasks."""
        so_far, before = end.record.cpu_seconds, self._lane_seconds.get(end.lane, 0.0)
        if so_far is None:
            return end.record
        # After a lost lane a new one counts from nothing.
        own = so_far - before if so_far >= before else so_far
        return msgspec.structs.replace(end.record, cpu_seconds=round(own, 6))
