"""May a build of one node be taken by another? `--verify-build`: a hello that the one has made must run on the other.

It is a build like the one in question: made on that node by the same toolchain, brought here in the same way, never
compiled here. What came of it counts for these two nodes until one of them restarts or its tools change. Refuses when
it cannot be tried: a compiler that runs once more costs little.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from sshgrid.engines.hosts import BuildNode
from sshgrid.errors import HostError

if TYPE_CHECKING:
    from sshgrid.node.managed_node import ManagedNode

# Language and the kind of its tools, then each node with its boot: who made it, who takes it.
Pair: TypeAlias = tuple[str, str, str, str, str, str]


class BuildCheck:
    """What is known of the nodes of a grid, and what is being tried."""

    def __init__(self, nodes: Mapping[str, ManagedNode]) -> None:
        self._members = nodes
        self._tries: dict[Pair, asyncio.Task[str]] = {}
        # Part of what a hello is known by: one that the taker had to make itself lies on it, too, and must not be found
        # there by another try, or another master, and be taken for the maker's.
        self._mark = secrets.token_hex(8)

    async def check(self, language: str, maker: BuildNode, taker: BuildNode) -> str:
        """ "" or why `taker` must not take what `maker` has built. Raises HostError when `taker` itself is lost."""
        one, other = self._members.get(maker.name), self._members.get(taker.name)
        if one is None or other is None:
            return f"{maker.name}, which has built it, is no longer in the inventory"
        pair = _pair(language, one, other)
        if pair not in self._tries:
            self._tries[pair] = asyncio.create_task(self._try(pair, one, other), name=f"hello of {one.name}")
        # Who waits may be cancelled; the others who wait for the same have their answer all the same.
        return await asyncio.shield(self._tries[pair])

    async def _try(self, pair: Pair, one: ManagedNode, other: ManagedNode) -> str:
        problem, lasting = "", False
        try:
            problem, lasting = await _hello_of(pair, one, other, self._mark)
        finally:
            if not lasting:
                del self._tries[pair]
                self._mark = secrets.token_hex(8)
        return problem


async def _hello_of(pair: Pair, one: ManagedNode, other: ManagedNode, mark: str) -> tuple[str, bool]:
    """What is wrong with it, and whether that is known now."""
    language = pair[0]
    origin = f"{one.name} {pair[3]} {mark}"
    try:
        made = await one.say_hello(language, origin)
    except HostError as error:
        return f"{one.name}, which has built it, does not answer: {error.reason}", False
    if made.problem:
        return f"the {language} hello of {one.name}, which has built it, does not run there: {made.problem}", True
    taken = await other.say_hello(language, origin)
    if taken.compiled:
        return f"the {language} hello of {one.name}, which has built it, could not be brought to {other.name}", True
    if taken.problem:
        return f"the {language} hello of {one.name}, which has built it, does not run on {other.name}", True
    return "", True


def _pair(language: str, one: ManagedNode, other: ManagedNode) -> Pair:
    toolchain = other.toolchains.get(language)
    kind = toolchain.kind if toolchain else ""
    return (language, kind, one.name, _boot(one), other.name, _boot(other))


def _boot(node: ManagedNode) -> str:
    return node.facts.boot_id if node.facts else ""
