"""The connection to one node: dialed whenever the breaker allows, watched, and replaced when the node is silent.

A node is silent when no load sample arrives. While runs wait for it, it is dialed more often, and a second connection
is opened before the first is given up: after a reboot the first would take long to fail.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from sshgrid.errors import Dropped, HostError
from sshgrid.node.liveness import Liveness
from sshgrid.node.shared import Shared
from sshgrid.policy.breaker import DIAL_MAX_SECONDS, Breaker
from sshgrid.ssh.hedged_dial import Spare, first_of_two
from sshgrid.ssh.link import Link

log = logging.getLogger(__name__)

WAITED_FOR_SECONDS = 1.0  # the longest pause between two dials of a node that runs wait for
SUSPECT_SECONDS = 2.0  # without a load sample: then a second connection to a node with runs is opened
SILENCE_SECONDS = 5.0  # without a load sample: then the connection is closed and the node dialed again
LEAST_WAIT_SECONDS = 0.05
LONGEST_LOOK_SECONDS = 1.0  # between two looks at a node that a run waits for


class NodeConnection:
    """The live connection to a node, or the reason why there is none."""

    def __init__(
        self,
        name: str,
        shared: Shared,
        liveness: Liveness,
        open_link: Callable[[], Awaitable[Link]],
        has_runs: Callable[[], bool],
    ) -> None:
        self.tried = False  # whether the first dial has succeeded or failed
        self.reason = ""  # why the node is not up; "" while it is up, and before the first dial
        self._name = name
        self._shared = shared
        self._liveness = liveness
        self._open_link = open_link
        self._has_runs = has_runs
        self._link: Link | None = None
        self._breaker = Breaker()
        self._dial_at_once = asyncio.Event()
        self._waiters: set[asyncio.Future[None]] = set()

    # --- state

    @property
    def up(self) -> bool:
        return self._link is not None and not self._link.lost.done()

    @property
    def link(self) -> Link | None:
        """The live connection; None while there is none."""
        return self._link if self.up else None

    def next_dial_seconds(self) -> float | None:
        """Return the seconds until the breaker allows the next dial; None when the node is up or was not tried yet."""
        if self.up or not self.tried:
            return None
        return max(0.0, self._breaker.next_try - self._shared.clock.monotonic())

    async def connected(self, patience_seconds: float) -> Link:
        """Return the live connection. Raises Dropped when the node has been silent for `patience_seconds`.

        With 0 it raises at once. While every node of the pool is silent, patience does not end: the fault is then more
        likely on the master's side.
        """
        while True:
            if self._link is not None and not self._link.lost.done():
                return self._link
            silent = self._liveness.silent_seconds()
            if silent >= patience_seconds and not (patience_seconds and self._shared.all_silent):
                why = f"no answer for {silent:.0f} s" if silent >= 1 else self.reason or "not connected"
                raise Dropped(self._name, why)
            rest = max(LEAST_WAIT_SECONDS, patience_seconds - silent)
            await self._wait_for_change(min(rest, LONGEST_LOOK_SECONDS))

    async def _wait_for_change(self, seconds: float) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            async with asyncio.timeout(seconds):
                await waiter
        except TimeoutError:
            pass
        finally:
            self._waiters.discard(waiter)

    def announce(self) -> None:
        """Wake the callers of `connected`, and the scheduler."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self._shared.changed()

    # --- dial

    def dial_now(self) -> None:
        """Dial a node that is not up at once, whatever the breaker says."""
        if not self.up:
            self._breaker = Breaker()
            self.tried = False
            self._dial_at_once.set()

    async def dial(self) -> Link | None:
        """Wait until the breaker allows a dial, then dial. Return None when that fails; `reason` then says why."""
        await self._wait_for_breaker()
        self._breaker = self._breaker.dial_started()
        try:
            return await first_of_two(self._open_link, _close, self._has_runs)
        except HostError as error:
            longest = WAITED_FOR_SECONDS if self._has_runs() else DIAL_MAX_SECONDS
            now = self._shared.clock.monotonic()
            self._breaker = self._breaker.failed(now, error, self._shared.rng, longest)
            self.reason = error.reason
            self.tried = True
            log.info("%s is down: %s", self._name, error.reason)
            self.announce()
            return None

    async def _wait_for_breaker(self) -> None:
        while not self._breaker.allows(now := self._shared.clock.monotonic()):
            self._dial_at_once.clear()
            try:
                async with asyncio.timeout(max(LEAST_WAIT_SECONDS, self._breaker.next_try - now)):
                    await self._dial_at_once.wait()
            except TimeoutError:
                pass

    def use(self, link: Link) -> None:
        """Make this the live connection."""
        self._breaker = self._breaker.succeeded()
        self._link, self.reason, self.tried = link, "", True
        self._liveness.seen(link.facts.uptime_seconds)

    # --- watch

    async def watch(self, link: Link) -> Link | None:
        """Wait until the connection is lost or the node is silent for too long; `reason` then says why.

        Return the next connection, if it is open by then.
        """
        spare = Spare(self._open_link, _close)
        try:
            while not link.lost.done():
                await self._wait_for_silence(link, spare)
                if not link.lost.done():
                    await self._judge_silence(link, spare)
        except BaseException:
            await spare.drop()
            raise
        successor = await spare.end()
        self.reason = link.lost.result().reason
        log.info("%s: connection lost: %s", self._name, self.reason)
        return successor

    async def _wait_for_silence(self, link: Link, spare: Spare[Link]) -> None:
        """Wait until the node could be silent for too long, or something has happened."""
        longest = SUSPECT_SECONDS if self._has_runs() and not spare.begun else SILENCE_SECONDS
        rest = longest - self._liveness.silent_seconds()
        news: list[asyncio.Future[Any]] = [link.lost, *spare.dials]
        timeout = min(max(rest, LEAST_WAIT_SECONDS), SILENCE_SECONDS)
        await asyncio.wait(news, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)

    async def _judge_silence(self, link: Link, spare: Spare[Link]) -> None:
        """Open a second connection to a silent node with runs, and give up the first when it stays silent."""
        silent = self._liveness.silent_seconds()
        if spare.answered:
            await link.close(Dropped(self._name, "silent, while a new connection is answered"))
        elif silent > SILENCE_SECONDS:
            await link.close(Dropped(self._name, f"no answer for {silent:.0f} s"))
        elif silent > SUSPECT_SECONDS and self._has_runs():
            spare.begin()
        elif silent <= SUSPECT_SECONDS:
            await spare.drop()

    # --- end

    def fail(self, error: BaseException) -> None:
        """Record that the node is no longer kept connected because of a bug."""
        self.reason, self.tried = f"a bug in sshgrid: {type(error).__name__}: {error}", True
        self.announce()

    async def close(self) -> None:
        if self._link is not None:
            await self._link.close()


async def _close(link: Link) -> None:
    await link.close()
