"""What one watcher of a job is shown of its output, across attempts.

The person sees one attempt's bytes only: where a new attempt prints again what they have already seen, nothing is shown
twice; where it differs, they are told that the output starts again. Pure: the kept bytes are read through a function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from sshgrid.model import Struct

# (attempt, offset, at most so many bytes) -> bytes that are kept; b"" when there are no more yet
Read: TypeAlias = Callable[[int, int, int], bytes]


class Shown(Struct, frozen=True):
    """`count` bytes of `attempt` are on the screen; `reading` is the attempt that is read now, up to `position`."""

    attempt: int = 0
    count: int = 0
    reading: int = 0
    position: int = 0


class Piece(Struct, frozen=True):
    """`restarted`: these bytes begin the output anew; there may be none then."""

    data: bytes
    restarted: bool = False


def advance(shown: Shown, attempt: int, read: Read, most: int, over: bool = False) -> tuple[Shown, Piece | None]:
    """The next step of showing `attempt`; None when there is nothing (more) to show now.

    `over`: it has ended with a result, so when that is less than is on the screen, the output begins anew.

    >>> kept = {1: b"one two", 2: b"one two three"}
    >>> read = lambda attempt, offset, count: kept[attempt][offset : offset + count]
    >>> advance(Shown(1, 7, 1, 7), 2, read, 99)[1].data
    b' three'
    """
    if attempt > shown.reading:
        shown = Shown(shown.attempt or attempt, shown.count, attempt, 0)
    while shown.attempt != attempt and shown.position < shown.count:
        new = read(attempt, shown.position, min(most, shown.count - shown.position))
        if not new and not over:
            return shown, None
        old = read(shown.attempt, shown.position, len(new))
        if new != old or not new:
            return _show(Shown(attempt, 0, attempt, 0), read, most, restarted=True)
        shown = Shown(shown.attempt, shown.count, attempt, shown.position + len(new))
    return _show(Shown(attempt, shown.position, attempt, shown.position), read, most)


def _show(shown: Shown, read: Read, most: int, restarted: bool = False) -> tuple[Shown, Piece | None]:
    data = read(shown.attempt, shown.position, most)
    if not data and not restarted:
        return shown, None
    position = shown.position + len(data)
    return Shown(shown.attempt, position, shown.attempt, position), Piece(data, restarted)
