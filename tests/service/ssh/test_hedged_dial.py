"""Two dials of one host: which one is used, and which one is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from sshgrid.errors import Dropped
from sshgrid.ssh.hedged_dial import Spare, first_of_two
from sshgrid.testing import until

SOON = 0.01


class Dials:
    """Dials that wait until a test sets their result."""

    def __init__(self) -> None:
        self.begun: list[asyncio.Future[str]] = []
        self.closed: list[str] = []
        self.cancelled = 0
        self.second = asyncio.Event()

    async def open(self) -> str:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.begun.append(answer)
        if len(self.begun) == 2:
            self.second.set()
        try:
            return await answer
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    async def close(self, opened: str) -> None:
        self.closed.append(opened)

    def race(self, *, hurried: bool = True) -> asyncio.Task[str]:
        return asyncio.create_task(first_of_two(self.open, self.close, lambda: hurried, SOON))


@pytest.mark.parametrize("winner", [0, 1])
async def test_F2_first_dial_that_answers_wins_and_the_other_is_cancelled(winner: int) -> None:
    dials = Dials()
    race = dials.race()
    await dials.second.wait()
    dials.begun[winner].set_result("link")
    assert await race == "link"
    assert (dials.cancelled, dials.closed) == (1, [])


async def test_of_two_dials_that_answer_at_the_same_time_one_is_closed() -> None:
    dials = Dials()
    race = dials.race()
    await dials.second.wait()
    for number, answer in enumerate(dials.begun):
        answer.set_result(f"link {number}")
    won = await race
    assert [won, *dials.closed] in (["link 0", "link 1"], ["link 1", "link 0"])


async def test_refusal_ends_both_dials() -> None:
    dials = Dials()
    race = dials.race()
    await dials.second.wait()
    dials.begun[0].set_exception(ConnectionRefusedError())
    with pytest.raises(ConnectionRefusedError):
        await race
    assert dials.cancelled == 1


async def test_without_waiting_runs_there_is_one_dial() -> None:
    dials = Dials()
    race = dials.race(hurried=False)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5 * SOON):
            await dials.second.wait()
    dials.begun[0].set_result("link")
    assert (await race, len(dials.begun)) == ("link", 1)


async def test_cancelled_caller_cancels_both_dials() -> None:
    dials = Dials()
    race = dials.race()
    await dials.second.wait()
    race.cancel()
    with pytest.raises(asyncio.CancelledError):
        await race
    assert dials.cancelled == 2


async def test_F16_spare_dial_beside_a_silent_connection_is_handed_over() -> None:
    dials = Dials()
    spare = Spare(dials.open, dials.close)
    spare.begin()
    spare.begin()
    await until(lambda: dials.begun)
    assert (len(dials.begun), spare.answered) == (1, False)
    dials.begun[0].set_result("link")
    await until(lambda: spare.answered)
    assert (await spare.end(), dials.closed) == ("link", [])


async def test_F39_spare_dial_is_cancelled_when_the_connection_answers_and_can_be_repeated() -> None:
    dials = Dials()
    spare = Spare(dials.open, dials.close)
    for _ in range(2):
        spare.begin()
        await until(lambda: len(dials.begun) > dials.cancelled)
        await spare.drop()
    assert (len(dials.begun), dials.cancelled, await spare.end()) == (2, 2, None)


async def test_failed_spare_dial_is_not_repeated() -> None:
    dials = Dials()
    spare = Spare(dials.open, dials.close)
    spare.begin()
    await until(lambda: dials.begun)
    dials.begun[0].set_exception(Dropped("n1", "no route"))
    await until(lambda: not spare.dials)
    spare.begin()
    assert (len(dials.begun), spare.answered, await spare.end()) == (1, False, None)


async def test_unneeded_spare_connection_is_closed() -> None:
    dials = Dials()
    spare = Spare(dials.open, dials.close)
    spare.begin()
    await until(lambda: dials.begun)
    dials.begun[0].set_result("link")
    await until(lambda: spare.answered)
    await spare.drop()
    assert dials.closed == ["link"]
