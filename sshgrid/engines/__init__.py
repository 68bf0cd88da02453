"""How an attempt is run: an engine offers parts, and each part is a protocol.

`ENGINES` (engines/table.py) maps the name of an engine to its constructor. An engine receives a RunSpec and a sink, and
returns how the run ended. It raises HostError only for failures of a machine, never for failures of the program.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

from sshgrid.engines.batch_state import BatchState
from sshgrid.engines.launch import BatchSpec, RunSpec
from sshgrid.model import Fetched, Outcome, Step, Struct, Usage

# What the user types into an interactive run: bytes (b"" ends the input), or the window's (columns, rows).
Keyboard: TypeAlias = "asyncio.Queue[bytes | tuple[int, int]]"


class AttemptResult(Struct, frozen=True):
    """How an attempt ended, and what it used."""

    outcome: Outcome
    usage: Usage = Usage()


class Sink(Protocol):
    """Receives what an engine learns about one run. Output passed to `output` is stored when the call returns."""

    def kept(self, stream: str) -> int:
        """Return how many bytes of this stream are already stored: a resumed run continues from there."""

    async def output(self, stream: str, piece: bytes) -> None:
        """Append a piece of output to a stream."""

    async def step(self, step: Step) -> None:
        """Record the step that the run has reached."""

    async def uploaded(self, count: int, left: int = 0) -> None:
        """Count `count` more uploaded bytes; `left` bytes of a large upload remain."""

    async def compiled(self, compiled: bool) -> None:
        """Record whether this run compiled its build, or used an existing one."""

    def fetch_room(self) -> int:
        """Return how many bytes of files may be fetched now; 0 when they are no longer wanted."""

    async def restart_stream(self, stream: str) -> None:
        """Discard what is stored of this stream: it starts again from its first byte."""

    async def fetched(self, fetched: Fetched) -> None:
        """Record which files were fetched."""


class BatchSink(Protocol):
    """A Sink for the runs of a batch, by name. Data passed to `output` and `ended` is stored when the call returns."""

    @property
    def state(self) -> BatchState[Any]:
        """The state of the batch, with the runs that have not ended."""

    def kept(self, run: str, stream: str) -> int:
        """Return how many bytes of this run's stream are already stored."""

    async def output(self, run: str, stream: str, piece: bytes) -> None:
        """Append a piece of output to a stream of a run."""

    async def running(self, runs: Sequence[str]) -> None:
        """Record that these runs have started. The call may come late, and not at all for a run that has ended."""

    async def ended(self, ends: Sequence[tuple[str, AttemptResult]]) -> None:
        """Record results, after all output of these runs was passed to `output`, and remove the runs from the state."""

    async def uploaded(self, count: int, left: int = 0) -> None:
        """Count `count` more uploaded bytes; `left` bytes of a large upload remain."""

    async def compiled(self, compiled: bool) -> None:
        """Record whether this batch compiled its build, or used an existing one."""


class Runs(Protocol):
    """Single runs. Raises HostError for failures of a machine or of the network to it."""

    async def run(self, spec: RunSpec, sink: Sink, *, resume: bool = False) -> AttemptResult:
        """Upload, start, follow and judge a run.

        With `resume` the run may have been started by an earlier master: find it, and never start it.
        """

    async def signal(self, run: str, name: str) -> bool:
        """Send a signal to a run. Return False when it is not running. `launch.place_in` names a run of a batch."""

    async def refuse(self, run: str) -> bool:
        """Prevent a run from starting. Return False when it has started."""

    async def discard(self, run: str) -> None:
        """Kill what is left of a run or batch and remove its files."""


class Batches(Protocol):
    """Many runs of one program with one start."""

    async def run(self, batch: BatchSpec, sink: BatchSink, *, resume: bool = False) -> None:
        """Run the tasks that `sink.state` holds; return when the sink has received the result of each.

        Raises no HostError but NeverBegan; any other becomes the result of its tasks.
        """

    async def extend(self, batch: str, specs: Sequence[RunSpec]) -> bool:
        """Add runs, which have joined the state, to a batch that is running; its sink receives their results.

        Return False when the batch takes no more: these runs never start, and the caller removes them from the state.
        """

    async def revoke(self, batch: str, runs: Sequence[str]) -> list[str]:
        """Prevent runs of a batch from starting. Return those that had not started; the caller removes them."""


class Conversations(Protocol):
    """Interactive runs."""

    async def converse(self, spec: RunSpec, sink: Sink, keyboard: Keyboard) -> AttemptResult:
        """Run a program that reads the keyboard. It ends when the connection is lost. Raises HostError."""


class Engine(Protocol):
    """One way of running attempts on a node. A part that an engine does not offer is None."""

    @property
    def runs(self) -> Runs: ...

    @property
    def batches(self) -> Batches | None: ...

    @property
    def conversations(self) -> Conversations | None: ...
