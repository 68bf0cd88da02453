"""The check of `--verify-build` between two nodes: which smoke tests it asks for, and which results it keeps."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from sshgrid.engines.hosts import BuildNode
from sshgrid.errors import Dropped
from sshgrid.model import Facts
from sshgrid.node.build_check import BuildCheck
from sshgrid.node.smoke_test import SmokeTest

BUILT, TAKEN = SmokeTest("", compiled=True), SmokeTest("")


class CheckedPeer:
    """A node whose smoke tests have the given results, one after the other."""

    def __init__(self, name: str, *results: SmokeTest | Dropped) -> None:
        self.name = name
        self.results = list(results)
        self.asked: list[tuple[str, str]] = []
        self.was_asked = asyncio.Event()
        self.facts: Facts | None = None
        self.boot("boot-1")
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    def boot(self, number: str) -> None:
        self.facts = Facts("Linux", "x86_64", "glibc", 1, 0, number, 0, "/w", "session")

    def toolchain_kind(self, language: str) -> str:
        return f"kind of {language}"

    async def run_smoke_test(self, language: str, maker: str) -> SmokeTest:
        self.asked.append((language, maker))
        self.was_asked.set()
        await self.may_answer.wait()
        result = self.results.pop(0)
        if isinstance(result, Dropped):
            raise result
        return result


class Pair:
    def __init__(self, one: CheckedPeer, two: CheckedPeer) -> None:
        self.one, self.two = one, two
        self.verification = BuildCheck({each.name: each for each in (one, two)})

    async def check(self) -> str:
        return await self.verification.check("c", cast(BuildNode, self.one), cast(BuildNode, self.two))


async def test_smoke_test_of_one_node_runs_on_the_other_and_the_result_is_kept() -> None:
    pair = Pair(CheckedPeer("h1", BUILT), CheckedPeer("h2", TAKEN))
    assert [await pair.check(), await pair.check()] == ["", ""]
    assert pair.one.asked == pair.two.asked
    ((language, origin),) = pair.one.asked
    assert (language, origin.split()[:2]) == ("c", ["h1", "boot-1"])


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        (BUILT, SmokeTest("Illegal instruction"), "the c smoke test of h1, which built it, fails on h2"),
        (BUILT, BUILT, "could not be copied to h2"),
        (SmokeTest("gcc crashed"), TAKEN, "fails there: gcc crashed"),
    ],
)
async def test_problem_is_returned_and_kept(one: SmokeTest, two: SmokeTest, words: str) -> None:
    pair = Pair(CheckedPeer("h1", one), CheckedPeer("h2", two))
    first = await pair.check()
    assert words in first
    assert await pair.check() == first
    assert len(pair.one.asked) == 1


@pytest.mark.parametrize("which", ["one", "two"])
async def test_restart_of_either_node_repeats_the_check(which: str) -> None:
    pair = Pair(CheckedPeer("h1", BUILT, BUILT), CheckedPeer("h2", SmokeTest("broken"), TAKEN))
    assert await pair.check()
    getattr(pair, which).boot("boot-2")
    assert await pair.check() == ""


async def test_maker_without_an_answer_is_asked_again_by_the_next_check() -> None:
    pair = Pair(CheckedPeer("h1", Dropped("h1", "no answer for 10 s"), BUILT), CheckedPeer("h2", TAKEN))
    assert await pair.check() == "h1, which built it, does not answer: no answer for 10 s"
    assert await pair.check() == ""


async def test_lost_taker_raises_an_error_that_names_it() -> None:
    pair = Pair(CheckedPeer("h1", BUILT, BUILT), CheckedPeer("h2", Dropped("h2", "no answer"), TAKEN))
    with pytest.raises(Dropped, match="no answer") as caught:
        await pair.check()
    assert caught.value.node == "h2"
    assert await pair.check() == ""


async def test_build_of_the_taker_is_not_found_by_a_later_check_or_another_master() -> None:
    lost = Dropped("h2", "cut after it had compiled")
    pair = Pair(CheckedPeer("h1", BUILT, BUILT, BUILT), CheckedPeer("h2", lost, BUILT, TAKEN))
    with pytest.raises(Dropped):
        await pair.check()
    assert "could not be copied" in await pair.check()
    pair.verification = Pair(pair.one, pair.two).verification
    assert await pair.check() == ""
    assert len({origin for _, origin in pair.two.asked}) == 3


async def test_node_that_left_the_inventory_is_not_asked() -> None:
    pair = Pair(CheckedPeer("h1"), CheckedPeer("h2"))
    pair.verification = BuildCheck({"h2": pair.two})
    assert await pair.check() == "h1, which built it, is no longer in the inventory"


async def test_concurrent_waiters_share_one_check_and_can_be_cancelled() -> None:
    pair = Pair(CheckedPeer("h1", BUILT), CheckedPeer("h2", TAKEN))
    pair.one.may_answer.clear()
    first, second = asyncio.create_task(pair.check()), asyncio.create_task(pair.check())
    await pair.one.was_asked.wait()
    first.cancel()
    pair.one.may_answer.set()
    assert await second == ""
    assert len(pair.one.asked) == 1
