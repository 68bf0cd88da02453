"""How long a silent host is waited for, and the lease of a fenced run."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from sshgrid.clock import Clock
from sshgrid.engines.hosts import EngineHost
from sshgrid.engines.launch import LEASE_MARGIN_SECONDS, RunSpec
from sshgrid.errors import Dropped
from sshgrid.model import OnHostLoss
from sshgrid.ssh.link import Link


class HostWait:
    """Waits for the host of one run. `patience` maps seconds of work at stake to seconds of waiting."""

    def __init__(self, host: EngineHost, spec: RunSpec, patience: Callable[[float], float], clock: Clock) -> None:
        now = clock.monotonic()
        self.host = host
        self._spec = spec
        self._patience = patience
        self._clock = clock
        self._began = now - spec.worked_seconds
        self._is_fenced = spec.on_host_loss is OnHostLoss.FENCE
        self._renew_at = 0.0
        # An earlier master cannot have given a longer lease.
        longest = patience(spec.worked_seconds) + LEASE_MARGIN_SECONDS
        self._lease_ends = now + longest if self._is_fenced else 0.0

    def _patience_seconds(self) -> float:
        """Return how long a silent host is waited for now: as long as the work at stake took."""
        if self._spec.on_host_loss is OnHostLoss.WAIT:
            return math.inf
        return self._patience(self._clock.monotonic() - self._began - self.host.silent_seconds())

    async def connected(self) -> Link:
        """Return the live connection. Raises Dropped when patience, and the lease of a fenced run, have ended."""
        try:
            return await self.host.connected(self._patience_seconds())
        except Dropped:
            # The run ends itself at the end of its lease; no other attempt may start before that.
            await asyncio.sleep(max(0.0, self._lease_ends - self._clock.monotonic()))
            raise

    async def renew_lease(self, link: Link) -> None:
        """Renew the lease of a fenced run long before it ends, as a few lost packets must not end a run."""
        now = self._clock.monotonic()
        if self._is_fenced and now >= self._renew_at:
            seconds = self._patience_seconds()
            # Noted before it is sent: a renewal without an answer may have arrived.
            self._lease_ends = max(self._lease_ends, now + seconds + LEASE_MARGIN_SECONDS)
            await link.runs.renew_lease(self._spec.run, self.host.uptime_now() + seconds)
            self._renew_at = now + seconds / 4
