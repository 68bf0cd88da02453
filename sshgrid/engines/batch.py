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
from sshgrid.engines.launch import BatchSpec, RunSpec, name_in_batch, needed_by
from sshgrid.engines.starter import START_GUARD_SECONDS, UPLOAD_TRIES, RunStarter
from sshgrid.errors import Dropped, HostError, NeverBegan, NodeUnfit
from sshgrid.model import Exited, Fetched, HostLost, Outcome, Step
from sshgrid.ssh.link import Link
from sshgrid.ssh.parsers import BatchLook, RunLook, RunRecord, TaskEnd
from sshgrid.ssh.runs import LOOK_RECORDS, PIECE_BYTES

log = logging.getLogger(__name__)

# The pause after a look that found news, so that one look fetches many short tasks; a wakeup usually ends it earlier.
GATHER_SECONDS = 0.3
# Added to it, per second that the look took: where many nodes share the processors, looks must not use them up.
GATHER_LOOKS = 3
LONGEST_GATHER_SECONDS = 0.5
# The output of a task that runs for this long is read before the task has ended.
LIVE_AFTER_SECONDS = 1.0
NEVER_BEGAN = "the batch ended before it was its turn"


class DirectBatches:
    """Batches of one node."""

    def __init__(self, starter: RunStarter) -> None:
        self._starter = starter
        self._running: dict[str, BatchRunSink] = {}

    async def run(self, batch: BatchSpec, sink: BatchSink, *, resume: bool = False) -> None:
        run_sink = self._running[batch.run] = BatchRunSink(batch.run, sink)

        def follower() -> BatchFollower:
            return BatchFollower(batch, run_sink, self._starter.wait(batch), self._starter.clock)

        try:
            result = await self._starter.run(batch, run_sink, follower, resume=resume)
        except HostError as error:
            log.info("%s on %s: %s", batch.run, self._starter.host.name, error.reason)
            await run_sink.end_rest(HostLost(error.reason))
            if isinstance(error, NeverBegan):  # a start may still be on its way
                raise
        else:
            await run_sink.end_rest(result.outcome)
        finally:
            del self._running[batch.run]

    async def extend(self, batch: str, specs: Sequence[RunSpec]) -> bool:
        sink = self._running.get(batch)
        if sink is None or not self._starter.was_sent(batch) or not sink.state.takes_more:
            return False
        try:
            taken = await self._send_more(batch, sink, specs)
        except HostError as error:
            log.info("%s on %s: no more tasks: %s", batch, self._starter.host.name, error.reason)
            taken = False
        sink.state.joined(spec.run for spec in specs)
        if not taken:
            sink.state.close()
            await self._wake_follower(batch)
        elif batch not in self._running:
            await sink.end_lost("the batch ended")
        return taken

    async def _wake_follower(self, batch: str) -> None:
        """Make the follower look again, as it may have nothing left to wait for. A lost connection wakes it as well."""
        with contextlib.suppress(HostError):
            (await self._starter.host.connected(0)).runs.wakeup(batch).set()

    async def _send_more(self, batch: str, sink: BatchRunSink, specs: Sequence[RunSpec]) -> bool:
        state, host, objects = sink.state, self._starter.host, needed_by(specs)
        state.parts += 1
        script = tasks_script(batch, specs, keep_warm=state.keep_warm)
        for _ in range(UPLOAD_TRIES):
            link = await host.connected(0)
            not_after = host.uptime_now() + START_GUARD_SECONDS
            try:
                started = await link.runs.extend(batch, state.parts, not_after, script, len(specs), objects)
            except Dropped as error:
                # They may have arrived: as for a start, what the node reports decides.
                log.info("%s on %s: no answer to more tasks: %s", batch, host.name, error.reason)
                state.takes_more = False
                return True
            match started.word:
                case "claimed":
                    return True
                case "missing":
                    await self._starter.upload(link, started.rest.split(), sink)
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
        revoked = await link.runs.refuse_tasks(batch, [*names])
        return [names[name] for name in revoked if name in names]


