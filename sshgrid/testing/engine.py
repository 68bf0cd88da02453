"""An engine that plays a script instead of running programs.

A scripted run is detached like a real one: it continues when the master that started it ends. A run starts at most
once, and not after it was refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import tarfile
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from sshgrid.engines import AttemptResult, BatchSink, Keyboard, Sink
from sshgrid.engines.batch_state import BatchState
from sshgrid.engines.launch import BatchSpec, RunSpec
from sshgrid.errors import Dropped, HostError, NeverBegan, NodeUnfit
from sshgrid.model import CompileFailed, Exited, Fetched, HostLost, Outcome, Step, ToolchainBroken
from sshgrid.notation import globs

T = TypeVar("T")

Play: TypeAlias = "Outcome | HostError | Callable[[Stage], Awaitable[Outcome]]"


class Stage:
    """A run on a scripted node, for the function that plays it."""

    def __init__(self, spec: RunSpec, stdin: bytes) -> None:
        self.order = spec
        self.stdin = stdin
        self.keyboard: Keyboard | None = None
        self.printed: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray(), "compile": bytearray()}
        self.files: dict[str, bytes] = {}  # in its folder at the end
        self.step = Step.RUNNING
        self.end: Outcome | HostError | None = None
        self.task: asyncio.Task[None] | None = None
        self.received: list[str] = []  # signals so far
        self._signals: asyncio.Queue[str] = asyncio.Queue()
        self._news = asyncio.Event()

    @property
    def node(self) -> str:
        return self.order.attempt.node

    @property
    def args(self) -> tuple[bytes, ...]:
        return self.order.program.args

    async def enter(self, step: Step) -> None:
        self.step = step
        self._news.set()

    async def say(self, piece: bytes, stream: str = "stdout") -> None:
        self.printed[stream] += piece
        self._news.set()

    async def signal(self) -> str:
        """Return the next signal that is sent to the run."""
        return await self._signals.get()

    def send(self, name: str) -> None:
        self.received.append(name)
        self._signals.put_nowait(name)
        if name == "KILL" and self.task is not None and self.end is None:
            self.end = Exited(137)
            self.task.cancel()
            self._news.set()

    async def play(self, play: Play) -> None:
        """Play to the end, and record how it ended."""
        try:
            if isinstance(play, HostError):
                self.step = Step.UPLOADING
            end = await play(self) if callable(play) else play
        except HostError as error:
            end = error
        if isinstance(end, CompileFailed | ToolchainBroken):
            self.step = Step.COMPILING
        self.end = end
        self._news.set()

    async def deliver(self, sink: Sink) -> Outcome:
        """Pass the output that the sink lacks, and further output, to the sink; return the end. Raises HostError."""
        offsets = {stream: sink.kept(stream) for stream in self.printed}
        while True:
            self._news.clear()
            end = self.end
            await sink.step(self.step)
            for stream, printed in self.printed.items():
                if piece := bytes(printed[offsets[stream] :]):
                    offsets[stream] += len(piece)
                    await sink.output(stream, piece)
            if isinstance(end, HostError):
                raise end
            if end is not None:
                await self._deliver_files(sink, end)
                return end
            await self._news.wait()

    async def _deliver_files(self, sink: Sink, end: Outcome) -> None:
        wanted = self.order.program.fetch
        if not wanted or isinstance(end, CompileFailed | ToolchainBroken):
            return
        await sink.step(Step.FETCHING)
        if not sink.fetch_room():
            return
        listing = globs.Listing({name: len(content) for name, content in self.files.items()}, {})
        chosen, warnings = globs.choose(listing, wanted, sink.fetch_room())
        await sink.restart_stream("files")
        if chosen:
            await sink.output("files", archive({name: self.files[name] for name in chosen}))
        await sink.fetched(Fetched(len(chosen), sum(chosen.values()), warnings))


class ScriptedEngine:
    """The engine of all nodes of a scripted grid: the n-th run plays the n-th play, further runs end as Exited(0).

    A play is an outcome, a HostError, or an async function that receives the Stage. `ran_on` has the node of each run.
    """

    def __init__(self, *plays: Play, blob: Callable[[str], bytes] = lambda _: b"") -> None:
        self.coming: list[Play] = list(plays)
        self.stages: dict[str, Stage] = {}
        self.ran_on: list[str] = []
        self.orders: list[RunSpec] = []
        self.refused: set[str] = set()
        self.discarded: list[str] = []
        self.batches = ScriptedBatches(self)
        self.signals: list[tuple[str, str]] = []
        self.uploads = asyncio.Event()  # while it is cleared, runs stay in their upload
        self.uploads.set()
        self._away: dict[str, asyncio.Future[HostError]] = {}
        self._blob = blob

    def plays(self, *plays: Play) -> None:
        self.coming += plays

    def stage(self, job: int, attempt: int = 1) -> Stage | None:
        """Return the run of this attempt; None before it has begun."""
        found = (s for s in self.stages.values() if (s.order.attempt.job, s.order.attempt.number) == (job, attempt))
        return next(found, None)

    def lose(self, node: str, reason: str = "connection lost") -> None:
        """Let the node not answer from now on; its runs continue."""
        away = self._away.setdefault(node, asyncio.get_running_loop().create_future())
        if not away.done():
            away.set_result(Dropped(node, reason))

    def find(self, node: str) -> None:
        """Let the node answer again."""
        self._away.pop(node, None)

    def _check(self, node: str) -> None:
        away = self._away.get(node)
        if away is not None and away.done():
            raise away.result()

    # --- the parts of the engine

    @property
    def runs(self) -> ScriptedEngine:
        return self

    @property
    def conversations(self) -> ScriptedEngine:
        return self

    async def run(self, spec: RunSpec, sink: Sink, *, resume: bool = False) -> AttemptResult:
        self._check(spec.attempt.node)
        stage = self.stages.get(spec.run)
        if stage is None:
            stage = await self._begin(spec, sink, resume)
        return AttemptResult(await self._while_it_answers(stage.node, stage.deliver(sink)))

    async def converse(self, spec: RunSpec, sink: Sink, keyboard: Keyboard) -> AttemptResult:
        self._check(spec.attempt.node)
        stage = await self._begin(spec, sink, resume=False, keyboard=keyboard)
        return AttemptResult(await self._while_it_answers(stage.node, stage.deliver(sink)))

    async def _begin(self, spec: RunSpec, sink: Sink, resume: bool, keyboard: Keyboard | None = None) -> Stage:
        node, run = spec.attempt.node, spec.run
        if resume or run in self.refused:
            self.refused.add(run)
            raise NeverBegan(node, "the run is not there: it never began, or the machine was cleaned")
        await sink.step(Step.UPLOADING)
        await self._while_it_answers(node, self.uploads.wait())
        if run in self.refused:
            raise NodeUnfit(node, "the run was refused")
        await sink.uploaded(sum(file.size for file in spec.program.files))
        stdin = spec.program.stdin
        stage = self.stages[run] = Stage(spec, self._blob(stdin.sha256) if stdin else b"")
        stage.keyboard = keyboard
        self.ran_on.append(node)
        self.orders.append(spec)
        play = self.coming.pop(0) if self.coming else Exited(0)
        stage.task = asyncio.create_task(stage.play(play), name=f"scripted {run}")
        return stage

    async def _while_it_answers(self, node: str, work: Coroutine[object, object, T]) -> T:
        away = self._away.setdefault(node, asyncio.get_running_loop().create_future())
        task = asyncio.create_task(work)
        try:
            waiting: set[asyncio.Future[object]] = {task, away}  # type: ignore[arg-type]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise away.result()
        finally:
            task.cancel()

    async def signal(self, run: str, name: str) -> bool:
        run = _run_at(run)
        stage = self.stages.get(run)
        if stage is None:
            return False
        self._check(stage.node)
        if stage.end is not None:
            return False
        self.signals.append((run, name))
        stage.send(name)
        return True

    async def refuse(self, run: str) -> bool:
        run = _run_at(run)
        if run in self.stages:
            return False
        self.refused.add(run)
        return True

    async def discard(self, run: str) -> None:
        for task in self.batches.runs.get(run, ()):
            await self.discard(task)
        stage = self.stages.get(run)
        if stage is not None:
            self._check(stage.node)
            del self.stages[run]
            await _end(stage)
        self.refused.discard(run)
        self.discarded.append(run)

    async def close(self) -> None:
        for stage in self.stages.values():
            await _end(stage)


def _run_at(place: str) -> str:
    """Return the run at a place BATCH/TASK, or the run itself."""
    batch, slash, task = place.rpartition("/")
    return f"{batch.partition('-')[0]}-{task}" if slash else place


class ScriptedBatches:
    """The batches of a scripted engine: each runs its tasks one after the other."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self.runs: dict[str, list[str]] = {}  # the runs of each batch, in the order of their starts
        self.warm: dict[str, asyncio.Event] = {}  # batches that wait for more runs
        self.warm_seconds = 0.2  # how long they wait
        self._engine = engine
        self._ahead: dict[str, list[RunSpec]] = {}  # what has not begun, of the batches that are running
        self._states: dict[str, BatchState[Any]] = {}  # of the batches that are running

    async def run(self, batch: BatchSpec, sink: BatchSink, *, resume: bool = False) -> None:
        self.runs[batch.run] = [spec.run for spec in batch.tasks]
        ahead = self._ahead[batch.run] = list(batch.tasks)
        state = self._states[batch.run] = sink.state
        try:
            while ahead or (state.keep_warm and await self._more(batch.run)):
                spec = ahead.pop(0)
                try:
                    result = await self._engine.run(spec, _TaskSink(sink, spec), resume=resume)
                except NeverBegan as error:
                    result = AttemptResult(HostLost(error.reason))
                except HostError as error:
                    await sink.ended([(rest.run, AttemptResult(HostLost(error.reason))) for rest in (spec, *ahead)])
                    return
                await sink.ended([(spec.run, result)])
        finally:
            del self._ahead[batch.run], self._states[batch.run]

    async def _more(self, batch: str) -> bool:
        more = self.warm[batch] = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.warm_seconds):
                await more.wait()
        del self.warm[batch]
        return bool(self._ahead[batch])

    async def extend(self, batch: str, specs: Sequence[RunSpec]) -> bool:
        if batch not in self._ahead or not self._states[batch].takes_more:
            return False
        self.runs[batch] += [spec.run for spec in specs]
        self._ahead[batch] += specs
        self._states[batch].joined(spec.run for spec in specs)
        if batch in self.warm:
            self.warm[batch].set()
        return True

    def close(self, batch: str) -> None:
        """Let a batch end after its last run, without waiting for more."""
        if batch in self._states:
            self._states[batch].close()
        if batch in self.warm:
            self.warm[batch].set()

    async def revoke(self, batch: str, runs: Sequence[str]) -> list[str]:
        ahead = self._ahead.get(batch, [])
        revoked = [spec for spec in ahead if spec.run in runs]
        for spec in revoked:
            ahead.remove(spec)
            self.runs[batch].remove(spec.run)
        return [spec.run for spec in revoked]


