"""The clock as an argument: wall time for what people read, monotonic time for waiting.

A part that waits or measures takes a `Clock`; tests give one that they move by hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Clock(NamedTuple):
    """`wall` returns seconds since the epoch and may jump; `monotonic` returns seconds that only grow."""

    wall: Callable[[], float]
    monotonic: Callable[[], float]


SYSTEM_CLOCK = Clock(time.time, time.monotonic)
