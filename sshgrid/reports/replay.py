"""Which bytes of a job's output one watcher is shown, across attempts.

The user sees the bytes of one attempt only: where a new attempt prints what was shown already, nothing is shown twice;
where it prints something else, the output starts again. Pure: the kept bytes are read through a function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from sshgrid.model import Struct

# (attempt, offset, most bytes) -> the kept bytes from there; b"" when there are none yet
Read: TypeAlias = Callable[[int, int, int], bytes]


class Shown(Struct, frozen=True):
    """`count` bytes of `attempt` were shown; `reading` is the attempt that is read now, up to `position`."""

    attempt: int = 0
    count: int = 0
    reading: int = 0
    position: int = 0


class Piece(Struct, frozen=True):
    """Bytes to show; `restarted`: the output starts again with them, and `data` may be empty."""

    data: bytes
    restarted: bool = False


def advance(shown: Shown, attempt: int, read: Read, most: int, over: bool = False) -> tuple[Shown, Piece | None]:
    """The next piece of `attempt` to show; None when there is none now.

    `most`: the most bytes of a piece. `over`: the attempt has ended by itself, so when its output is shorter than what
    was shown, the output starts again.

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
