"""A grid of scripted nodes with a real master and a real queue, and functions that wait for its states.

Tests wait for a condition with a deadline, never for a time; the failure shows what was seen instead.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.errors import Dropped
from sshgrid.master import Master
from sshgrid.model import (
    Facts,
    Inventory,
    Job,
    JobId,
    Language,
    Node,
    Phase,
    Program,
    RetryPolicy,
    Sample,
    SourceFile,
    Submission,
    Toolchain,
)
from sshgrid.node.connection import NodeConnection
from sshgrid.node.managed_node import ManagedNode
from sshgrid.nodes import NodePool
from sshgrid.protocol.messages import Event, JobLine, Logs, Watch
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.queue.store import Store
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing
from sshgrid.testing.engine import Play, ScriptedEngine, Stage
from sshgrid.toolchains import LANGUAGES

if TYPE_CHECKING:
    from sshgrid.ssh.link import Link

DEADLINE_SECONDS = 10.0
FACTS = Facts("Linux", "x86_64", "glibc 2.36", 4, 8 << 30, "boot", 1000, "/var/tmp/sshgrid-1000", "session")
T = TypeVar("T")


async def until(condition: Callable[[], T | None], seen: Callable[[], object] = lambda: "") -> T:
    """Wait until `condition` returns a true value, and return it; a failure shows what `seen` returns."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"the condition was not met in time; seen: {seen()}"
        await asyncio.sleep(0.002)
    return found


# --- nodes ------------------------------------------------------------------------------------------------------------


class ScriptedConnection(NodeConnection):
    """A connection that is up while `alive`. Its link cannot be used: scripted engines do not need one."""

    alive = False

    @property
    def up(self) -> bool:
        return self.alive

    async def connected(self, patience_seconds: float) -> Link:
        while not self.alive:
            if self._liveness.silent_seconds() >= patience_seconds:
                raise Dropped(self._name, "no answer")
            await asyncio.sleep(0.002)
        return cast("Link", None)


class ScriptedNode(ManagedNode):
    """A node that is up or down, and has toolchains, as the test says."""

    def __init__(self, config: Node, pool: ScriptedPool) -> None:
        super().__init__(config, pool.shared, lambda *_, **__: pool.engine)
        self.connection: ScriptedConnection = ScriptedConnection(
            self.name, pool.shared, self.liveness, self._open_link, self._has_runs
        )
        self.connection.alive = config.name not in pool.down
        self._languages = tuple(row.name for row in pool.shared.languages)

    async def keep(self) -> None:
        self._settle_down()
        await asyncio.get_running_loop().create_future()

    def _settle_down(self) -> None:
        """Set what a dial finds out: before a node was up for the first time its facts are not known."""
        connection = self.connection
        connection.tried = True
        if connection.alive and self.facts is None:
            self.facts = FACTS
            self.has(*self._languages)
        connection.reason = "" if connection.alive else connection.reason or "no route to host"
        self.load.sample = Sample(self._shared.clock.wall(), 1000.0, 0.0, 0.0, 4 << 30) if connection.alive else None
        self.liveness.seen(1000.0)
        connection.announce()

    def has(self, *languages: str) -> None:
        """Give the node these toolchains and no others."""
        self._languages = languages
        self.toolchains.working = {name: Toolchain(name, "1.0", _commands(name), f"{name}-1") for name in languages}

    def come_up(self) -> None:
        """Bring the node up."""
        self.connection.alive = True
        self._settle_down()

    def go_down(self, reason: str = "connection lost") -> None:
        """Bring the node down."""
        self.connection.alive, self.connection.reason = False, reason
        self._settle_down()


def _commands(language: str) -> dict[str, str]:
    row = next(row for row in LANGUAGES if row.name == language)
    words = [command[0] for command in (*row.compile, row.run, row.version) if command]
    return {word: f"/usr/bin/{word.split('|')[0]}" for word in words}


