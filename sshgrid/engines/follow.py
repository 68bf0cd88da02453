"""Follows a run on a node: waits for news, reads on where the stored output ends, and reads the run's record.

The connection is only for looking. When it is lost the run continues, and the follower waits for the next connection.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from sshgrid import toolchains
from sshgrid.clock import Clock
from sshgrid.engines import AttemptResult, Sink, fetch, run_outcome
from sshgrid.engines.host_wait import HostWait
from sshgrid.engines.launch import RunSpec
from sshgrid.errors import Dropped, HostError, NeverBegan, NodeUnfit
from sshgrid.model import CompileFailed, Fetched, HostLost, Outcome, Step, ToolchainBroken
from sshgrid.ssh.link import Link
from sshgrid.ssh.parsers import RunLook, RunRecord
from sshgrid.ssh.runs import PIECE_BYTES

log = logging.getLogger(__name__)

FETCH_TRIES = 3
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 0.5
BEGIN_SECONDS = 20.0  # how long a claimed run folder may stay without a wrapper
OUTPUT_FILES: Mapping[str, str] = {"stdout": "out", "stderr": "err"}  # stream -> its file in the run folder

# Looks at a run once. Returns None while it has not ended. Raises HostError.
Look: TypeAlias = "Callable[[Link], Awaitable[AttemptResult | None]]"


class Poller:
    """Looks at a run when the node reports news, and otherwise after a pause."""

    def __init__(self, spec: RunSpec, sink: Sink, wait: HostWait, clock: Clock) -> None:
        self.pause_seconds = FIRST_PAUSE_SECONDS  # until the next look; the poller lengthens it
        self.woken = False  # the node reported news before this look
        self.node = wait.host.name
        self._spec = spec
        self._sink = sink
        self._wait = wait
        self._clock = clock
        self._step: Step | None = None
        self._claimed_since = 0.0

    async def follow(
        self,
        look: Look,
        connected: Callable[[], Awaitable[Link]] | None = None,
        *,
        until_running: bool = False,
        at_once: bool = False,
    ) -> AttemptResult | None:
        """Look until there is a result; with `until_running` return None once the program (not its build) runs.

        `connected` returns the live connection, and raises Dropped when the host is no longer waited for: the run then
        continues without a follower. `at_once`: look before the first pause.
        """
        connected = connected or self._wait.connected
        while True:
            link = await connected()
            try:
                await self._wait.renew_lease(link)
                if not at_once:
                    await self._pause(link)
                at_once = False
                result = await look(link)
                if result or (until_running and self._step is Step.RUNNING):
                    return result
            except Dropped as error:
                log.info("%s on %s: %s", self._spec.run, self.node, error.reason)
                at_once = True

    async def _pause(self, link: Link) -> None:
        wakeup = link.runs.wakeup(self._spec.run)
        try:
            async with asyncio.timeout(self.pause_seconds):
                self.woken = await wakeup.wait()
        except TimeoutError:
            self.woken = False
            self.pause_seconds = min(self.pause_seconds * 1.5, LONGEST_PAUSE_SECONDS)
        wakeup.clear()

    async def has_begun(self, link: Link, look: RunLook) -> bool:
        """Return False while the run is claimed and its wrapper has not started. Raises HostError if it never will."""
        if not look.present and await link.runs.claim(self._spec.run):
            raise NeverBegan(self.node, "the run is not there: it never began, or the machine was cleaned")
        if look.why == "refused" and not look.begun:
            raise NodeUnfit(self.node, "the run was refused before it began")
        if look.begun or look.record is not None:
            return True
        # A shell that cannot fork never starts the wrapper: after a while it is prevented from starting late.
        now = self._clock.monotonic()
        self._claimed_since = self._claimed_since or now
        if now - self._claimed_since > BEGIN_SECONDS:
            await link.runs.block_start(self._spec.run)
        return False

    async def report_step(self, look: RunLook) -> None:
        """Pass the step that the run has reached to the sink."""
        compiles = bool(self._spec.recipe.compile)
        step = Step.RUNNING if look.running or not compiles else Step.COMPILING
        # The sink stores a step durably: for a run that has ended this would be wasted.
        if step is not self._step and look.record is None:
            self._step = step
            await self._sink.step(step)
        if look.running and compiles:
            await self._sink.compiled(look.compiled)


class RunFollower:
    """Follows a single run. `streams` maps the streams to read to their files in the run folder."""

    def __init__(self, spec: RunSpec, sink: Sink, poller: Poller, streams: Mapping[str, str] = OUTPUT_FILES) -> None:
        self._spec = spec
        self._sink = sink
        self._poller = poller
        self._streams = streams
        self._offsets = {stream: sink.kept(stream) for stream in streams}
        self._failed_fetches = 0  # while the node answered
        self.compiler_output = b""
        self.has_build = False

    async def follow(self, *, until_running: bool = False, at_once: bool = False) -> AttemptResult | None:
        """Return the result; with `until_running` None once the program (not its build) runs. Raises HostError."""
        return await self._poller.follow(self._look, until_running=until_running, at_once=at_once)

    async def _look(self, link: Link) -> AttemptResult | None:
        look, count = await self._poll(link)
        if not await self._poller.has_begun(link, look):
            return None
        await self._poller.report_step(look)
        count += await self._read_output(link, look)
        if look.record is None:
            if not look.alive:
                # The program may have outlived its wrapper, and must not run beside another attempt.
                await link.runs.signal(self._spec.run, "KILL")
                raise NodeUnfit(self._poller.node, run_outcome.VANISHED)
            if count:
                self._poller.pause_seconds = 0.0 if count >= PIECE_BYTES else FIRST_PAUSE_SECONDS
            return None
        await self._sink.step(Step.FETCHING)
        while await self._read_output(link, look):
            pass
        outcome, self.compiler_output = await read_outcome(link, self._spec, self._sink, look, look.record)
        self.has_build = run_outcome.has_build(look.record)
        if not isinstance(outcome, HostLost | ToolchainBroken | CompileFailed):
            await self._fetch_files(link)
        return AttemptResult(outcome, run_outcome.usage(look.record))

    async def _poll(self, link: Link) -> tuple[RunLook, int]:
        """Return the run's state, and how many bytes of stdout came with it.

        After news from the node one round trip fetches both: most runs have printed all their output by then.
        """
        run = self._spec.run
        if not self._poller.woken or "stdout" not in self._streams:
            return (await link.runs.poll([run]))[run], 0
        look, piece = await link.runs.poll_with_output(run, self._offsets["stdout"], PIECE_BYTES)
        await self._keep("stdout", piece)
        return look, len(piece)

    async def _read_output(self, link: Link, look: RunLook) -> int:
        """Read at most one new piece of each stream. Return the number of bytes."""
        count = 0
        for stream, file in self._streams.items():
            unread = look.sizes.get(file, 0) - self._offsets[stream]
            if unread > 0:
                piece = await link.runs.read_piece(
                    self._spec.run, file, self._offsets[stream], min(unread, PIECE_BYTES)
                )
                await self._keep(stream, piece)
                count += len(piece)
        return count

    async def _keep(self, stream: str, piece: bytes) -> None:
        if piece:
            await self._sink.output(stream, piece)
        self._offsets[stream] += len(piece)

    async def _fetch_files(self, link: Link) -> None:
        """Fetch the files that `--fetch` names. The tries are limited, as the program has ended."""
        if not self._spec.program.fetch:
            return
        try:
            await fetch.fetch_files(link, self._spec, self._sink)
        except HostError as error:
            self._failed_fetches += not link.lost.done()
            if self._failed_fetches < FETCH_TRIES:
                raise Dropped(error.node, error.reason) from error
            await self._sink.fetched(Fetched(warnings=(f"nothing was fetched: {error.reason}",)))


async def read_outcome(
    link: Link, spec: RunSpec, sink: Sink, look: RunLook, record: RunRecord
) -> tuple[Outcome, bytes]:
    """Return the outcome that a record means, and what a failed build printed, with the node's file names.

    The sink receives the compiler's output of a program that does not compile. Raises HostError.
    """
    text = b""
    if file := run_outcome.evidence(record, look.why, look.sizes):
        text = (await link.runs.read_piece(spec.run, file.name, 0, file.most_bytes)).rstrip(b" ")
    shown = toolchains.restore_names(text, spec.recipe) if text and record.stage == "build" else text
    limits, language = spec.program.limits, spec.program.language
    outcome = run_outcome.outcome(record, look.why, limits, language, spec.recipe.run[0], shown)
    if isinstance(outcome, CompileFailed) and shown:
        await sink.output("compile", shown)
    return outcome, text
