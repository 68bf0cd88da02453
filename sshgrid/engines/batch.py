"""Many runs of one program with one start: a batch is claimed, built and followed like a run.

The node works through the tasks by itself (`remote/batch.sh`); one look fetches everything that is new in the batch.
The exit code of a task comes from the batch's ledger alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from sshgrid.clock import Clock
from sshgrid.engines import AttemptResult, BatchSink, run_outcome
from sshgrid.engines.follow import LONGEST_PAUSE_SECONDS, OUTPUT_FILES, Poller, read_outcome
from sshgrid.engines.host_wait import HostWait
from sshgrid.engines.jobscript import tasks_script
from sshgrid.engines.launch import BatchSpec, RunSpec, name_in_batch, needed_by, task_name
from sshgrid.engines.starter import START_GUARD_SECONDS, UPLOAD_TRIES, RunStarter
from sshgrid.errors import Dropped, HostError, NeverBegan, NodeUnfit
from sshgrid.model import Exited, Fetched, HostLost, Outcome, Step
from sshgrid.ssh.link import LOOK_RECORDS, PIECE_BYTES, Link
from sshgrid.ssh.parsers import BatchLook, RunLook, RunRecord, TaskEnd

log = logging.getLogger(__name__)

# The pause after a look that found news, so that one look fetches many short tasks; a wakeup usually ends it earlier.
GATHER_SECONDS = 0.3
# Added to it, per second that the look took: where many nodes share the processors, looks must not use them up.
GATHER_LOOKS = 3
LONGEST_GATHER_SECONDS = 0.5
# The output of a task that runs for so long is read before the task has ended.
LIVE_AFTER_SECONDS = 1.0
NEVER_BEGAN = "the batch ended before it was its turn"


class DirectBatches:
    """Batches of one node."""

    def __init__(self, starter: RunStarter) -> None:
        self._starter = starter
        self._running: dict[str, _BatchTasks] = {}

    async def run(self, batch: BatchSpec, sink: BatchSink, *, resume: bool = False) -> None:
        tasks = self._running[batch.run] = _BatchTasks(batch, sink, self._starter.clock)
        # How many parts an earlier master has sent is not known here.
        tasks.takes_more = not resume
        tasks.keep_warm = batch.keep_warm and not resume

        def follower() -> BatchFollower:
            return BatchFollower(batch, tasks, self._starter.wait(batch), self._starter.clock)

        try:
            result = await self._starter.run(batch, tasks, follower, resume=resume)
        except HostError as error:
            log.info("%s on %s: %s", batch.run, self._starter.host.name, error.reason)
            await tasks.end_rest(HostLost(error.reason))
            if isinstance(error, NeverBegan):  # a start may still be on its way
                raise
        else:
            await tasks.end_rest(result.outcome)
        finally:
            del self._running[batch.run]

    async def extend(self, batch: str, orders: Sequence[RunSpec], *, keep_warm: bool = False) -> bool:
        tasks = self._running.get(batch)
        if tasks is None or not self._starter.was_sent(batch) or not tasks.takes_more:
            return False
        # Before they are sent: the node may report them before it has answered.
        names = tasks.add(orders)
        tasks.keep_warm = keep_warm
        try:
            taken = await self._send_more(batch, tasks, orders)
        except HostError as error:
            log.info("%s on %s: no more tasks: %s", batch, self._starter.host.name, error.reason)
            taken = False
        tasks.sent(names)
        if not taken:
            tasks.takes_more = tasks.keep_warm = False
            tasks.remove(names)
            await self._wake_follower(batch)
        elif batch not in self._running:
            await tasks.end_lost("the batch ended")
        return taken

    async def _wake_follower(self, batch: str) -> None:
        """Make the follower look again, as it may have nothing left to wait for. A lost connection wakes it as well."""
        with contextlib.suppress(HostError):
            (await self._starter.host.connected(0)).wakeup(batch).set()

    async def _send_more(self, batch: str, tasks: _BatchTasks, orders: Sequence[RunSpec]) -> bool:
        tasks.parts += 1
        host, objects = self._starter.host, needed_by(orders)
        script = tasks_script(batch, orders, keep_warm=tasks.keep_warm)
        for _ in range(UPLOAD_TRIES):
            link = await host.connected(0)
            not_after = host.uptime_now() + START_GUARD_SECONDS
            try:
                started = await link.more(batch, tasks.parts, not_after, script, len(orders), objects)
            except Dropped as error:
                # They may have arrived: as for a start, what the node reports decides.
                log.info("%s on %s: no answer to more tasks: %s", batch, host.name, error.reason)
                tasks.takes_more = False
                return True
            match started.word:
                case "claimed":
                    return True
                case "missing":
                    await self._starter.upload(link, started.rest.split(), tasks)
                case "already" | "late":
                    return False
                case _:
                    raise NodeUnfit(host.name, started.rest or f"answered {started.word!r} to more tasks")
        return False

    async def revoke(self, batch: str, runs: Sequence[str]) -> list[str]:
        if not self._starter.was_sent(batch):
            return []  # it will be sent with all of its tasks
        names = {name_in_batch(run): run for run in runs}
        link = await self._starter.host.connected(0)
        revoked = await link.refuse_tasks(batch, [*names])
        if tasks := self._running.get(batch):
            tasks.remove(revoked)
        return [names[name] for name in revoked if name in names]


class _BatchTasks:
    """The tasks of a batch that have not ended, and the sink of the batch as a run."""

    def __init__(self, batch: BatchSpec, sink: BatchSink, clock: Clock) -> None:
        self.batch = batch
        self._sink = sink
        self._clock = clock
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

    def add(self, orders: Iterable[RunSpec]) -> frozenset[str]:
        """More tasks are on their way; whether they have arrived is not known before `sent`."""
        more = {task_name(order): order for order in orders}
        self._waiting |= more
        self._sending |= more.keys()
        return frozenset(more)

    def sent(self, tasks: Iterable[str]) -> None:
        self._sending.difference_update(tasks)

    def remove(self, tasks: Iterable[str]) -> None:
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
        self._begun |= dict.fromkeys(fresh, self._clock.monotonic())
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

    async def end_rest(self, outcome: Outcome) -> None:
        """The tasks that were never told to have ended end like this; of those on their way `extend` will know."""
        await self.ended({task: AttemptResult(outcome) for task in self._waiting if task not in self._sending})

    async def end_lost(self, why: str) -> None:
        """The batch is over: who has begun was lost, the others never will."""
        left = [task for task in self._waiting if task not in self._sending]
        await self.ended({task: AttemptResult(HostLost(why if task in self._begun else NEVER_BEGAN)) for task in left})


class BatchFollower:
    """Follows a batch from the first unread record of its ledger until every task has ended."""

    def __init__(self, batch: BatchSpec, tasks: _BatchTasks, wait: HostWait, clock: Clock) -> None:
        self._batch = batch
        self._tasks = tasks
        self._wait = wait
        self._clock = clock
        self._poller = Poller(batch, tasks, wait, clock)
        self._records = 0  # of the ledger that were read
        self._lane_seconds: dict[str, float] = {}  # CPU seconds that each lane has reported
        self._live_at = 0.0  # when output of running tasks was read last
        self.compiler_output = b""
        self.has_build = False

    async def follow(self, *, until_running: bool = False, at_once: bool = False) -> AttemptResult | None:
        return await self._poller.follow(self._look, self._connected, until_running=until_running, at_once=at_once)

    async def _connected(self) -> Link:
        if self._tasks.done:  # a batch that only waits for more is not worth waiting for its host
            return await self._wait.host.connected(0)
        return await self._wait.connected()

    async def _look(self, link: Link) -> AttemptResult | None:
        began = self._clock.monotonic()
        look = await link.look_batch(self._batch.run, self._records)
        run = look.run
        if not await self._poller.has_begun(link, run):
            return None
        await self._poller.report_step(run)
        await self._take(link, look)
        if self._tasks.done and not self._tasks.keep_warm:
            return AttemptResult(Exited(0))
        await self._read_live_output(link)
        if look.records:
            pause = GATHER_SECONDS + GATHER_LOOKS * (self._clock.monotonic() - began)
            self._poller.pause_seconds = 0.0 if look.records >= LOOK_RECORDS else min(pause, LONGEST_GATHER_SECONDS)
        # What was written before the wrapper ended is read to its end first.
        if look.records or (run.record is None and run.alive):
            return None
        if run.record is not None and not run_outcome.has_build(run.record):
            outcome, self.compiler_output = await read_outcome(link, self._batch, self._tasks, run, run.record)
            return AttemptResult(outcome, run_outcome.usage(run.record))
        await self._tasks.end_lost(run_outcome.lost_batch(run.why))
        return AttemptResult(Exited(0))

    async def _take(self, link: Link, look: BatchLook) -> None:
        """What is new in the ledger, in its order."""
        over = {end.task for end in look.ended}
        await self._tasks.running(task for task in look.begun if task not in over)
        ends = {}
        seconds = dict(self._lane_seconds)
        for end in look.ended:
            ends[end.task] = AttemptResult(await self._task_outcome(link, end), run_outcome.usage(_own(end, seconds)))
            if order := self._tasks.order(end.task):
                for stream, file in OUTPUT_FILES.items():
                    await self._read_output(link, end, order, stream, file)
        await self._tasks.ended(ends)
        # Only what was told is behind us: after a lost connection the rest comes again.
        self._records += look.records
        self._lane_seconds = seconds

    async def _read_output(self, link: Link, end: TaskEnd, order: RunSpec, stream: str, file: str) -> None:
        if file[0] not in end.printed:
            return
        at, here = self._tasks.kept_of(order, stream), end.small.get(file)
        if here is not None:
            if piece := here[at:]:
                await self._tasks.output_of(order, stream, piece)
            return
        while piece := await link.piece(self._batch.run, f"{end.task}.{file}", at, PIECE_BYTES):
            await self._tasks.output_of(order, stream, piece)
            at += len(piece)
        if not at:
            raise NodeUnfit(link.node.name, f"the output of {end.task} is no longer there")

    async def _read_live_output(self, link: Link) -> None:
        """What tasks that run for long have printed so far: at most a piece of each output, and not at every look."""
        now = self._clock.monotonic()
        if now - self._live_at < LONGEST_PAUSE_SECONDS:
            return
        tasks = self._tasks.long_running(now - LIVE_AFTER_SECONDS)
        if not tasks:
            return
        self._live_at = now
        files = {f"{task_name(task)}.{file}": (task, stream) for task in tasks for stream, file in OUTPUT_FILES.items()}
        for file, size in (await link.sizes(self._batch.run, [*files])).items():
            task, stream = files[file]
            at = self._tasks.kept_of(task, stream)
            if size > at and (piece := await link.piece(self._batch.run, file, at, min(size - at, PIECE_BYTES))):
                await self._tasks.output_of(task, stream, piece)

    async def _task_outcome(self, link: Link, end: TaskEnd) -> Outcome:
        outcome, _ = await read_outcome(link, self._batch, self._tasks, RunLook(why=end.why), end.record)
        return outcome


def _own(end: TaskEnd, seconds: dict[str, float]) -> RunRecord:
    """The record with the CPU seconds of this task alone: a lane counts those of all its tasks, `seconds` so far."""
    so_far, before = end.record.cpu_seconds, seconds.get(end.lane, 0.0)
    seconds[end.lane] = so_far or 0.0
    if so_far is None:
        return end.record
    # After a lost lane a new one counts from nothing.
    own = so_far - before if so_far >= before else so_far
    return msgspec.structs.replace(end.record, cpu_seconds=round(own, 6))
