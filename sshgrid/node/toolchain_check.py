"""Is a toolchain really there? Only a hello that was built and ran on the node says so.

A proof travels through the same engine as any program: upload, build, run, collect. It is written down on the node as
one line, which counts while the tools are the same. Refuses to draw a conclusion from a failing connection.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from itertools import count

import msgspec

from sshgrid import toolchains
from sshgrid.engines import Engine
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
from sshgrid.spool.spool import Spool

LIMITS = Limits(wall_seconds=60.0)
KEPT_BYTES = 16 * 1024
PROOF_JOB = JobId(0)  # no job of the queue has this number
# Unique over restarts, as a run folder of an earlier master may still be there.
_numbers = count(int(time.time()) * 1000)


class CheckRecord(Struct, frozen=True):
    """`problem` "" = the hello ran."""

    language: str
    fingerprint: str
    version: str
    problem: str

    def line(self) -> str:
        return "\t".join(
            " ".join(field.split()) for field in (self.language, self.fingerprint, self.version, self.problem)
        )


def check_records(lines: Iterable[str]) -> dict[str, CheckRecord]:
    """The proofs that a node has kept, by language; lines of another form are none."""
    fields = (line.split("\t") for line in lines)
    return {parts[0]: CheckRecord(*parts) for parts in fields if len(parts) == 4}


class SmokeTest(Struct, frozen=True):
    """`problem` "" = it ran, and `compiled` on this node."""

    problem: str
    compiled: bool = False


class _Memory:
    """A sink that keeps the first bytes of a short run."""

    def __init__(self) -> None:
        self.streams: dict[str, bytes] = dict.fromkeys(STREAMS, b"")
        self.was_compiled = False

    def kept(self, stream: str) -> int:
        return 0

    async def output(self, stream: str, piece: bytes) -> None:
        self.streams[stream] = (self.streams[stream] + piece)[:KEPT_BYTES]

    async def step(self, step: Step) -> None:
        """Nobody watches a proof."""

    async def uploaded(self, count: int, left: int = 0) -> None:
        """Nobody watches a proof."""

    def room(self) -> int:
        return 0

    async def again(self, stream: str) -> None:
        """Nothing is fetched."""

    async def fetched(self, fetched: Fetched) -> None:
        """Nothing is fetched."""

    async def compiled(self, compiled: bool) -> None:
        self.was_compiled = compiled


class ToolchainChecker:
    """Tests toolchains of one node."""

    def __init__(self, grid: str, spool: Spool, engine: Engine, known_runs: set[str]) -> None:
        self._grid = grid
        self._spool = spool
        self._engine = engine
        self._known_runs = known_runs  # nobody may take these for strays

    async def prove(self, row: Language, candidate: Toolchain, facts: Facts) -> CheckRecord:
        """Raises HostError when the node does not answer: then nothing is known."""
        version = ""
        if row.version:
            recipe, program = _version_recipe(row, candidate), Program(row.name, "", (), limits=LIMITS)
            outcome, memory = await self._run(recipe, program)
            said = _all(memory.streams)
            version = toolchains.version_in(said)
            if not row.hello and outcome != Exited(0):
                return self._refuted(row, candidate, f"{row.version[0]} failed: {_words(said)}")
        # Another node's hello would prove nothing of this one's compiler.
        toolchain = msgspec.structs.replace(candidate, version=version)
        problem = (await self._say_hello(row, toolchain, facts, _never_taken)).problem if row.hello else ""
        return CheckRecord(row.name, candidate.fingerprint, version, problem)

    def _refuted(self, row: Language, candidate: Toolchain, problem: str) -> CheckRecord:
        return CheckRecord(row.name, candidate.fingerprint, "", problem)

    async def say_hello_of(self, maker: str, row: Language, toolchain: Toolchain, facts: Facts) -> SmokeTest:
        """The hello that `maker` gives away: made here when this is where it is made. Raises HostError."""
        return await self._say_hello(row, toolchain, facts, lambda recipe: toolchains.given_away(recipe, maker))

    async def _say_hello(
        self, row: Language, toolchain: Toolchain, facts: Facts, change: Callable[[Recipe], Recipe]
    ) -> SmokeTest:
        hello = toolchains.hello(row)
        if hello is None:
            return SmokeTest(f"there is no hello in {row.name}")
        program, source = hello
        self._spool.blobs.keep(source)
        program = msgspec.structs.replace(program, limits=LIMITS)
        try:
            recipe = change(toolchains.recipe(row, toolchain, program, source, facts))
        except UsageError as error:  # a row of the user's that makes no command
            return SmokeTest(error.message)
        outcome, memory = await self._run(recipe, program)
        # Only standard output must be exact: a JVM, for one, may have something to say beside it.
        if outcome == Exited(0) and memory.streams["stdout"].split() == [b"hello"]:
            return SmokeTest("", memory.was_compiled)
        return SmokeTest(f"its hello did not run: {_words(_all(memory.streams)) or outcome}", memory.was_compiled)

    async def _run(self, recipe: Recipe, program: Program) -> tuple[Outcome, _Memory]:
        attempt = Attempt(PROOF_JOB, next(_numbers), "")
        order = RunSpec(attempt, run_name(self._grid, attempt), program, recipe)
        memory = _Memory()
        self._known_runs.add(order.run)
        try:
            finish = await self._engine.runs.run(order, memory)
            await self._engine.runs.discard(order.run)
        finally:
            self._known_runs.discard(order.run)
        if isinstance(finish.outcome, HostLost):
            raise NodeUnfit("", finish.outcome.reason)
        return finish.outcome, memory


def _never_taken(recipe: Recipe) -> Recipe:
    return msgspec.structs.replace(recipe, shared=False)


def _version_recipe(row: Language, candidate: Toolchain) -> Recipe:
    words = [candidate.commands.get(row.version[0], row.version[0]), *row.version[1:]]
    key = f"version-{candidate.fingerprint}"
    return Recipe(key, (), (), tuple(word.encode() for word in words))


def _all(said: Mapping[str, bytes]) -> bytes:
    return b"".join(said[stream] for stream in STREAMS)


def _words(said: bytes) -> str:
    return " ".join(said[:200].decode("utf-8", "replace").split())
