"""Starts runs on a node: gets the build, uploads what the node lacks, and claims the run's folder.

Single runs, batches and interactive runs of a node share one starter, which knows what was sent to the node.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeAlias

import msgspec

from sshgrid import toolchains
from sshgrid.clock import Clock
from sshgrid.engines import AttemptResult, Sink
from sshgrid.engines.build_cache import BuildCache, BuildFailure, Claim
from sshgrid.engines.host_wait import HostWait
from sshgrid.engines.hosts import EngineHost
from sshgrid.engines.jobscript import job_script
from sshgrid.engines.launch import RunSpec, needed
from sshgrid.engines.upload_progress import UploadProgress
from sshgrid.errors import Dropped, NodeUnfit
from sshgrid.model import CompileFailed, OnHostLoss, Step
from sshgrid.ssh.link import Link
from sshgrid.ssh.parsers import Started

log = logging.getLogger(__name__)

START_GUARD_SECONDS = 15  # the node refuses a start that reaches it later than this
UPLOAD_TRIES = 3
REFUSED_OR_RESTORED = "a run of this name is there: it was cancelled, or the queue was restored from a backup"


class Follower(Protocol):
    """Follows a run to its end."""

    has_build: bool  # whether the node has the run's build, as far as its record says
    compiler_output: bytes  # what a failed compilation printed, with the node's file names

    async def follow(self, *, until_running: bool = False, at_once: bool = False) -> AttemptResult | None: ...


MakeFollower: TypeAlias = Callable[[], Follower]


class RunStarter:
    """Starts runs of one node."""

    def __init__(
        self,
        host: EngineHost,
        blob: Callable[[str], Path],
        patience: Callable[[float], float],
        builds: BuildCache,
        clock: Clock,
    ) -> None:
        self.host = host
        self.clock = clock
        self._blob = blob
        self._patience = patience
        self._builds = builds
        self._built: set[str] = set()  # keys of builds that the node has
        self._sent: set[str] = set()  # runs whose start may have reached the node
        self._refused: set[str] = set()  # runs that must not be sent

    async def run(
        self, spec: RunSpec, sink: Sink, make_follower: MakeFollower, *, resume: bool = False
    ) -> AttemptResult:
        """Start a run, or with `resume` find it, and follow it to its end. Raises HostError."""
        self._check_refused(spec.run)
        if resume:
            self._sent.add(spec.run)
            return await to_end(make_follower(), at_once=True)
        follower = await self._obtain_build(spec, sink, make_follower)
        if isinstance(follower, AttemptResult):
            return follower
        if follower is None:
            await self.start(spec, sink)
            follower = make_follower()
        return await to_end(follower)

    def wait(self, spec: RunSpec) -> HostWait:
        """Return what waits for the host of this run."""
        return HostWait(self.host, spec, self._patience, self.clock)

    # --- the build

    async def _obtain_build(
        self, spec: RunSpec, sink: Sink, make_follower: MakeFollower
    ) -> Follower | AttemptResult | None:
        """Return None when the node has the build, or the follower of this run when it has built it.

        Return an AttemptResult when the build, or the run with it, has ended. Runs with the same build key wait for one
        build, not for the run that makes it.
        """
        if spec.recipe.build_key in self._built:
            return None
        match await self._builds.obtain(spec.recipe, self.host, sink):
            case None:
                self._built.add(spec.recipe.build_key)
                return None
            case BuildFailure(outcome, text):
                if text:
                    await sink.output("compile", toolchains.restore_names(text, spec.recipe))
                return AttemptResult(outcome)
            case Claim() as claim:
                with claim:
                    return await self._build(spec, sink, make_follower, claim)

    async def _build(
        self, spec: RunSpec, sink: Sink, make_follower: MakeFollower, claim: Claim
    ) -> Follower | AttemptResult:
        await self.start(spec, sink)
        follower = make_follower()
        result = await follower.follow(until_running=True)
        if result and isinstance(result.outcome, CompileFailed):
            claim.failed(BuildFailure(result.outcome, follower.compiler_output))
        elif result is None or follower.has_build:
            claim.built()
            self._built.add(spec.recipe.build_key)
        return result or follower

    # --- starting

    async def start(self, spec: RunSpec, sink: Sink) -> None:
        """Claim the run on the node, after uploading what it lacks.

        On return the run is claimed, or may have been claimed before the connection was lost. Raises HostError when the
        node cannot take it.
        """
        for _ in range(UPLOAD_TRIES):
            link = await self.host.connected(0)
            if spec.program.packs and "tar" not in link.facts.helpers:
                raise NodeUnfit(self.host.name, "it lacks tar, which unpacks the files of a run")
            started = await self._send(spec, link)
            match started.word:
                case "claimed" | "unknown":
                    return
                case "already":
                    # Only this master starts this attempt, and it has not: the folder may be that of another program.
                    raise NodeUnfit(self.host.name, REFUSED_OR_RESTORED)
                case "missing":
                    await sink.step(Step.UPLOADING)
                    await self.upload(link, started.rest.split(), sink)
                    spec = msgspec.structs.replace(spec, lend=True)
                case "late":
                    raise Dropped(self.host.name, "the start reached the node too late and was refused there")
                case _:
                    raise NodeUnfit(self.host.name, started.rest or f"answered {started.word!r} to a start")
        raise NodeUnfit(self.host.name, "what is uploaded there does not stay")

    async def _send(self, spec: RunSpec, link: Link) -> Started:
        self._check_refused(spec.run)
        self._sent.add(spec.run)
        uptime = self.host.uptime_now()
        not_after, lease = uptime + START_GUARD_SECONDS, None
        if spec.on_host_loss is OnHostLoss.FENCE:
            lease = uptime + self._patience(0.0)
            not_after = min(not_after, lease)
        try:
            return await link.runs.start(
                spec.run,
                not_after,
                job_script(spec, link.facts, lease),
                spec.recipe.build_key,
                needed(spec),
                sorted({file.sha256 for _, file in spec.recipe.layout}),
                "prepare" if spec.interactive else "start",
            )
        except Dropped as error:
            if spec.interactive:
                raise
            # The run may have started: as for any run on a silent host, patience and its run folder decide.
            log.info("%s on %s: no answer to the start: %s", spec.run, self.host.name, error.reason)
            return Started("unknown")

    async def upload(self, link: Link, objects: list[str], sink: Sink) -> None:
        """Upload these blobs to the node, and report the progress to the sink."""
        sources = [(sha256, self._blob(sha256)) for sha256 in objects]
        progress = UploadProgress(sink, sum(path.stat().st_size for _, path in sources), self.clock)
        try:
            async with contextlib.aclosing(link.transfer.upload_all(sources)) as steps:
                async for sent in steps:
                    await progress.sent(sent)
        finally:
            await progress.end()

    # --- refusing

    def was_sent(self, run: str) -> bool:
        """Return whether the start of a run or batch may have reached the node."""
        return run in self._sent

    async def refuse(self, run: str) -> bool:
        """Prevent a run from starting. Return False when it has started. Raises HostError."""
        if run not in self._sent:
            self._refused.add(run)
            return True
        link = await self.host.connected(0)
        return await link.runs.claim(run)

    def _check_refused(self, run: str) -> None:
        if run in self._refused:
            raise NodeUnfit(self.host.name, "the run was refused before it began")

    def forget(self, run: str) -> None:
        """Forget a run or batch whose folder is about to be removed."""
        self._sent.discard(run)
        self._refused.discard(run)


async def to_end(follower: Follower, *, at_once: bool = False) -> AttemptResult:
    """Follow a run to its end. `at_once`: look at it before the first pause."""
    result = await follower.follow(at_once=at_once)
    assert result is not None
    return result
