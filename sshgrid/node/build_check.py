"""The check of `--verify-build`: a smoke test that one node has built must run on another before that takes its builds.

The smoke test is built on the first node with the same toolchain and copied to the other node as any build is. The
result counts for these two nodes until one of them restarts or its tools change. When the check cannot be made, the
build is not taken: compiling once more costs little.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from typing import NamedTuple, Protocol

from sshgrid.engines.hosts import BuildNode
from sshgrid.errors import HostError
from sshgrid.model import Facts
from sshgrid.node.smoke_test import SmokeTest


class CheckedNode(Protocol):
    """What the check needs of a node."""

    name: str
    facts: Facts | None

    def toolchain_kind(self, language: str) -> str: ...

    async def run_smoke_test(self, language: str, maker: str) -> SmokeTest: ...


class Pair(NamedTuple):
    """What a result counts for: a language, the kind of its tools, and both nodes with their boot identifiers."""

    language: str
    kind: str
    maker: str
    maker_boot: str
    taker: str
    taker_boot: str


class BuildCheck:
    """The checks of a pool: their results, and those in progress."""

    def __init__(self, nodes: Mapping[str, CheckedNode]) -> None:
        self._nodes = nodes
        self._checks: dict[Pair, asyncio.Task[str]] = {}
        # Part of the build key of a smoke test. The taker may have had to compile one itself: a later check, or that of
        # another master, must not find it there and take it for the maker's.
        self._mark = secrets.token_hex(8)

    async def check(self, language: str, maker: BuildNode, taker: BuildNode) -> str:
        """Return why `taker` must not take builds of `maker`, or "". Raises HostError when `taker` itself is lost."""
        one, other = self._nodes.get(maker.name), self._nodes.get(taker.name)
        if one is None or other is None:
            return f"{maker.name}, which built it, is no longer in the inventory"
        pair = Pair(language, other.toolchain_kind(language), one.name, _boot(one), other.name, _boot(other))
        if pair not in self._checks:
            check = self._check(pair, one, other)
            self._checks[pair] = asyncio.create_task(check, name=f"smoke test of {one.name} on {other.name}")
        # One caller may be cancelled while others wait for the same check.
        return await asyncio.shield(self._checks[pair])

    async def _check(self, pair: Pair, one: CheckedNode, other: CheckedNode) -> str:
        problem, is_final = "", False
        try:
            problem, is_final = await _smoke_test(
                pair.language, f"{one.name} {pair.maker_boot} {self._mark}", one, other
            )
        finally:
            if not is_final:
                del self._checks[pair]
                self._mark = secrets.token_hex(8)
        return problem


async def _smoke_test(language: str, origin: str, one: CheckedNode, other: CheckedNode) -> tuple[str, bool]:
    """Build the smoke test on one node and run it on the other. Return the problem, and whether it is the final one."""
    try:
        made = await one.run_smoke_test(language, origin)
    except HostError as error:
        return f"{one.name}, which built it, does not answer: {error.reason}", False
    test = f"the {language} smoke test of {one.name}, which built it,"
    if made.problem:
        return f"{test} fails there: {made.problem}", True
    taken = await other.run_smoke_test(language, origin)
    if taken.compiled:
        return f"{test} could not be copied to {other.name}", True
    if taken.problem:
        return f"{test} fails on {other.name}", True
    return "", True


def _boot(node: CheckedNode) -> str:
    return node.facts.boot_id if node.facts else ""
