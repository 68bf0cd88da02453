"""Single scripts and commands over a real SSH connection to this machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sshgrid.errors import Dropped
from sshgrid.model import Node
from sshgrid.ssh.connect import Dialing
from sshgrid.ssh.control import EXTRA_CHANNELS
from sshgrid.ssh.link import Link


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[Link]:
    node = Node("here", connection="local", workdir=str(tmp_path / "work"))
    link = await Link.open(node, Dialing(ssh_config=""), (), lambda _: None)
    yield link
    await link.close()


async def test_script_gets_its_arguments_and_returns_output_and_answer(link: Link) -> None:
    script = b'printf \'%s|\' "$@"; answer="$# words"\n'
    found = await link.commands.exec_once(script, ("a b", b"it's", "\xe4", b"\xff"), 20, 1000)
    assert (found.output, found.answer, found.more) == (b"a b|it's|\xc3\xa4|\xff|", "4 words", False)


async def test_output_above_the_limit_is_cut(link: Link) -> None:
    found = await link.commands.exec_once(b"head -c 5000 /dev/zero\n", (), 20, 100)
    assert (found.output, found.more) == (bytes(100), True)


async def test_script_that_exceeds_its_time_is_ended_and_the_connection_stays(link: Link) -> None:
    with pytest.raises(Dropped, match=r"here: no answer for 0\.2 s"):
        await link.commands.exec_once(b"sleep 100\n", (), 0.2, 100)
    assert not link.lost.done()
    many = (link.commands.exec_once(b"echo x\n", (), 20, 100) for _ in range(2 * EXTRA_CHANNELS))
    assert [found.output for found in await asyncio.gather(*many)] == [b"x\n"] * (2 * EXTRA_CHANNELS)


@pytest.mark.parametrize(("words", "answer"), [((b"sh", b"-c", b"exit 3"), "3"), ((b"sleep", b"100"), "late")])
async def test_answer_of_a_command_is_its_status_and_whether_its_time_limit_ended_it(
    link: Link, words: tuple[bytes, ...], answer: str
) -> None:
    found = await link.commands.execute(words, 1.0, 1000)
    assert answer in found.answer.split()


async def test_lost_connection_ends_a_script(link: Link) -> None:
    running = asyncio.create_task(link.commands.exec_once(b"sleep 100\n", (), 30, 100))
    await asyncio.sleep(0)
    await link.close()
    with pytest.raises(Dropped):
        await running
