"""What a watcher hears of an upload: how much has come and how much is left, not more often than it can be read.

A small upload is told in one word, when it is over.
"""

from __future__ import annotations

from sshgrid.clock import Clock
from sshgrid.engines import Sink

LARGE_BYTES = 8 << 20
TELL_SECONDS = 0.25


class Meter:
    """Counts what is sent of `total_bytes`, and tells the sink."""

    def __init__(self, sink: Sink, total_bytes: int, clock: Clock) -> None:
        self._sink, self._clock = sink, clock
        self._left = total_bytes
        self._untold = 0
        self._tells = total_bytes >= LARGE_BYTES
        self._told_at = clock.monotonic()

    async def sent(self, count: int) -> None:
        """So many bytes more. What was there already is never counted: more may seem to be left than is."""
        self._untold += count
        self._left = max(0, self._left - count)
        if self._tells and self._clock.monotonic() - self._told_at >= TELL_SECONDS:
            self._told_at = self._clock.monotonic()
            await self._tell(self._left)

    async def end(self) -> None:
        await self._tell(0)

    async def _tell(self, left: int) -> None:
        count, self._untold = self._untold, 0
        await self._sink.uploaded(count, left)
