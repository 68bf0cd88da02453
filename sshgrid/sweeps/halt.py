"""When a sweep stops early: ``--halt`` as GNU parallel means it, and ``--max-fails``.

Pure: the counts of the tasks in, "" or "soon" or "now" out. Refuses, rather than guesses, a condition that could never
or always be true, such as ``fail=0``; stops nothing itself.
"""

from __future__ import annotations

import re
from typing import Literal

from sshgrid.errors import UsageError
from sshgrid.model import Halt

_HALT = re.compile(r"(soon|now),(fail|success|done)=(?:([0-9]{1,9})|([0-9]{1,3}(?:\.[0-9]{1,6})?)%)", re.ASCII)
_HINT = "write never, soon,fail=10% (start no more), now,fail=1 (kill the rest), or success= or done= likewise"
# The short forms of GNU parallel.
_SHORT = {"0": "never", "1": "soon,fail=1", "2": "now,fail=1", "-1": "soon,success=1", "-2": "now,success=1"}
_SHORT_PERCENT = re.compile(r"[0-9]{1,3}%", re.ASCII)


def parse_halt(text: str) -> Halt:
    """The value of ``--halt``: ``never``, ``now,fail=1``, ``soon,fail=30%``, ``now,success=1``, ``soon,done=10`` ..."""
    written = _SHORT.get(text, f"soon,fail={text}" if _SHORT_PERCENT.fullmatch(text) else text)
    if written == "never":
        return Halt()
    found = _HALT.fullmatch(written)
    if found is None:
        raise UsageError(f"{text!r} does not say when to halt", _HINT)
    count, percent = int(found[3]) if found[3] else None, float(found[4]) if found[4] else None
    if count == 0 or (percent is not None and not 0 < percent <= 100):
        raise UsageError(f"{text!r} would halt always or never", "take a number from 1, or a percentage up to 100%")
    return Halt("now" if found[1] == "now" else "soon", _reason(found[2]), count, percent)


def _reason(text: str) -> Literal["fail", "success", "done"]:
    return "success" if text == "success" else "done" if text == "done" else "fail"


def max_fails(most: int) -> Halt:
    """``--max-fails N``, as in HyperQueue: `most` failures are borne, one more cancels the rest, running ones too."""
    if most < 0:
        raise UsageError(f"--max-fails {most} is negative", "--max-fails 0 stops at the first failure")
    return Halt("now", "fail", most + 1)


def halts(halt: Halt, failed: int, done: int, total: int) -> Literal["", "soon", "now"]:
    """What is to be done now. `done` counts the failed ones too; a percentage is of `total`, all tasks of the sweep."""
    if halt.when == "never":
        return ""
    reached = {"fail": failed, "success": done - failed, "done": done}[halt.reason]
    return halt.when if reached and reached >= _needed(halt, total) else ""


def _needed(halt: Halt, total: int) -> float:
    if halt.count is not None:
        return halt.count
    # Rounded: 0.07% of 10,000 must be 7, not 7.000000000000001.
    return round((halt.percent or 0.0) * total / 100, 6)
