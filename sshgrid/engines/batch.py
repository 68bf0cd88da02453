"""Many runs of one program with one start: a batch is an order like any other, and each of its tasks has its own end.

The node works through the tasks by itself (`remote/batch.sh`); one look brings all that is new of the whole batch.
Refuses to take an exit code from anything but the batch's ledger.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

from sshgrid.engines import AttemptResult, BatchSink, Sink
from sshgrid.engines.build_cache import BuildCache
from sshgrid.engines.direct import (
    LONGEST_PAUSE_SECONDS,
    START_GUARD_SECONDS,
    STREAMS,
    UPLOAD_TRIES,
    DirectEngine,
    EngineHost,
    Run,
    usage,
)
from sshgrid.engines.jobscript import tasks_script
from sshgrid.engines.launch import BatchSpec, RunSpec, name_in_batch, needed_by, task_name
from sshgrid.errors import Dropped, HostError, NeverBegan, NodeUnfit
from sshgrid.model import Exited, Fetched, HostLost, Outcome, Step
from sshgrid.ssh.link import LOOK_RECORDS, PIECE_BYTES, Link
from sshgrid.ssh.parsers import BatchLook, RunLook, RunRecord, TaskEnd

log = logging.getLogger(__name__)

# Between two looks while tasks end: many small ones are brought at once. Most often a bell comes before.
GATHER_SECONDS = 0.3
# And by so many times what a look takes: where many share the processors, looks must not be what they do.
GATHER_LOOKS = 3
LONGEST_GATHER_SECONDS = 0.5
# What a task has printed is brought before its end when it takes so long that somebody may look.
LIVE_AFTER_SECONDS = 1.0
NEVER_BEGAN = "the batch ended before it was its turn"


class BatchEngine(DirectEngine):
    """Runs of one node, one by one or in batches."""

    def __init__(
        self, host: EngineHost, blob: Callable[[str], Path], patience: Callable[[float], float], builds: BuildCache
    ) -> None:
        super().__init__(host, blob, patience, builds)
        self._batches: dict[str, _Everyone] = {}  # under way

    async def run_batch(self, batch: BatchSpec, sink: BatchSink, *, resume: bool = False) -> None:
        """Until each task was told to have ended, whatever happened. Nothing is told twice.

        NeverBegan is raised all the same: a start may still be on its way.
        """
        everyone = self._batches[batch.run] = _Everyone(batch, sink)
        # How many parts an earlier master has sent is not known here.
        everyone.takes_more = not resume
        everyone.keep_warm = batch.keep_warm and not resume
        try:
            finish = await self.run(batch, everyone, resume=resume)
        except HostError as error:
            log.info("%s on %s: %s", batch.run, batch.attempt.node, error.reason)
            await everyone.give_up(HostLost(error.reason))
            if isinstance(error, NeverBegan):
                raise
        else:
            await everyone.give_up(finish.outcome)
        finally:
            del self._batches[batch.run]

    async def extend(self, batch: str, orders: Sequence[RunSpec], *, keep_warm: bool = False) -> bool:
        everyone = self._batches.get(batch)
        if everyone is None or batch not in self._sent or not everyone.takes_more:
            return False
        # Before they are sent: the node may tell of them before it has answered.
        names = everyone.sending(orders)
        everyone.keep_warm = keep_warm
        try:
            taken = await self._send_more(batch, everyone, orders)
        except HostError as error:
            log.info("%s on %s: no more tasks: %s", batch, self._host.name, error.reason)
            taken = False
        everyone.sent(names)
        if not taken:
            everyone.takes_more = everyone.keep_warm = False
            everyone.without(names)
            await self._ring(batch)
        elif batch not in self._batches:
            await everyone.over("the batch ended")
        return taken

    async def _ring(self, batch: str) -> None:
        """Its follower shall look again: there may be nothing left to wait for. A lost connection wakes it anyway."""
        with contextlib.suppress(HostError):
            (await self._host.connected(0)).wakeup(batch).set()

    async def _send_more(self, batch: str, everyone: _Everyone, orders: Sequence[RunSpec]) -> bool:
        everyone.parts += 1
        script, objects = tasks_script(batch, orders, keep_warm=everyone.keep_warm), needed_by(orders)
        for _ in range(UPLOAD_TRIES):
            link = await self._host.connected(0)
            not_after = self._host.uptime_now() + START_GUARD_SECONDS
            try:
                started = await link.more(batch, everyone.parts, not_after, script, len(orders), objects)
            except Dropped as error:
                # They may have arrived, or not: as with a start, what the node tells decides.
                log.info("%s on %s: more tasks were not answered: %s", batch, self._host.name, error.reason)
                everyone.takes_more = False
                return True
            match started.word:
                case "claimed":
                    return True
                case "missing":
                    await self._upload(link, started.rest.split(), everyone)
                case "already" | "late":
                    return False
                case _:
                    raise NodeUnfit(self._host.name, started.rest or f"answered {started.word!r} to more tasks")
        return False

    async def revoke(self, batch: str, runs: Sequence[str]) -> list[str]:
        if batch not in self._sent:
            return []  # it will be sent with all of its tasks
        names = {name_in_batch(run): run for run in runs}
        link = await self._host.connected(0)
        taken = await link.refuse_tasks(batch, [*names])
        if everyone := self._batches.get(batch):
            everyone.without(taken)
        return [names[name] for name in taken if name in names]

    def follower(self, order: RunSpec, sink: Sink) -> Run:
        if isinstance(sink, _Everyone):
            return _BatchRun(self._host, sink.batch, sink, self._patience)
        return super().follower(order, sink)


class _Everyone:
    """The sink of a batch as a run: what happens before there are tasks happens to all of them."""

    def __init__(self, batch: BatchSpec, sink: BatchSink) -> None:
        self.batch = batch
        self._sink = sink
        self._waiting = {task_name(order): order for order in batch.tasks}
        self._begun: dict[str, float] = {}  # when that was told
        self._sending: set[str] = set()
        self.parts = 1  # in which its tasks were sent
        self.takes_more = False
        self.keep_warm = False  # the node waits a moment for more, and then the batch ends by itself
        self.uploaded, self.compiled = sink.uploaded, sink.compiled

    @property
    def done(self) -> bool:
        return not self._waiting

    # --- as of any run

    def kept(self, stream: str) -> int:
        return 0

    async def output(self, stream: str, piece: bytes) -> None:
        """What a compiler said, of which one task may tell."""
        await self._sink.output(self.batch.tasks[0], stream, piece)

    async def step(self, step: Step) -> None:
        """Of a batch alone it means nothing."""

    def room(self) -> int:
        return 0  # nothing is fetched: such runs are in no batch

    async def again(self, stream: str) -> None:
        raise AssertionError(f"a batch has no {stream} of its own")

    async def fetched(self, fetched: Fetched) -> None:
        raise AssertionError(f"a batch fetches nothing, and not {fetched}")

    def sending(self, orders: Iterable[RunSpec]) -> frozenset[str]:
        """More tasks are on their way; whether they have arrived is not known before `sent`."""
        more = {task_name(order): order for order in orders}
        self._waiting |= more
        self._sending |= more.keys()
        return frozenset(more)

    def sent(self, tasks: Iterable[str]) -> None:
        self._sending.difference_update(tasks)

    def without(self, tasks: Iterable[str]) -> None:
        """These will never begin, and somebody knows."""
        for task in tasks:
            self._waiting.pop(task, None)

    # --- of one task

    def order(self, task: str) -> RunSpec | None:
        """None when its end was told already."""
        return self._waiting.get(task)

    def kept_of(self, order: RunSpec, stream: str) -> int:
        return self._sink.kept(order, stream)

    async def output_of(self, order: RunSpec, stream: str, piece: bytes) -> None:
        await self._sink.output(order, stream, piece)

    async def running(self, tasks: Iterable[str]) -> None:
        fresh = [task for task in tasks if task in self._waiting and task not in self._begun]
        self._begun |= dict.fromkeys(fresh, time.monotonic())
        if fresh:
            await self._sink.running([self._waiting[task] for task in fresh])

    def long_running(self, since: float) -> list[RunSpec]:
        """Those under way that had begun by then; not more than there are lanes."""
        return [self._waiting[task] for task, begun in self._begun.items() if begun <= since and task in self._waiting]

    async def ended(self, ends: Mapping[str, AttemptResult]) -> None:
        found = [(self._waiting[task], finish) for task, finish in ends.items() if task in self._waiting]
        if found:
            await self._sink.ended(found)
        for task in ends:
            self._waiting.pop(task, None)
            self._begun.pop(task, None)

    async def give_up(self, outcome: Outcome) -> None:
        """The tasks that were never told to have ended end like this; of those on their way `extend` will know."""
        await self.ended({task: AttemptResult(outcome) for task in self._waiting if task not in self._sending})

    async def over(self, why: str) -> None:
        """The batch is over: who has begun was lost, the others never will."""
        left = [task for task in self._waiting if task not in self._sending]
        await self.ended({task: AttemptResult(HostLost(why if task in self._begun else NEVER_BEGAN)) for task in left})


class _BatchRun(Run):
    """Follows a batch from wherever its ledger was read to, until every task has ended."""

    _sink: _Everyone
    _order: BatchSpec

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type] # the same, of narrower types
        self._records = 0
        self._lane_seconds: dict[str, float] = {}
        self._live_at = 0.0

    async def _connected(self) -> Link:
        if self._sink.done:  # it only waits for more: with the connection that is over
            return await self._host.connected(0)
        return await super()._connected()

    async def _look(self, link: Link) -> AttemptResult | None:
        began = time.monotonic()
        look = await link.look_batch(self._order.run, self._records)
        run = look.run
        if await self._not_begun(link, run):
            return None
        await self._tell_step(run)
        await self._take(link, look)
        if self._sink.done and not self._sink.keep_warm:
            return AttemptResult(Exited(0))
        await self._bring_live(link)
        if look.records:
            pause = GATHER_SECONDS + GATHER_LOOKS * (time.monotonic() - began)
            self._pause = 0.0 if look.records >= LOOK_RECORDS else min(pause, LONGEST_GATHER_SECONDS)
        # What was written before the wrapper went is read to its end first.
        if look.records or (run.record is None and run.alive):
            return None
        if run.record is not None and run.record.stage in ("layout", "build"):
            return AttemptResult(await self._outcome(link, run, run.record), usage(run.record))
        await self._sink.over(self._why_lost(run))
        return AttemptResult(Exited(0))

    def _why_lost(self, run: RunLook) -> str:
        if run.why == "lease":
            return "its lease ended, as no master renewed it in time"
        return "the run vanished: its wrapper was killed, or the machine restarted"

    async def _take(self, link: Link, look: BatchLook) -> None:
        """What is new in the ledger, in its order."""
        over = {end.task for end in look.ended}
        await self._sink.running(task for task in look.begun if task not in over)
        ends = {}
        seconds = dict(self._lane_seconds)
        for end in look.ended:
            ends[end.task] = AttemptResult(await self._task_outcome(link, end), usage(_own(end, seconds)))
            if order := self._sink.order(end.task):
                for stream, file in STREAMS.items():
                    await self._bring(link, end, order, stream, file)
        await self._sink.ended(ends)
        # Only what was told is behind us: after a lost connection the rest comes again.
        self._records += look.records
        self._lane_seconds = seconds

    async def _bring(self, link: Link, end: TaskEnd, order: RunSpec, stream: str, file: str) -> None:
        if file[0] not in end.printed:
            return
        at, here = self._sink.kept_of(order, stream), end.small.get(file)
        if here is not None:
            if piece := here[at:]:
                await self._sink.output_of(order, stream, piece)
            return
        while piece := await link.piece(self._order.run, f"{end.task}.{file}", at, PIECE_BYTES):
            await self._sink.output_of(order, stream, piece)
            at += len(piece)
        if not at:
            raise NodeUnfit(link.node.name, f"the output of {end.task} is no longer there")

    async def _bring_live(self, link: Link) -> None:
        """What tasks that run for long have printed so far: at most a piece of each output, and not at every look."""
        now = time.monotonic()
        if now - self._live_at < LONGEST_PAUSE_SECONDS:
            return
        tasks = self._sink.long_running(now - LIVE_AFTER_SECONDS)
        if not tasks:
            return
        self._live_at = now
        files = {f"{task_name(task)}.{file}": (task, stream) for task in tasks for stream, file in STREAMS.items()}
        for file, size in (await link.sizes(self._order.run, [*files])).items():
            task, stream = files[file]
            at = self._sink.kept_of(task, stream)
            if size > at and (piece := await link.piece(self._order.run, file, at, min(size - at, PIECE_BYTES))):
                await self._sink.output_of(task, stream, piece)

    async def _task_outcome(self, link: Link, end: TaskEnd) -> Outcome:
        return await self._outcome(link, RunLook(why=end.why), end.record)


def _own(end: TaskEnd, seconds: dict[str, float]) -> RunRecord:
    """The record with the CPU seconds of this task alone: a lane counts those of all its tasks, `seconds` so far."""
    so_far, before = end.record.cpu_seconds, seconds.get(end.lane, 0.0)
    seconds[end.lane] = so_far or 0.0
    if so_far is None:
        return end.record
    # After a lost lane a new one counts from nothing.
    own = so_far - before if so_far >= before else so_far
    return msgspec.structs.replace(end.record, cpu_seconds=round(own, 6))
