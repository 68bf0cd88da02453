"""A hello of one node on another, before a build is taken: what is asked of whom, and what is remembered."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from sshgrid.errors import Dropped
from sshgrid.model import Facts, Toolchain
from sshgrid.node.build_check import BuildCheck
from sshgrid.node.managed_node import ManagedNode
from sshgrid.node.toolchain_check import SmokeTest

BUILT, TAKEN = SmokeTest("", compiled=True), SmokeTest("")


class Speaker:
    """A node that says hello, as far as this is asked of it."""

    def __init__(self, name: str, *says: SmokeTest | Dropped) -> None:
        self.name = name
        self.says = list(says)
        self.asked: list[tuple[str, str]] = []
        self.was_asked = asyncio.Event()
        self.toolchains = {"c": Toolchain("c", "12", {}, "f", "kind")}
        self.boot("boot-1")
        self.may_speak = asyncio.Event()
        self.may_speak.set()

    def boot(self, number: str) -> None:
        self.facts = Facts("Linux", "x86_64", "glibc", 1, 0, number, 0, "/w", "session")

    async def say_hello(self, language: str, maker: str) -> SmokeTest:
        self.asked.append((language, maker))
        self.was_asked.set()
        await self.may_speak.wait()
        said = self.says.pop(0)
        if isinstance(said, Dropped):
            raise said
        return said


class Pair:
    def __init__(self, one: Speaker, two: Speaker) -> None:
        self.one, self.two = one, two
        self.verification = BuildCheck({each.name: cast(ManagedNode, each) for each in (one, two)})

    async def check(self) -> str:
        return await self.verification.check("c", cast(ManagedNode, self.one), cast(ManagedNode, self.two))


async def test_the_hello_that_one_node_has_made_runs_on_the_other_and_that_is_remembered() -> None:
    pair = Pair(Speaker("h1", BUILT), Speaker("h2", TAKEN))
    assert [await pair.check(), await pair.check()] == ["", ""]
    assert pair.one.asked == pair.two.asked
    ((language, origin),) = pair.one.asked
    assert (language, origin.split()[:2]) == ("c", ["h1", "boot-1"])


@pytest.mark.parametrize(
    ("one", "two", "words"),
    [
        (BUILT, SmokeTest("Illegal instruction"), "the c hello of h1, which has built it, does not run on h2"),
        (BUILT, BUILT, "could not be brought to h2"),
        (SmokeTest("gcc crashed"), TAKEN, "does not run there: gcc crashed"),
    ],
)
async def test_what_speaks_against_it_is_said_and_remembered(one: SmokeTest, two: SmokeTest, words: str) -> None:
    pair = Pair(Speaker("h1", one), Speaker("h2", two))
    first = await pair.check()
    assert words in first
    assert await pair.check() == first
    assert len(pair.one.asked) == 1


@pytest.mark.parametrize("which", ["one", "two"])
async def test_after_a_restart_of_either_it_is_tried_again(which: str) -> None:
    pair = Pair(Speaker("h1", BUILT, BUILT), Speaker("h2", SmokeTest("broken"), TAKEN))
    assert await pair.check()
    getattr(pair, which).boot("boot-2")
    assert await pair.check() == ""


async def test_a_maker_that_does_not_answer_has_not_said_anything() -> None:
    pair = Pair(Speaker("h1", Dropped("h1", "no answer for 10 s"), BUILT), Speaker("h2", TAKEN))
    assert await pair.check() == "h1, which has built it, does not answer: no answer for 10 s"
    assert await pair.check() == ""


async def test_a_lost_taker_is_the_taker_s_fault() -> None:
    pair = Pair(Speaker("h1", BUILT, BUILT), Speaker("h2", Dropped("h2", "no answer"), TAKEN))
    with pytest.raises(Dropped, match="no answer") as caught:
        await pair.check()
    assert caught.value.node == "h2"
    assert await pair.check() == ""


async def test_what_the_taker_made_itself_is_not_found_by_another_try_or_another_master() -> None:
    lost = Dropped("h2", "cut after it had compiled")
    pair = Pair(Speaker("h1", BUILT, BUILT, BUILT), Speaker("h2", lost, BUILT, TAKEN))
    with pytest.raises(Dropped):
        await pair.check()
    assert "could not be brought" in await pair.check()
    pair.verification = Pair(pair.one, pair.two).verification
    assert await pair.check() == ""
    assert len({origin for _, origin in pair.two.asked}) == 3


async def test_a_node_that_left_the_inventory_is_not_asked() -> None:
    pair = Pair(Speaker("h1"), Speaker("h2"))
    gone = BuildCheck({"h2": cast(ManagedNode, pair.two)})
    said = await gone.check("c", cast(ManagedNode, pair.one), cast(ManagedNode, pair.two))
    assert said == "h1, which has built it, is no longer in the inventory"


async def test_who_waits_for_the_same_waits_for_one_try_and_may_go() -> None:
    pair = Pair(Speaker("h1", BUILT), Speaker("h2", TAKEN))
    pair.one.may_speak.clear()
    first, second = asyncio.create_task(pair.check()), asyncio.create_task(pair.check())
    await pair.one.was_asked.wait()
    first.cancel()
    pair.one.may_speak.set()
    assert await second == ""
    assert len(pair.one.asked) == 1
