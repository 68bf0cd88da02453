"""Runs on the node itself: upload what it lacks, start detached, follow by byte offset, read the record.

The connection is only for looking. When it is lost the run goes on; this waits for the next connection, as long as the
work at stake is worth, and reads on where it stopped. Refuses to take an exit code from anything but the run's record.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

import msgspec

from sshgrid import toolchains
from sshgrid.engines import AttemptResult, Keyboard, Sink, fetch
from sshgrid.engines.build_cache import BuildCache, BuildFailure, BuildNode, Claim
from sshgrid.engines.jobscript import job_script
from sshgrid.engines.launch import BUILD_LIMIT_SECONDS, LEASE_MARGIN_SECONDS, RunSpec, needed
from sshgrid.engines.upload_progress import Meter
from sshgrid.errors import Dropped, HostError, NeverBegan, NodeUnfit
from sshgrid.model import (
    CompileFailed,
    Exited,
    Fetched,
    HostLost,
    OnHostLoss,
    Outcome,
    OutOfMemory,
    OutputLimit,
    ProcessLimit,
    Step,
    TimedOut,
    ToolchainBroken,
    Usage,
)
from sshgrid.ssh.channels import Conversation
from sshgrid.ssh.link import PIECE_BYTES, Link
from sshgrid.ssh.parsers import RunLook, RunRecord, Started

log = logging.getLogger(__name__)

START_GUARD_SECONDS = 15  # a start that reaches the node later than this is refused there
UPLOAD_TRIES = 3
FETCH_TRIES = 3
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.5
BUILD_LOG_BYTES = PIECE_BYTES
BEGIN_SECONDS = 20.0  # between the claim of a run folder and its wrapper
WORDS_BYTES = 300
REFUSED_OR_RESTORED = "a run of this name is there: it was cancelled, or the queue was restored from a backup"
STREAMS = {"stdout": "out", "stderr": "err"}
# Cannot be there, so nothing runs; and a master that finds such a run again does not take its end for a result.
NO_PROGRAM = (b"/dev/null/only the build",)


class EngineHost(BuildNode, Protocol):
    """A node as the engine needs it: somebody keeps it connected."""

    def uptime_now(self) -> float: ...


class DirectEngine:
    """Runs of one node."""

    def __init__(
        self, host: EngineHost, blob: Callable[[str], Path], patience: Callable[[float], float], builds: BuildCache
    ) -> None:
        self._host = host
        self._blob = blob
        self._patience = patience
        self._builds = builds
        self._built: set[str] = set()
        self._sent: set[str] = set()  # runs whose start may have reached the node
        self._refused: set[str] = set()  # runs that shall not be sent

    async def run(self, order: RunSpec, sink: Sink, *, resume: bool = False) -> AttemptResult:
        self._check_refused(order.run)
        if resume:
            self._sent.add(order.run)
        if resume or order.recipe.build_key in self._built:
            return await self._run(order, sink, resume)
        match await self._begin(order, sink):
            case AttemptResult() as finish:
                return finish
            case None:
                return await self._run(order, sink, resume=False)
            case run:
                return await self._to_end(run)

    async def ensure_built(self, order: RunSpec, sink: Sink) -> AttemptResult | None:
        """None: the node has the build of this order. Else how the build, and with it the order, ended.

        Nothing of the program runs, and the run's folder is free again. Raises HostError.
        """
        if order.recipe.build_key in self._built:
            return None
        recipe = msgspec.structs.replace(order.recipe, run=NO_PROGRAM)
        program = msgspec.structs.replace(order.program, stdin=None)
        alone = msgspec.structs.replace(order, recipe=recipe, program=program, interactive=False)
        begun = await self._begin(alone, sink)
        if begun is None:
            return None
        finish = begun if isinstance(begun, AttemptResult) else await self._to_end(begun)
        if order.recipe.build_key not in self._built:
            return finish
        await self.discard(order.run)
        return None

    async def _begin(self, order: RunSpec, sink: Sink) -> Run | AttemptResult | None:
        """The node gets the build. A Run: this order has made it, and goes on. None: it is there, nothing has begun.

        Who comes while another builds the same waits for that build (not for its run) instead of starting a second.
        """
        match await self._builds.obtain(order.recipe, self._host, sink):
            case None:
                self._built.add(order.recipe.build_key)
                return None
            case BuildFailure(outcome, words):
                if words:
                    await sink.output("compile", toolchains.restore_names(words, order.recipe))
                return AttemptResult(outcome)
            case Claim() as claim:
                with claim:
                    return await self._build(order, sink, claim)

    async def _build(self, order: RunSpec, sink: Sink, claim: Claim) -> Run | AttemptResult:
        await self._launch(order, sink)
        run = self.follower(order, sink)
        finish = await run.follow(until_running=True)
        if finish and isinstance(finish.outcome, CompileFailed):
            claim.failed(BuildFailure(finish.outcome, run.compiler_words))
        elif finish is None or run.is_built:
            claim.built()
            self._built.add(order.recipe.build_key)
        return finish or run

    async def _run(self, order: RunSpec, sink: Sink, resume: bool) -> AttemptResult:
        if not resume:
            await self._launch(order, sink)
        return await self._to_end(self.follower(order, sink), at_once=resume)

    def follower(self, order: RunSpec, sink: Sink) -> Run:
        return Run(self._host, order, sink, self._patience)

    async def converse(self, order: RunSpec, sink: Sink, keyboard: Keyboard) -> AttemptResult:
        await self._launch(order, sink)
        link = await self._host.connected(0)
        await sink.step(Step.RUNNING)
        async with link.converse(order.run, terminal=order.terminal) as talk:
            typing = asyncio.create_task(_type(talk, keyboard))
            try:
                await asyncio.gather(_bring(talk.stdout, sink, "stdout"), _bring(talk.stderr, sink, "stderr"))
            finally:
                typing.cancel()
        return await self._to_end(self.follower(order, _Quiet(sink)), at_once=True)

    async def _to_end(self, run: Run, *, at_once: bool = False) -> AttemptResult:
        finish = await run.follow(at_once=at_once)
        assert finish is not None
        return finish

    # --- starting

    async def _launch(self, order: RunSpec, sink: Sink) -> None:
        """The run is claimed on the node when this returns, or perhaps was before the connection was lost.

        Raises HostError when the node cannot take it.
        """
        for _ in range(UPLOAD_TRIES):
            link = await self._host.connected(0)
            if order.program.packs and "tar" not in link.facts.helpers:
                raise NodeUnfit(self._host.name, "it lacks tar, which unpacks the files of a run")
            started = await self._start(order, link)
            match started.word:
                case "claimed" | "unknown":
                    return
                case "already":
                    # Nobody has started this attempt but us, and we have not: it may be anybody's program.
                    raise NodeUnfit(self._host.name, REFUSED_OR_RESTORED)
                case "missing":
                    await sink.step(Step.UPLOADING)
                    await self._upload(link, started.rest.split(), sink)
                    order = msgspec.structs.replace(order, lend=True)
                case "late":
                    raise Dropped(self._host.name, "the start reached the node too late and was refused there")
                case _:
                    raise NodeUnfit(self._host.name, started.rest or f"answered {started.word!r} to a start")
        raise NodeUnfit(self._host.name, "what is uploaded there does not stay")

    async def _start(self, order: RunSpec, link: Link) -> Started:
        self._check_refused(order.run)
        self._sent.add(order.run)
        uptime = self._host.uptime_now()
        not_after, lease = uptime + START_GUARD_SECONDS, None
        if order.on_host_loss is OnHostLoss.FENCE:
            lease = uptime + self._patience(0.0)
            not_after = min(not_after, lease)
        try:
            return await link.start(
                order.run,
                not_after,
                job_script(order, link.facts, lease),
                order.recipe.build_key,
                needed(order),
                sorted({file.sha256 for _, file in order.recipe.layout}),
                "prepare" if order.interactive else "start",
            )
        except Dropped as error:
            if order.interactive:
                raise
            # It may have begun: as with any run on a silent host, patience and a look decide.
            log.info("%s on %s: the start was not answered: %s", order.run, self._host.name, error.reason)
            return Started("unknown")

    async def _upload(self, link: Link, objects: list[str], sink: Sink) -> None:
        sources = [(sha256, self._blob(sha256)) for sha256 in objects]
        meter = Meter(sink, sum(path.stat().st_size for _, path in sources))
        try:
            async with contextlib.aclosing(link.cargo.upload_all(sources)) as steps:
                async for sent in steps:
                    await meter.sent(sent)
        finally:
            await meter.end()

    # --- ending

    async def signal(self, run: str, name: str) -> bool:
        link = await self._host.connected(0)
        return await link.signal(run, name)

    async def refuse(self, run: str) -> bool:
        if run not in self._sent:
            self._refused.add(run)  # nothing was sent that could begin, and nothing will be
            return True
        link = await self._host.connected(0)
        return await link.claim(run)

    def _check_refused(self, run: str) -> None:
        if run in self._refused:
            raise NodeUnfit(self._host.name, "the run was refused before it began")

    async def discard(self, run: str) -> None:
        self._sent.discard(run)
        self._refused.discard(run)
        link = await self._host.connected(0)
        await link.clean([run])


async def _type(talk: Conversation, keyboard: Keyboard) -> None:
    while True:
        match await keyboard.get():
            case b"":
                talk.end_input()
            case bytes(piece):
                await talk.type(piece)
            case (columns, rows):
                talk.resize(columns, rows)


async def _bring(pieces: AsyncIterator[bytes], sink: Sink, stream: str) -> None:
    async for piece in pieces:
        await sink.output(stream, piece)


class _Quiet:
    """The sink of a run whose output has come by another way already: of a build and of files there may be news."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.step, self.uploaded, self.compiled = sink.step, sink.uploaded, sink.compiled
        self.room, self.again, self.fetched = sink.room, sink.again, sink.fetched

    def kept(self, stream: str) -> int:
        return 0

    async def output(self, stream: str, piece: bytes) -> None:
        if stream in ("compile", fetch.STREAM):
            await self._sink.output(stream, piece)


