"""A second dial beside a slow first one, or beside a silent connection.

TCP repeats a lost SYN after 1, 3 and 7 s, so a host that is back can go unnoticed for four seconds; a second dial
halves that. A rebooted host sends nothing on an old connection until it receives something. The dial or connection that
is not needed is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any, Generic, TypeVar

from sshgrid.errors import HostError

SECOND_DIAL_SECONDS = 2.0

T = TypeVar("T")


async def first_of_two(
    open_one: Callable[[], Awaitable[T]],
    close_one: Callable[[T], Awaitable[None]],
    hurried: Callable[[], bool],
    seconds: float = SECOND_DIAL_SECONDS,
) -> T:
    """Return the result of `open_one`. Call it a second time when the first takes `seconds` and `hurried()` is true."""

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
        await _cancel(dials, close_one)


async def _cancel(dials: Collection[asyncio.Task[Any]], close_one: Callable[[T], Awaitable[None]]) -> None:
    for task in dials:
        task.cancel()
    for opened in await asyncio.gather(*dials, return_exceptions=True):
        if opened is not None and not isinstance(opened, BaseException):
            await close_one(opened)


class Spare(Generic[T]):
    """One dial beside a silent connection. It is not repeated before `drop`: the connection is not silent any more."""

    def __init__(self, open_one: Callable[[], Awaitable[T]], close_one: Callable[[T], Awaitable[None]]) -> None:
        self._open, self._close = open_one, close_one
        self.dials: set[asyncio.Task[T | None]] = set()  # one or none
        self.begun = False

    def begin(self) -> None:
        """Dial, unless there was a dial since the last `drop`."""
        if self.begun:
            return
        self.begun = True
        self.dials.add(asyncio.create_task(self._dial()))

    async def _dial(self) -> T | None:
        try:
            return await self._open()
        except HostError:  # the next ordinary dial reports what is wrong
            self.dials.clear()
            return None

    @property
    def answered(self) -> bool:
        """Whether the new connection is open."""
        return any(dial.done() for dial in self.dials)

    async def drop(self) -> None:
        """Cancel the dial, or close its result, and allow another one."""
        dials, self.dials, self.begun = self.dials, set(), False
        await _cancel(dials, self._close)

    async def end(self) -> T | None:
        """Return the new connection if it is open by now; else cancel the dial."""
        if self.answered:
            return self.dials.pop().result()
        await self.drop()
        return None