class BatchRunSink:
    """The sink of a batch as a run, and the way from the names in its ledger to the sink of its tasks."""

    def __init__(self, batch: str, sink: BatchSink) -> None:
        self.state = sink.state
        self.uploaded, self.compiled = sink.uploaded, sink.compiled
        self._sink = sink
        self._prefix = batch.partition("-")[0] + "-"

    # --- the batch as a run

    def kept(self, stream: str) -> int:
        return 0

    async def output(self, stream: str, piece: bytes) -> None:
        """Pass what a compiler printed to one task."""
        if run := next(iter(self.state.rest), None):
            await self._sink.output(run, stream, piece)

    async def step(self, step: Step) -> None:
        """Ignore the steps of the batch: each task has its own."""

    def fetch_room(self) -> int:
        return 0  # runs that fetch files are not batched

    async def restart_stream(self, stream: str) -> None:
        raise AssertionError(f"a batch has no stream {stream}")

    async def fetched(self, fetched: Fetched) -> None:
        raise AssertionError(f"a batch fetches no files: {fetched}")

    # --- its tasks

    def run_of(self, task: str) -> str | None:
        """Return the run of a task in the ledger; None when it has ended already."""
        run = self._prefix + task
        return run if run in self.state.rest else None

    def kept_of(self, run: str, stream: str) -> int:
        return self._sink.kept(run, stream)

    async def output_of(self, run: str, stream: str, piece: bytes) -> None:
        await self._sink.output(run, stream, piece)

    async def begun(self, tasks: Iterable[str]) -> None:
        if fresh := self.state.begin(self._prefix + task for task in tasks):
            await self._sink.running(fresh)

    async def ended(self, ends: Mapping[str, AttemptResult]) -> None:
        """Pass on the results of tasks, by name in the ledger."""
        await self._end([(run, result) for task, result in ends.items() if (run := self.run_of(task))])

    async def end_rest(self, outcome: Outcome) -> None:
        """End the tasks whose end was not reported. `extend` answers for those that are joining."""
        await self._end([(run, AttemptResult(outcome)) for run in self.state.settled()])

    async def end_lost(self, why: str) -> None:
        """End the tasks of a batch that has ended: those that have begun are lost, the others never begin."""
        begun = self.state.begun_at
        reasons = {run: why if run in begun else NEVER_BEGAN for run in self.state.settled()}
        await self._end([(run, AttemptResult(HostLost(reason))) for run, reason in reasons.items()])

    async def _end(self, ends: Sequence[tuple[str, AttemptResult]]) -> None:
        if ends:
            await self._sink.ended(ends)


