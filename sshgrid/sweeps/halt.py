"""When a sweep stops early: the options ``--halt``, with the syntax of GNU parallel, and ``--max-fails``.

Pure: counts of tasks in, "", "soon" or "now" out. A condition that is always or never true, such as ``fail=0``, is a
usage error.
"""

from __future__ import annotations

import re
from typing import Literal

from sshgrid.errors import UsageError
from sshgrid.model import Halt

_HALT = re.compile(r"(soon|now),(fail|success|done)=(?:([0-9]{1,9})|([0-9]{1,3}(?:\.[0-9]{1,6})?)%)", re.ASCII)
_HINT = "write never, soon,fail=10% (start no more), now,fail=1 (kill the rest), or success= or done= likewise"
# The short forms of GNU parallel
_SHORT = {"0": "never", "1": "soon,fail=1", "2": "now,fail=1", "-1": "soon,success=1", "-2": "now,success=1"}
_SHORT_PERCENT = re.compile(r"[0-9]{1,3}%", re.ASCII)


def parse_halt(text: str) -> Halt:
    """The value of ``--halt``: ``never``, ``now,fail=1``, ``soon,fail=30%``, ``now,success=1``, ``soon,done=10`` ..."""
    written = _SHORT.get(text, f"soon,fail={text}" if _SHORT_PERCENT.fullmatch(text) else text)
    if written == "never":
        return Halt()
    found = _HALT.fullmatch(written)
    if found is None:
        raise UsageError(f"{text!r} is not a halt condition", _HINT)
    count, percent = int(found[3]) if found[3] else None, float(found[4]) if found[4] else None
    if count == 0 or (percent is not None and not 0 < percent <= 100):
        raise UsageError(f"{text!r} would halt always or never", "use a number from 1, or a percentage up to 100%")
    return Halt("now" if found[1] == "now" else "soon", _reason(found[2]), count, percent)


def _reason(text: str) -> Literal["fail", "success", "done"]:
    return "success" if text == "success" else "done" if text == "done" else "fail"


def max_fails(most: int) -> Halt:
    """The condition of ``--max-fails N``: more than `most` failed tasks cancel the rest, also those that run."""
    if most < 0:
        raise UsageError(f"--max-fails {most} is negative", "--max-fails 0 stops at the first failure")
    return Halt("now", "fail", most + 1)


def halts(halt: Halt, failed: int, done: int, total: int) -> Literal["", "soon", "now"]:
    """Whether the sweep stops: "soon" starts no more tasks, "now" also ends those that run, "" continues.

    `done` includes the failed tasks; a percentage is of `total`, the tasks of the sweep.
    """
    if halt.when == "never":
        return ""
    reached = {"fail": failed, "success": done - failed, "done": done}[halt.reason]
    return halt.when if reached and reached >= _needed(halt, total) else ""


def _needed(halt: Halt, total: int) -> float:
    if halt.count is not None:
        return halt.count
    # Rounded: 0.07% of 10,000 must be 7, not 7.000000000000001.
    return round((halt.percent or 0.0) * total / 100, 6)
