"""Interactive runs: the program's streams are those of one SSH channel, and the run ends with the connection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from sshgrid.engines import AttemptResult, Keyboard, Sink
from sshgrid.engines.follow import Poller, RunFollower
from sshgrid.engines.launch import RunSpec
from sshgrid.engines.starter import RunStarter, to_end
from sshgrid.model import Step
from sshgrid.ssh.channels import Conversation


class DirectConversations:
    """Interactive runs of one node."""

    def __init__(self, starter: RunStarter) -> None:
        self._starter = starter

    async def converse(self, spec: RunSpec, sink: Sink, keyboard: Keyboard) -> AttemptResult:
        await self._starter.start(spec, sink)
        link = await self._starter.host.connected(0)
        await sink.step(Step.RUNNING)
        async with link.runs.converse(spec.run, terminal=spec.terminal) as channel:
            typing = asyncio.create_task(_forward_input(channel, keyboard))
            try:
                await asyncio.gather(
                    _forward_output(channel.stdout, sink, "stdout"), _forward_output(channel.stderr, sink, "stderr")
                )
            finally:
                typing.cancel()
        # The channel has delivered the output: only the record, the build's output and the files are left to read.
        poller = Poller(spec, sink, self._starter.wait(spec), self._starter.clock)
        return await to_end(RunFollower(spec, sink, poller, streams={}), at_once=True)


async def _forward_input(channel: Conversation, keyboard: Keyboard) -> None:
    while True:
        match await keyboard.get():
            case b"":
                channel.end_input()
            case bytes(piece):
                await channel.type(piece)
            case (columns, rows):
                channel.resize(columns, rows)


async def _forward_output(pieces: AsyncIterator[bytes], sink: Sink, stream: str) -> None:
    async for piece in pieces:
        await sink.output(stream, piece)
