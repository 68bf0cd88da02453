"""Smoke tests: a toolchain works on a node when a small program that it builds runs there.

A smoke test goes through the node's engine as any program does: upload, build, run, collect. A failing connection
raises HostError and proves nothing about the toolchain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from sshgrid import toolchains
from sshgrid.engines import Runs
from sshgrid.engines.launch import RunSpec, run_name
from sshgrid.errors import NodeUnfit, UsageError
from sshgrid.model import (
    STREAMS,
    Attempt,
    Exited,
    Facts,
    Fetched,
    HostLost,
    JobId,
    Language,
    Limits,
    Outcome,
    Program,
    Recipe,
    Step,
    Struct,
    Toolchain,
)
from sshgrid.node.shared import Shared

LIMITS = Limits(wall_seconds=60.0)
KEPT_BYTES = 16 * 1024
TEST_JOB = JobId(0)  # no job of the queue has this number
MESSAGE_BYTES = 200  # of the output in a reason


class CheckRecord(Struct, frozen=True):
    """The result of a toolchain check. `problem` is "" when the toolchain works."""

    language: str
    fingerprint: str
    version: str
    problem: str


class SmokeTest(Struct, frozen=True):
    """The result of a smoke test. `problem` is "" when it ran; `compiled` says whether this node compiled it."""

    problem: str
    compiled: bool = False


class _FirstOutput:
    """A sink that keeps the first bytes of a run's output."""

    def __init__(self) -> None:
        self.streams: dict[str, bytes] = dict.fromkeys(STREAMS, b"")
        self.was_compiled = False

    def kept(self, stream: str) -> int:
        return 0

    async def output(self, stream: str, piece: bytes) -> None:
        self.streams[stream] = (self.streams[stream] + piece)[:KEPT_BYTES]

    async def step(self, step: Step) -> None:
        """A smoke test has no watchers."""

    async def uploaded(self, count: int, left: int = 0) -> None:
        """A smoke test has no watchers."""

    def fetch_room(self) -> int:
        return 0

    async def restart_stream(self, stream: str) -> None:
        """A smoke test fetches no files."""

    async def fetched(self, fetched: Fetched) -> None:
        """A smoke test fetches no files."""

    async def compiled(self, compiled: bool) -> None:
        self.was_compiled = compiled


class SmokeTester:
    """Tests toolchains of one node through its engine. Raises HostError when the node does not answer.

    A run that could not be removed is added to `leftovers`, which the cleanup of the node removes later.
    """

    def __init__(self, shared: Shared, runs: Runs, leftovers: set[str]) -> None:
        self._shared = shared
        self._runs = runs
        self._leftovers = leftovers

    async def check(self, row: Language, candidate: Toolchain, facts: Facts) -> CheckRecord:
        """Ask the toolchain for its version, and run its smoke test."""
        version = ""
        if row.version:
            recipe, program = _version_recipe(row, candidate), Program(row.name, "", (), limits=LIMITS)
            outcome, sink = await self._run(recipe, program)
            printed = _all(sink.streams)
            version = toolchains.version_in(printed)
            if not row.hello and outcome != Exited(0):
                problem = f"{row.version[0]} failed: {_message(printed)}"
                return CheckRecord(row.name, candidate.fingerprint, "", problem)
        toolchain = msgspec.structs.replace(candidate, version=version)
        # A build of another node would prove nothing about this node's compiler.
        problem = (await self._test(row, toolchain, facts, _unshared)).problem if row.hello else ""
        return CheckRecord(row.name, candidate.fingerprint, version, problem)

    async def run_build_of(self, maker: str, row: Language, toolchain: Toolchain, facts: Facts) -> SmokeTest:
        """Run the smoke test that the node `maker` builds for other nodes."""
        return await self._test(row, toolchain, facts, lambda recipe: toolchains.made_by(recipe, maker))

    async def _test(
        self, row: Language, toolchain: Toolchain, facts: Facts, change: Callable[[Recipe], Recipe]
    ) -> SmokeTest:
        test = toolchains.smoke_test(row)
        if test is None:
            return SmokeTest(f"{row.name} has no smoke test")
        program, source = test
        self._shared.spool.blobs.keep(source)
        program = msgspec.structs.replace(program, limits=LIMITS)
        try:
            recipe = change(toolchains.recipe(row, toolchain, program, source, facts))
        except UsageError as error:  # a row of the inventory that makes no command
            return SmokeTest(error.message)
        outcome, sink = await self._run(recipe, program)
        # Only standard output must be exact: a JVM, for one, may print to standard error as well.
        if outcome == Exited(0) and sink.streams["stdout"].split() == [b"hello"]:
            return SmokeTest("", sink.was_compiled)
        return SmokeTest(f"its smoke test failed: {_message(_all(sink.streams)) or outcome}", sink.was_compiled)

    async def _run(self, recipe: Recipe, program: Program) -> tuple[Outcome, _FirstOutput]:
        attempt = Attempt(TEST_JOB, self._shared.smoke_runs.next_number(), "")
        order = RunSpec(attempt, run_name(self._shared.grid, attempt), program, recipe)
        sink = _FirstOutput()
        self._shared.smoke_runs.names.add(order.run)
        try:
            result = await self._runs.run(order, sink)
            await self._runs.discard(order.run)
        except BaseException:  # also when the connection ends and this test is cancelled
            self._leftovers.add(order.run)
            raise
        finally:
            self._shared.smoke_runs.names.discard(order.run)
        if isinstance(result.outcome, HostLost):
            raise NodeUnfit("", result.outcome.reason)
        return result.outcome, sink


def _unshared(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(recipe, shared=False)


def _version_recipe(row: Language, candidate: Toolchain) -> Recipe:
    words = [candidate.commands.get(row.version[0], row.version[0]), *row.version[1:]]
    key = f"version-{candidate.fingerprint}"
    return Recipe(key, (), (), tuple(word.encode() for word in words))


def _all(streams: Mapping[str, bytes]) -> bytes:
    return b"".join(streams[stream] for stream in STREAMS)


def _message(printed: bytes) -> str:
    return " ".join(printed[:MESSAGE_BYTES].decode("utf-8", "replace").split())
