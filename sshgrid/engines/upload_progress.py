"""Reports the progress of an upload to its sink, a few times a second; of a small upload once, at its end."""

from __future__ import annotations

from sshgrid.clock import Clock
from sshgrid.engines import Sink

LARGE_BYTES = 8 << 20
REPORT_SECONDS = 0.25


class UploadProgress:
    """Counts what is sent of `total_bytes`. Objects that the node has already are never counted as sent."""

    def __init__(self, sink: Sink, total_bytes: int, clock: Clock) -> None:
        self._sink, self._clock = sink, clock
        self._left = total_bytes
        self._unreported = 0
        self._is_large = total_bytes >= LARGE_BYTES
        self._reported_at = clock.monotonic()

    async def sent(self, count: int) -> None:
        """Count `count` more bytes, and report them when it is time."""
        self._unreported += count
        self._left = max(0, self._left - count)
        now = self._clock.monotonic()
        if self._is_large and now - self._reported_at >= REPORT_SECONDS:
            self._reported_at = now
            await self._report(self._left)

    async def end(self) -> None:
        """Report the rest: nothing is left."""
        await self._report(0)

    async def _report(self, left: int) -> None:
        count, self._unreported = self._unreported, 0
        await self._sink.uploaded(count, left)
