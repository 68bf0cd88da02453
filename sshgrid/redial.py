"""A second dial beside a first one that is slow: what the first one sent into the dark is repeated ever more seldom.

A lost SYN is sent again after 1, 3 and 7 s, so a host that comes back may go unnoticed for four. Two dials in turn
halve that. Whichever ends first, well or badly, decides; the other is taken back. Refuses to know what is dialled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

SECOND_DIAL_SECONDS = 2.0

T = TypeVar("T")


async def first_of_two(
    open_one: Callable[[], Awaitable[T]],
    close_one: Callable[[T], Awaitable[None]],
    hurried: Callable[[], bool],
    seconds: float = SECOND_DIAL_SECONDS,
) -> T:
    """What `open_one` gives. It is called a second time when the first takes longer than this and `hurried()`."""

    async def dial() -> T:
        return await open_one()

    dials = {asyncio.create_task(dial())}
    try:
        done, _ = await asyncio.wait(dials, timeout=seconds)
        if not done and hurried():
            dials.add(asyncio.create_task(dial()))
        done, _ = await asyncio.wait(dials, return_when=asyncio.FIRST_COMPLETED)
        won = next((task for task in done if task.exception() is None), next(iter(done)))
        dials.discard(won)
        return won.result()
    finally:
        await _take_back(dials, close_one)


async def _take_back(dials: set[asyncio.Task[T]], close_one: Callable[[T], Awaitable[None]]) -> None:
    for task in dials:
        task.cancel()
    for opened in await asyncio.gather(*dials, return_exceptions=True):
        if not isinstance(opened, BaseException):
            await close_one(opened)
