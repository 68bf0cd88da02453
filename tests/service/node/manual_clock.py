"""A clock that a test moves by hand."""

from __future__ import annotations

from sshgrid.clock import Clock


class ManualClock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.clock = Clock(lambda: self.now, lambda: self.now)
