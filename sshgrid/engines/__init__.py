"""How an attempt is really run: one file for each way, one row in ENGINES when there are more than one.

An engine gets an Order and a Sink, and gives back how it ended. It raises HostError only for what a machine did, never
for what the program did.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from sshgrid.engines.launch import BatchSpec, RunSpec
from sshgrid.model import Fetched, Outcome, Step, Struct, Usage


class AttemptResult(Struct, frozen=True):
    """How an attempt ended, and what it used."""

    outcome: Outcome
    usage: Usage = Usage()


class Sink(Protocol):
    """Where an engine brings what it learns. What `output` was given is kept when it returns."""

    def kept(self, stream: str) -> int:
        """Bytes of this attempt's stream that are kept already: a run that is found again goes on from there."""

    async def output(self, stream: str, piece: bytes) -> None: ...

    async def step(self, step: Step) -> None: ...

    async def uploaded(self, count: int, left: int = 0) -> None:
        """Bytes more that are there; of a large upload that is under way also how many are `left`."""

    async def compiled(self, compiled: bool) -> None: ...

    def room(self) -> int:
        """Bytes of files that may be brought back now; 0 when nobody wants them any more."""

    async def again(self, stream: str) -> None:
        """Forget what is kept of this stream: it begins anew."""

    async def fetched(self, fetched: Fetched) -> None: ...


class BatchSink(Protocol):
    """As Sink, for many runs of one program at once. What `output` and `ended` were given is kept when they return."""

    def kept(self, order: RunSpec, stream: str) -> int: ...

    async def output(self, order: RunSpec, stream: str, piece: bytes) -> None: ...

    async def running(self, orders: Sequence[RunSpec]) -> None:
        """These have begun; it may be told late, or of a run that has ended already not at all."""

    async def ended(self, ends: Sequence[tuple[RunSpec, AttemptResult]]) -> None:
        """All of their output was told."""

    async def uploaded(self, count: int, left: int = 0) -> None:
        """Bytes more that are there; of a large upload that is under way also how many are `left`."""

    async def compiled(self, compiled: bool) -> None: ...


# What a person types into an interactive run: bytes (b"" ends the input), or the window's (columns, rows).
Keyboard: TypeAlias = "asyncio.Queue[bytes | tuple[int, int]]"


class Engine(Protocol):
    """One way of running attempts. Raises HostError for what a machine or the road to it did."""

    async def run(self, order: RunSpec, sink: Sink, *, resume: bool = False) -> AttemptResult:
        """From upload to result. `resume`: it may have been started before; find it, never start it twice."""

    async def converse(self, order: RunSpec, sink: Sink, keyboard: Keyboard) -> AttemptResult:
        """A run tied to this conversation: it reads the keyboard, and ends when the connection does."""

    async def run_batch(self, batch: BatchSpec, sink: BatchSink, *, resume: bool = False) -> None:
        """Many runs of one program with one start, until the end of each was told; raises no HostError.

        For `signal` and `discard` a batch is a run, and `jobscript.place_in` names one of its runs.
        """

    async def extend(self, batch: str, orders: Sequence[RunSpec], *, keep_warm: bool = False) -> bool:
        """More runs for a batch under way; its sink is told of them. False: it takes no more, they never begin.

        `lingers`: when these have ended it shall wait a moment for more.
        """

    async def signal(self, run: str, name: str) -> bool:
        """Send a signal to a run; False when it is not there."""

    async def refuse(self, run: str) -> bool:
        """Keep a run that has not begun from ever beginning; False when it has begun."""

    async def revoke(self, batch: str, runs: Sequence[str]) -> list[str]:
        """Those of these runs of a batch that have not begun, and now never will; no more is told of them."""

    async def discard(self, run: str) -> None:
        """End what is left of a run and remove its files."""
