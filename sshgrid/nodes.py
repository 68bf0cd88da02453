"""The nodes of the inventory, and what they share.

Takes up a changed inventory: new nodes join, changed ones dial anew, removed ones leave once their runs have. What one
node does is in member.py. Refuses to decide where jobs go.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from random import Random

import msgspec

from sshgrid import toolchains
from sshgrid.engines.build_cache import Builds
from sshgrid.errors import UnknownLanguage
from sshgrid.model import Language, Node, RetryPolicy
from sshgrid.node.build_check import Verification
from sshgrid.node.managed_node import Member
from sshgrid.policy.placement import NodeView
from sshgrid.spool.spool import Spool
from sshgrid.ssh.connect import Dialing, door

HANDSHAKES = 20
# sshd drops connections at random once ten have not logged in (MaxStartups).
KNOCKS_AT_A_DOOR = 4


class Roster:
    """All nodes of the inventory, and what they share."""

    def __init__(
        self,
        grid: str,
        spool: Spool,
        how: Dialing,
        rng: Random,
        changed: Callable[[], None],
    ) -> None:
        self.grid = grid
        self.spool = spool
        self.builds = Builds(spool)
        self.how = how
        self.rng = rng
        self.changed = changed
        self.retry = RetryPolicy()
        self.languages: Sequence[Language] = ()
        self.tools: tuple[str, ...] = ()
        self.handshakes = asyncio.Semaphore(HANDSHAKES)
        self.members: dict[str, Member] = {}
        self.builds.verify = Verification(self.members).check
        self.proving: set[str] = set()  # runs that test toolchains
        self._doors: dict[str, asyncio.Semaphore] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def door(self, node: Node) -> asyncio.Semaphore:
        """Held while a node is dialled: several nodes may be one server, or stand behind one."""
        return self._doors.setdefault(door(node, self.how), asyncio.Semaphore(KNOCKS_AT_A_DOOR))

    def sampled(self, first: bool) -> None:
        """A sample alone changes little; the first ones decide whether a waiting job may choose."""
        if first:
            self.changed()

    async def follow(self, nodes: Iterable[Node], languages: Sequence[Language], retry: RetryPolicy) -> None:
        """Take up an inventory: new nodes join, changed ones dial anew, removed ones leave once their runs have."""
        self.retry = retry
        rows_changed = tuple(languages) != tuple(self.languages)
        self.languages = languages
        self.tools = toolchains.tools(languages)
        wanted = {node.name: node for node in nodes}
        for name, member in list(self.members.items()):
            node = wanted.get(name)
            if node is None:
                member.node = msgspec.structs.replace(member.node, drained=True)
                if not member.running:
                    await self._drop(name)
            elif _same_road(member.node, node) and not rows_changed:
                member.node = node
            else:
                await self._redial(name, node)
        for name, node in wanted.items():
            if name not in self.members:
                self._join(Member(node, self))
        self.changed()

    async def _redial(self, name: str, node: Node) -> None:
        """Same member, as runs may be on it; another connection."""
        member = self.members[name]
        member.node = node
        await self._end_task(name)
        member.tried = False
        self._keep(member)

    def _join(self, member: Member) -> None:
        self.members[member.name] = member
        self._keep(member)

    def _keep(self, member: Member) -> None:
        task = asyncio.create_task(member.keep(), name=f"node {member.name}")
        task.add_done_callback(member.broken)
        self._tasks[member.name] = task

    async def _drop(self, name: str) -> None:
        await self._end_task(name)
        self.members.pop(name, None)

    async def _end_task(self, name: str) -> None:
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def language(self, name: str) -> Language:
        """The row of this language. Raises UnknownLanguage."""
        row = next((row for row in self.languages if row.name == name), None)
        if row is None:
            raise UnknownLanguage(f"unknown language {name!r}", "sshgrid toolchains")
        return row

    def undecided(self, language: str) -> bool:
        """Is there a node that is still being dialled, or asked for this toolchain?"""
        return any(member.undecided or (member.up and language in member.untested) for member in self.members.values())

    def want(self, language: str) -> None:
        for member in self.members.values():
            member.want(language)

    @property
    def all_silent(self) -> bool:
        return not any(member.up for member in self.members.values())

    def known_runs(self) -> set[str]:
        return self.proving.union(*(member.running.keys() | member.claims for member in self.members.values()))

    def views(self) -> list[NodeView]:
        return [member.view() for member in self.members.values()]

    def renewed(self, views: Sequence[NodeView], name: str) -> list[NodeView]:
        """These, with that of one node as it is now."""
        return [self.members[name].view() if view.node.name == name else view for view in views]

    async def close(self) -> None:
        await asyncio.gather(*(self._end_task(name) for name in list(self._tasks)))


def _same_road(old: Node, new: Node) -> bool:
    """May the connection stay? Slots, tags, weight and the like change nothing about it."""

    def road(node: Node) -> Node:
        return msgspec.structs.replace(
            node, slots=None, weight=1.0, tags=frozenset(), max_load=None, drained=False, shared_builds=True
        )

    return road(old) == road(new)