class ScriptedPool(NodePool):
    """A real pool of scripted nodes."""

    def __init__(
        self,
        grid: str,
        spool: Spool,
        engine: ScriptedEngine,
        changed: Callable[[], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(grid, spool, Dialing(), Random(1), changed, clock)
        self.engine = engine
        self.down: set[str] = set()

    def _make_node(self, node: Node) -> ManagedNode:
        return ScriptedNode(node, self)


# --- a grid -----------------------------------------------------------------------------------------------------------


def inventory(
    *nodes: str | Node, retry: RetryPolicy | None = None, languages: Iterable[Language] = LANGUAGES, placement: str = ""
) -> Inventory:
    """Nodes of four slots, filled in the order of their names; failures are retried at once."""
    made = tuple(Node(node, host="127.0.0.1", slots=4) if isinstance(node, str) else node for node in nodes)
    quick = RetryPolicy(backoff_seconds=0.0, patience_min_seconds=0.05)
    return Inventory("inventory.yaml", made, tuple(languages), placement or "pack", retry or quick, "digest")


class ScriptedGrid:
    """A real master with a real queue in `folder`, and nodes that play a script. `begin` again: a new master."""

    def __init__(
        self, folder: Path, inventory: Inventory, *plays: Play, down: Iterable[str] = (), clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self.folder = folder
        self.clock = clock
        self.inventory = inventory
        self.engine = ScriptedEngine(*plays, blob=lambda sha256: self.spool.blobs.read(sha256))
        self.down = set(down)
        self._keys = count(1)
        self._working: asyncio.Task[None] | None = None

    async def begin(self) -> ScriptedGrid:
        """Start a master."""
        self.spool = Spool(self.folder / "spool", self.clock)
        self.store = Store.open(self.folder / "queue.db")
        self.active_jobs = ActiveJobs(self.store, self.clock)
        self.pool = ScriptedPool(self.store.grid, self.spool, self.engine, self.active_jobs.nodes_changed, self.clock)
        self.pool.down = self.down
        self.master = Master(self.pool, self.active_jobs, self.inventory, Random(1), self.clock)
        self._working = asyncio.create_task(self.master.run(), name="master")
        await until(lambda: len(self.pool.nodes) >= len(self.inventory.nodes))
        return self

    @property
    def working(self) -> asyncio.Task[None]:
        assert self._working is not None
        return self._working

    async def end(self) -> None:
        """Stop the master; runs continue."""
        if self._working is not None:
            self._working.cancel()
            await asyncio.gather(self._working, return_exceptions=True)
            self._working = None
            await self.master.close()

    def node(self, name: str) -> ScriptedNode:
        managed = self.pool.nodes[name]
        assert isinstance(managed, ScriptedNode)
        return managed

    async def scheduler_steps(self, count: int = 3) -> None:
        """Wait for `count` steps of the scheduler: then it has started all that it can."""
        wake = self.active_jobs.wake
        for _ in range(count):
            wake.set()
            await until(lambda: not wake.is_set())  # a step begins with this, and ends before others run

    # --- requests

    def submission(self, source: bytes = b"echo hello\n", file: str = "hello.sh", **options: object) -> Submission:
        """A submission of one file that is in the spool already; `options` are fields of Submission or Program."""
        stdin = options.pop("stdin", None)
        fields = {key: options.pop(key) for key in list(options) if key in Program.__struct_fields__}
        if isinstance(stdin, bytes):
            fields["stdin"] = SourceFile("stdin", self.spool.blobs.keep(stdin), len(stdin))
        program = Program("", file, (SourceFile(file, self.spool.blobs.keep(source), len(source)),))
        asked = Submission(msgspec.structs.replace(program, **fields), file)
        return msgspec.structs.replace(asked, **options)

    async def submit(self, submission: Submission | None = None, owner: str = "ann", key: str = "") -> JobId:
        key = key or f"key-{next(self._keys)}"
        return await self.master.submit(submission or self.submission(), key, owner)

    def job(self, job: JobId) -> Job:
        return self.active_jobs.current(job)

    def line(self, job: JobId) -> JobLine:
        return self.master.job_queries.line(self.job(job), True)

    async def reaches(self, job: JobId, *states: str) -> JobLine:
        """Wait until the job is in one of these states, as `ps` shows them."""
        return await until(
            lambda: line if (line := self.line(job)).state in states else None, lambda: (self.line(job), self.job(job))
        )

    async def begun(self, job: JobId, attempt: int = 1) -> Stage:
        """Wait until the program of this attempt runs on its node."""
        return await until(lambda: self.engine.stage(job, attempt), lambda: (self.line(job), self.engine.ran_on))

    async def wait(self, job: JobId) -> JobLine:
        """Wait until the job has ended."""
        await until(lambda: self.job(job).phase is Phase.DONE, lambda: (self.line(job), self.job(job)))
        return self.line(job)

    async def run(self, submission: Submission | None = None) -> JobLine:
        return await self.wait(await self.submit(submission))

    async def watch(self, job: JobId, request: Watch | Logs | None = None) -> list[tuple[Event, bytes]]:
        """All events of a job, to its end."""
        async with self.master.job_queries.watch(request or Watch(job)) as events, asyncio.timeout(DEADLINE_SECONDS):
            return [event async for event in events]

    def kept(self, job: JobId, attempt: int = 1, stream: str = "stdout") -> bytes:
        return self.spool.outputs.read(job, attempt, stream, 0, 1 << 30)