class BatchFollower:
    """Follows a batch from the first unread record of its ledger until every task has ended."""

    def __init__(self, batch: BatchSpec, sink: BatchRunSink, wait: HostWait, clock: Clock) -> None:
        self._batch = batch
        self._sink = sink
        self._state = sink.state
        self._wait = wait
        self._clock = clock
        self._poller = Poller(batch, sink, wait, clock)
        self._records = 0  # of the ledger that were read
        self._lane_seconds: dict[str, float] = {}  # CPU seconds that each lane has reported
        self._live_at = 0.0  # when output of running tasks was read last
        self.compiler_output = b""
        self.has_build = False

    async def follow(self, *, until_running: bool = False, at_once: bool = False) -> AttemptResult | None:
        return await self._poller.follow(self._look, self._connected, until_running=until_running, at_once=at_once)

    async def _connected(self) -> Link:
        if self._state.all_ended:  # its host is not waited for: the batch only waits for more tasks
            return await self._wait.host.connected(0)
        return await self._wait.connected()

    async def _look(self, link: Link) -> AttemptResult | None:
        began = self._clock.monotonic()
        look = await link.runs.batch_status(self._batch.run, self._records)
        run = look.run
        if not await self._poller.has_begun(link, run):
            return None
        await self._poller.report_step(run)
        await self._take(link, look)
        if self._state.all_ended and not self._state.keep_warm:
            return AttemptResult(Exited(0))
        await self._read_live_output(link)
        if look.records:
            pause = GATHER_SECONDS + GATHER_LOOKS * (self._clock.monotonic() - began)
            self._poller.pause_seconds = 0.0 if look.records >= LOOK_RECORDS else min(pause, LONGEST_GATHER_SECONDS)
        # What was written before the wrapper ended is read to its end first.
        if look.records or (run.record is None and run.alive):
            return None
        if run.record is not None and not run_outcome.has_build(run.record):
            outcome, self.compiler_output = await read_outcome(link, self._batch, self._sink, run, run.record)
            return AttemptResult(outcome, run_outcome.usage(run.record))
        await self._sink.end_lost(run_outcome.lost_batch(run.why))
        return AttemptResult(Exited(0))

    async def _take(self, link: Link, look: BatchLook) -> None:
        """Pass on what is new in the ledger, in its order."""
        over = {end.task for end in look.ended}
        await self._sink.begun(task for task in look.begun if task not in over)
        ends = {}
        seconds = dict(self._lane_seconds)
        for end in look.ended:
            self.has_build = self.has_build or run_outcome.has_build(end.record)
            ends[end.task] = AttemptResult(await self._task_outcome(link, end), run_outcome.usage(_own(end, seconds)))
            if run := self._sink.run_of(end.task):
                for stream, file in OUTPUT_FILES.items():
                    await self._read_output(link, end, run, stream, file)
        await self._sink.ended(ends)
        # Only now: after a lost connection, records that were not passed on are read again.
        self._records += look.records
        self._lane_seconds = seconds

    async def _read_output(self, link: Link, end: TaskEnd, run: str, stream: str, file: str) -> None:
        if file[0] not in end.printed:
            return
        at, here = self._sink.kept_of(run, stream), end.small.get(file)
        if here is not None:
            if piece := here[at:]:
                await self._sink.output_of(run, stream, piece)
            return
        while piece := await link.runs.read_piece(self._batch.run, f"{end.task}.{file}", at, PIECE_BYTES):
            await self._sink.output_of(run, stream, piece)
            at += len(piece)
        if not at:
            raise NodeUnfit(link.node.name, f"the output of {end.task} is no longer there")

    async def _read_live_output(self, link: Link) -> None:
        """Read the output of tasks that have run for long: at most a piece of each stream, and not at every look."""
        now = self._clock.monotonic()
        if now - self._live_at < LONGEST_PAUSE_SECONDS:
            return
        runs = self._state.begun_before(now - LIVE_AFTER_SECONDS)
        if not runs:
            return
        self._live_at = now
        files = {f"{name_in_batch(run)}.{file}": (run, stream) for run in runs for stream, file in OUTPUT_FILES.items()}
        for file, size in (await link.runs.file_sizes(self._batch.run, [*files])).items():
            run, stream = files[file]
            at = self._sink.kept_of(run, stream)
            if size > at and (
                piece := await link.runs.read_piece(self._batch.run, file, at, min(size - at, PIECE_BYTES))
            ):
                await self._sink.output_of(run, stream, piece)

    async def _task_outcome(self, link: Link, end: TaskEnd) -> Outcome:
        outcome, _ = await read_outcome(link, self._batch, self._sink, RunLook(why=end.why), end.record)
        return outcome


def _own(end: TaskEnd, seconds: dict[str, float]) -> RunRecord:
    """Return the record with the CPU seconds of this task alone: a lane counts all its tasks, `seconds` so far."""
    so_far, before = end.record.cpu_seconds, seconds.get(end.lane, 0.0)
    seconds[end.lane] = so_far or 0.0
    if so_far is None:
        return end.record
    # A lane that replaces a dead one counts from zero.
    own = so_far - before if so_far >= before else so_far
    return msgspec.structs.replace(end.record, cpu_seconds=round(own, 6))