class Run:
    """Follows one run from wherever its kept output ends to its record."""

    def __init__(self, host: EngineHost, order: RunSpec, sink: Sink, patience: Callable[[float], float]) -> None:
        self._host = host
        self._order = order
        self._sink = sink
        self._patience = patience
        self._offsets = {stream: sink.kept(stream) for stream in STREAMS}
        self._began = time.monotonic() - order.worked_seconds
        self._step: Step | None = None
        self._pause = FIRST_PAUSE_SECONDS
        self._rang = False
        self._renew_at = 0.0
        self._claimed_since = 0.0
        self._fetches = 0  # that failed while the node answered
        self.compiler_words = b""
        self.is_built = False
        fenced = order.on_host_loss is OnHostLoss.FENCE
        # Whoever gave the lease, it was not for longer than this.
        longest = patience(order.worked_seconds) + LEASE_MARGIN_SECONDS
        self._lease_ends = time.monotonic() + longest if fenced else 0.0

    async def follow(self, *, until_running: bool = False, at_once: bool = False) -> AttemptResult | None:
        """The finish; with `until_running` None as soon as the program itself (not its build) runs.

        Looks when the node rings or some time has passed: what was just started has no news. `at_once` looks before.
        """
        while True:
            # Raises Dropped when patience with a silent host ends; the run itself lives on without us until then.
            link = await self._connected()
            try:
                await self._renew(link)
                if not at_once:
                    await self._wait(link)
                at_once = False
                finish = await self._look(link)
                if finish or (until_running and self._step is Step.RUNNING):
                    return finish
            except Dropped as error:
                log.info("%s on %s: %s", self._order.run, self._host.name, error.reason)
                at_once = True

    def _worth(self) -> float:
        """Seconds that a silent host is waited for: as long as the work at stake took."""
        if self._order.on_host_loss is OnHostLoss.WAIT:
            return math.inf
        return self._patience(time.monotonic() - self._began - self._host.silent_seconds())

    async def _connected(self) -> Link:
        try:
            return await self._host.connected(self._worth())
        except Dropped:
            # Under a lease the run ends itself; before that nobody else may begin.
            await asyncio.sleep(max(0.0, self._lease_ends - time.monotonic()))
            raise

    async def _renew(self, link: Link) -> None:
        """Long before it ends, as a lost packet or two must not end a run."""
        now = time.monotonic()
        if self._order.on_host_loss is OnHostLoss.FENCE and now >= self._renew_at:
            seconds = self._worth()
            # Noted before it is sent: a renewal without an answer may have arrived all the same.
            self._lease_ends = max(self._lease_ends, now + seconds + LEASE_MARGIN_SECONDS)
            await link.renew(self._order.run, self._host.uptime_now() + seconds)
            self._renew_at = now + seconds / 4

    async def _wait(self, link: Link) -> None:
        wakeup = link.wakeup(self._order.run)
        try:
            async with asyncio.timeout(self._pause):
                self._rang = await wakeup.wait()
        except TimeoutError:
            self._rang = False
            self._pause = min(self._pause * 1.5, LONGEST_PAUSE_SECONDS)
        wakeup.clear()

    async def _look(self, link: Link) -> AttemptResult | None:
        look, moved = await self._see(link)
        if await self._not_begun(link, look):
            return None
        await self._tell_step(look)
        moved += await self._fetch(link, look)
        if look.record is None:
            if not look.alive:
                # The program may have outlived its wrapper, and must not see another attempt begin.
                await link.signal(self._order.run, "KILL")
                raise NodeUnfit(self._host.name, "the run vanished: its wrapper was killed, or the machine restarted")
            if moved:
                self._pause = 0.0 if moved >= PIECE_BYTES else FIRST_PAUSE_SECONDS
            return None
        await self._sink.step(Step.FETCHING)
        while await self._fetch(link, look):
            pass
        outcome = await self._outcome(link, look, look.record)
        if not isinstance(outcome, HostLost | ToolchainBroken | CompileFailed):
            await self._bring_files(link)
        return AttemptResult(outcome, usage(look.record))

    async def _not_begun(self, link: Link, look: RunLook) -> bool:
        """Whether it is to be waited for. Raises NodeUnfit when it never will begin."""
        if not look.present and await link.claim(self._order.run):
            raise NeverBegan(self._host.name, "the run is not there: it never began, or the machine was cleaned")
        if look.why == "refused" and not look.begun:
            raise NodeUnfit(self._host.name, "the run was refused before it began")
        if not look.begun and look.record is None:
            await self._await_wrapper(link)
            return True
        return False

    async def _bring_files(self, link: Link) -> None:
        """What `--fetch` names. A node that cannot give it is asked again, but not for ever: the program has ended."""
        if not self._order.program.fetch:
            return
        try:
            await fetch.bring(link, self._order, self._sink)
        except HostError as error:
            self._fetches += not link.lost.done()
            if self._fetches < FETCH_TRIES:
                raise Dropped(error.node, error.reason) from error
            await self._sink.fetched(Fetched(warnings=(f"nothing was fetched: {error.reason}",)))

    async def _see(self, link: Link) -> tuple[RunLook, int]:
        """The run, and how much of its stdout came along: after a bell there is most likely all that will ever be."""
        run = self._order.run
        if not self._rang:
            return (await link.poll([run]))[run], 0
        look, piece = await link.glance(run, self._offsets["stdout"], PIECE_BYTES)
        await self._keep("stdout", piece)
        return look, len(piece)

    async def _await_wrapper(self, link: Link) -> None:
        """Claimed, and nobody there yet. A shell that could not fork never comes: then nobody may come later."""
        now = time.monotonic()
        self._claimed_since = self._claimed_since or now
        if now - self._claimed_since > BEGIN_SECONDS:
            await link.block_start(self._order.run)

    async def _tell_step(self, look: RunLook) -> None:
        step = Step.RUNNING if look.running else Step.COMPILING if self._order.recipe.compile else Step.RUNNING
        # Of a run that is over nobody must be told durably that it runs.
        if step is not self._step and look.record is None:
            self._step = step
            await self._sink.step(step)
        if look.running and self._order.recipe.compile:
            await self._sink.compiled(look.compiled)

    async def _fetch(self, link: Link, look: RunLook) -> int:
        """Bring what is new of both streams, at most a piece of each; bytes brought."""
        brought = 0
        for stream, file in STREAMS.items():
            behind = look.sizes.get(file, 0) - self._offsets[stream]
            if behind > 0:
                piece = await link.piece(self._order.run, file, self._offsets[stream], min(behind, PIECE_BYTES))
                await self._keep(stream, piece)
                brought += len(piece)
        return brought

    async def _keep(self, stream: str, piece: bytes) -> None:
        if piece:
            await self._sink.output(stream, piece)
        self._offsets[stream] += len(piece)

    # --- what the record means

    async def _outcome(self, link: Link, look: RunLook, record: RunRecord) -> Outcome:
        limits = self._order.program.limits
        if record.stage in ("layout", "build"):
            return await self._build_outcome(link, look, record)
        self.is_built = True
        match look.why:
            case "wall":
                return TimedOut(limits.wall_seconds or 0.0)
            case "memory":
                return OutOfMemory(limits.memory_bytes or 0)
            case "output":
                return OutputLimit(limits.output_bytes or 0)
            case "processes":
                return ProcessLimit(limits.processes or 0)
            case "lease":
                return HostLost("its lease ended, as no master renewed it in time")
            case "full":
                return HostLost("its disk was full when the run ended: what it printed may not be whole")
            case "toolchain":
                return ToolchainBroken(f"{self._order.recipe.run[0].decode(errors='replace')} is no longer there")
            case _ if record.stage == "start":
                words = (await link.piece(self._order.run, "wrapper.log", 0, WORDS_BYTES)).decode(errors="replace")
                return HostLost(f"the program could not be started there: {' '.join(words.split()) or record.code}")
            case _:
                return Exited(record.code)

    async def _build_outcome(self, link: Link, look: RunLook, record: RunRecord) -> Outcome:
        if record.stage == "layout":
            what = "the files of the run" if look.why == "data" else "the build"
            return HostLost(f"no space left for {what}")
        words = b""
        if size := look.sizes.get("build.log", 0):
            words = await link.piece(self._order.run, "build.log", 0, min(size, BUILD_LOG_BYTES))
            self.compiler_words = words.rstrip(b" ")
            words = toolchains.restore_names(self.compiler_words, self._order.recipe)
        outcome = judge_build(record.code, look.why, words, self._order.program.language)
        if isinstance(outcome, CompileFailed) and words:
            await self._sink.output("compile", words)
        return outcome


def judge_build(code: int, why: str, words: bytes, language: str) -> Outcome:
    """Whose fault a failed build is: the program's, the toolchain's or the node's."""
    if b"No space left on device" in words:
        return HostLost("no space left for the build")
    if why == "lease":
        return HostLost("its lease ended, as no master renewed it in time")
    if why == "wall":
        return ToolchainBroken(f"the {language} compiler did not end within {BUILD_LIMIT_SECONDS} s")
    if code in (126, 127):
        return ToolchainBroken(f"the {language} compiler could not be started")
    if code >= 128 or b"internal compiler error" in words:
        return ToolchainBroken(f"the {language} compiler crashed (status {code})")
    return CompileFailed(code)


def usage(record: RunRecord) -> Usage:
    """What the record of a run says that it used."""
    return Usage(record.began_uptime, record.ended_uptime, record.cpu_seconds, record.peak_memory_bytes)
