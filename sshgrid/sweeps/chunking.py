"""How many tasks of a sweep share one start, and which tasks start next.

Short tasks go to a slot of a node many at a time, so that a start and the report of an end cost little per task.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice
from math import ceil

from sshgrid.sweeps.estimates import START_COST_SECONDS

BATCH_SECONDS = 3.0  # a batch runs for about this long
MAX_BATCH_TASKS = 200
GROWTH = 16  # a batch has at most this many times the number of ended tasks: the first few may not be like the rest
LONG_SECONDS = 10.0  # a task that is expected to run longer starts alone


def batch_size(expected_seconds: float | None, unstarted: int, ended: int, slots: int) -> int:
    """How many tasks should start together in one slot; 0 when a task should start without a batch.

    `expected_seconds` is what one task takes (None before any has ended), `unstarted` and `ended` count the tasks of
    the sweep, `slots` is how many slots it can have. All slots get as many of the tasks that are left.
    """
    if expected_seconds is None:
        return 1  # the batch can be extended when the first tasks have ended
    if expected_seconds > LONG_SECONDS:
        return 0
    fair = unstarted / max(1, slots) / 2
    # Tasks that take less than a start are not worth a start each, however few are left.
    fair = max(fair, START_COST_SECONDS / expected_seconds)
    return max(1, min(int(BATCH_SECONDS / expected_seconds), MAX_BATCH_TASKS, GROWTH * ended, ceil(fair)))


class UnstartedTasks:
    """The numbers of tasks that have never started, in the order in which they start.

    Only the next few numbers are kept in memory: the rest is read from `numbers`, of which there are `count`.
    """

    def __init__(self, numbers: Iterable[int], count: int) -> None:
        self._rest: Iterator[int] = iter(numbers)
        self._next: deque[int] = deque()
        self._count = count

    def __len__(self) -> int:
        return self._count

    def first(self, count: int) -> list[int]:
        """The first `count` numbers, or fewer when fewer are left."""
        while len(self._next) < count and (number := next(self._rest, None)) is not None:
            self._next.append(number)
        return list(islice(self._next, max(0, count)))

    def remove(self, number: int) -> None:
        """Remove a number that `first` has returned; nothing happens when it was removed before."""
        if self._next and self._next[0] == number:
            self._next.popleft()
        elif number in self._next:
            self._next.remove(number)
        else:
            return
        self._count -= 1

    def add_first(self, numbers: Iterable[int]) -> None:
        """Add numbers that were removed before; `first` returns them first."""
        returned = sorted(numbers)
        self._next.extendleft(reversed(returned))
        self._count += len(returned)
