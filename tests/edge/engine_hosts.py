"""A host for engines, which dials again when its connection is lost, and a sink that keeps what it receives."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from pathlib import Path
from typing import Unpack

from sshgrid.engines import AttemptResult
from sshgrid.engines.build_cache import BuildCache
from sshgrid.engines.direct import DirectEngine, direct_engine
from sshgrid.engines.launch import RunSpec
from sshgrid.errors import Dropped
from sshgrid.model import Fetched, Node, Sample, Step
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing
from sshgrid.ssh.link import Link
from tests.edge.shells import How, make_order
from tests.lab.machine import uptime


class Kept:
    """A sink that keeps what an engine reports of one run."""

    def __init__(self, **already: bytes) -> None:
        self.streams: dict[str, bytearray] = {name: bytearray(said) for name, said in already.items()}
        self.has_output = asyncio.Event()
        self.steps: list[Step] = []
        self.uploaded_bytes = 0
        self.was_compiled: bool | None = None
        self.fetched_files: Fetched | None = None

    def __getitem__(self, stream: str) -> bytes:
        return bytes(self.streams.get(stream, b""))

    def kept(self, stream: str) -> int:
        return len(self.streams.get(stream, b""))

    async def output(self, stream: str, piece: bytes) -> None:
        self.streams.setdefault(stream, bytearray()).extend(piece)
        self.has_output.set()

    async def step(self, step: Step) -> None:
        if step not in self.steps[-1:]:
            self.steps.append(step)

    async def uploaded(self, count: int, left: int = 0) -> None:
        self.uploaded_bytes += count

    async def compiled(self, compiled: bool) -> None:
        self.was_compiled = compiled

    def fetch_room(self) -> int:
        return 1 << 40

    async def restart_stream(self, stream: str) -> None:
        self.streams.pop(stream, None)

    async def fetched(self, fetched: Fetched) -> None:
        self.fetched_files = fetched


class Host:
    """A node and its engine. A lost connection is dialled anew, unless the host is made `silent`."""

    def __init__(self, node: Node, folder: Path, how: Dialing | None = None) -> None:
        self.node = node
        self.name = node.name
        self.how = how or Dialing(ssh_config="")
        self.blobs = folder / "blobs"
        self.blobs.mkdir()
        self.spool = Spool(folder / "spool")
        self.grid = secrets.token_hex(4)
        self.samples: list[Sample] = []
        self.silent = False
        self.quiet_seconds = 0.0  # that it reports
        self.dials = 0
        self.link: Link | None = None
        self.engine = self.new_engine()
        self._jobs = 0

    def new_engine(self) -> DirectEngine:
        """Return an engine like that of a master that has just started."""
        self.builds = BuildCache(self.spool)
        return direct_engine(self, lambda sha256: self.blobs / sha256, lambda _: 10.0, self.builds)

    async def connected(self, patience_seconds: float) -> Link:
        if self.link is None or self.link.lost.done():
            if self.silent:
                raise Dropped(self.name, "no answer")
            await self.close()
            self.link = await Link.open(self.node, self.how, ("sh",), self.samples.append)
            self.dials += 1
        return self.link

    def silent_seconds(self) -> float:
        return self.quiet_seconds

    def uptime_now(self) -> float:
        return self.samples[-1].uptime_seconds if self.samples else uptime()

    async def open(self) -> Link:
        return await self.connected(10)

    async def close(self) -> None:
        if self.link is not None:
            await self.link.close()

    def put(self, content: bytes) -> str:
        sha256 = hashlib.sha256(content).hexdigest()
        (self.blobs / sha256).write_bytes(content)
        return sha256

    def order(self, source: bytes, *args: bytes, **how: Unpack[How]) -> RunSpec:
        self._jobs += 1
        return make_order(self.put, self.grid, self._jobs, source, args, **how)

    async def run(self, order: RunSpec, sink: Kept | None = None, *, resume: bool = False) -> AttemptResult:
        return await self.engine.runs.run(order, sink or Kept(), resume=resume)

    async def end(self) -> None:
        """Clean all runs of this grid, and check that none is left."""
        self.silent = False
        link = await self.open()
        if runs := await link.runs.names_of_grid(self.grid):
            await link.runs.clean(runs)
        assert await link.runs.names_of_grid(self.grid) == []
        await self.close()
