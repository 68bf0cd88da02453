"""What all nodes of one grid share: settings of the inventory, limits on dials, the build cache and the spool.

The node pool changes it, and a node only reads it: a node does not depend on the pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from random import Random
from typing import Protocol

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.engines.build_cache import BuildCache
from sshgrid.errors import UnknownLanguage
from sshgrid.model import Language, Node, RetryPolicy
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing, dial_address

# Connections that are in their SSH handshake at the same time: each costs the master 3 ms of CPU.
HANDSHAKES = 20
# sshd drops connections at random once ten have not logged in (MaxStartups).
DIALS_PER_SERVER = 4


class DialLimits:
    """How nodes are dialed, and limits on dials at the same time: in total, and to one server."""

    def __init__(self, dialing: Dialing) -> None:
        self.dialing = dialing
        self.handshakes = asyncio.Semaphore(HANDSHAKES)
        self._servers: dict[str, asyncio.Semaphore] = {}

    def server(self, node: Node) -> asyncio.Semaphore:
        """Return the semaphore to hold while `node` is dialed. Nodes of one server or jump host have the same."""
        address = dial_address(node, self.dialing)
        return self._servers.setdefault(address, asyncio.Semaphore(DIALS_PER_SERVER))


class SmokeRuns:
    """The runs of smoke tests that are in progress. No job of the queue has them."""

    def __init__(self, clock: Clock) -> None:
        self.names: set[str] = set()
        # The time makes the numbers unique: a folder of an earlier master may still exist.
        self._numbers = count(int(clock.wall() * 1000))

    def next_number(self) -> int:
        """Return an attempt number for a new run."""
        return next(self._numbers)


class Activity(Protocol):
    """What nodes of one pool need to know about each other."""

    @property
    def up(self) -> bool: ...

    @property
    def needed_runs(self) -> set[str]: ...  # names of runs and run folders


class Shared:
    """What all nodes share. `nodes` are all nodes of the pool, by name; `changed` wakes the scheduler."""

    def __init__(
        self,
        grid: str,
        spool: Spool,
        dialing: Dialing,
        rng: Random,
        nodes: Mapping[str, Activity],
        changed: Callable[[], None],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.grid = grid
        self.clock = clock
        self.spool = spool
        self.builds = BuildCache(spool, clock=clock)
        self.dial_limits = DialLimits(dialing)
        self.rng = rng
        self.changed = changed
        self._nodes = nodes
        self.retry = RetryPolicy()
        self.languages: Sequence[Language] = ()
        self.tools: tuple[str, ...] = ()  # names of commands that a node is searched for
        self.smoke_runs = SmokeRuns(clock)

    def language(self, name: str) -> Language:
        """Return the row of this language. Raises UnknownLanguage."""
        row = next((row for row in self.languages if row.name == name), None)
        if row is None:
            raise UnknownLanguage(f"unknown language {name!r}", "sshgrid toolchains")
        return row

    @property
    def all_silent(self) -> bool:
        """Whether no node answers: then the fault is more likely on the master's side."""
        return not any(node.up for node in self._nodes.values())

    def known_runs(self) -> set[str]:
        """Return the names of all runs and run folders that a node still needs."""
        return self.smoke_runs.names.union(*(node.needed_runs for node in self._nodes.values()))
