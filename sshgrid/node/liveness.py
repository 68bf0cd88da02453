"""When one node was last seen alive, its uptime, and its load.

Silence is measured by the monotonic clock: a wall clock that jumps must not make a node silent.
"""

from __future__ import annotations

from collections import deque

from sshgrid.clock import Clock
from sshgrid.model import Sample

HISTORY_SAMPLES = 60  # one a second


class Liveness:
    """The last sign of life of a node, and the uptime that it reported then."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._uptime_seconds = 0.0
        self.seen_at = clock.monotonic()

    def seen(self, uptime_seconds: float) -> None:
        """Record a sign of life, and the uptime that came with it."""
        self.seen_at = self._clock.monotonic()
        self._uptime_seconds = uptime_seconds

    def silent_seconds(self) -> float:
        """Return the seconds since the last sign of life."""
        return self._clock.monotonic() - self.seen_at

    def uptime_now(self) -> float:
        """Return the node's uptime in seconds, extrapolated from the last report."""
        return self._uptime_seconds + self.silent_seconds()

    @property
    def last_seen(self) -> float:
        """The last sign of life, in seconds since the epoch."""
        return self._clock.wall() - self.silent_seconds()


class LoadHistory:
    """The load samples of one connection."""

    def __init__(self) -> None:
        self.sample: Sample | None = None  # the latest
        self.busy_minute: deque[float] = deque(maxlen=HISTORY_SAMPLES)  # busy cores, one value a second

    def add(self, sample: Sample) -> bool:
        """Add a sample. Return whether the CPU use, which is the difference of two samples, was unknown before."""
        before, self.sample = self.sample, sample
        if sample.busy_cores is not None:
            self.busy_minute.append(sample.busy_cores)
        return before is None or before.busy_cores is None

    def clear(self) -> None:
        self.sample = None
        self.busy_minute.clear()