class _TaskSink:
    """The sink of one run of a batch."""

    def __init__(self, sink: BatchSink, spec: RunSpec) -> None:
        self._sink, self._spec = sink, spec
        self.uploaded, self.compiled = sink.uploaded, sink.compiled

    def kept(self, stream: str) -> int:
        return self._sink.kept(self._spec.run, stream)

    async def output(self, stream: str, piece: bytes) -> None:
        await self._sink.output(self._spec.run, stream, piece)

    async def step(self, step: Step) -> None:
        if step is Step.RUNNING:
            await self._begun()

    async def _begun(self) -> None:
        if fresh := self._sink.state.begin([self._spec.run]):
            await self._sink.running(fresh)

    def fetch_room(self) -> int:
        return 0

    async def restart_stream(self, stream: str) -> None:
        raise AssertionError(f"nothing of a batch is fetched, and no {stream}")

    async def fetched(self, fetched: Fetched) -> None:
        raise AssertionError(f"nothing of a batch is fetched, and not {fetched}")


async def _end(stage: Stage) -> None:
    if stage.task is not None:
        stage.task.cancel()
        await asyncio.gather(stage.task, return_exceptions=True)


def archive(files: Mapping[str, bytes]) -> bytes:
    """Return a tar archive like those of nodes."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


def after(said: bytes, end: Outcome | HostError, stream: str = "stdout") -> Callable[[Stage], Awaitable[Outcome]]:
    """Return a play that prints `said` and ends as `end`."""

    async def play(stage: Stage) -> Outcome:
        await stage.say(said, stream)
        if isinstance(end, HostError):
            raise end
        return end

    return play


async def until_killed(stage: Stage) -> Outcome:
    """A play that prints "ready" and ends by the first signal."""
    await stage.say(b"ready\n")
    name = await stage.signal()
    return Exited(128 + {"HUP": 1, "INT": 2, "TERM": 15}.get(name, 9))
