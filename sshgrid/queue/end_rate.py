"""Counts how many jobs ended in the last minute."""

from __future__ import annotations

from collections import Counter

MINUTE_SECONDS = 60


class EndRate:
    """Counts the ends of each second. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._ends: Counter[int] = Counter()

    def note(self, now: float) -> None:
        """Count the end of a job."""
        self._ends[int(now)] += 1
        if len(self._ends) > 2 * MINUTE_SECONDS:
            self._drop_old(now)

    def last_minute(self, now: float) -> int:
        """The number of ends in the last minute."""
        self._drop_old(now)
        return self._ends.total()

    def _drop_old(self, now: float) -> None:
        begin = now - MINUTE_SECONDS
        self._ends = Counter({second: count for second, count in self._ends.items() if second > begin})
