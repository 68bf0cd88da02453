"""Versions of toolchains: read from what a tool prints, and compared with a user's constraint (``>=17``).

Versions are compared number by number, never as text. A constraint is an operator and numbers.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

from sshgrid.errors import UsageError

_DOTTED = re.compile(r"(?<![\d.])\d+(?:\.\d+)+(?:_\d+)?", re.ASCII)
_INTEGER = re.compile(r"(?<![\d.])\d+", re.ASCII)
_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_NOISE = ("picked up ", "warning")  # the JVM prints JAVA_TOOL_OPTIONS before the version
_CONSTRAINT = re.compile(r"\s*(>=|<=|==|>|<)\s*(\d{1,9}(?:[._]\d{1,9}){0,7})\s*", re.ASCII)
_OPERATORS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}


def version_in(output: bytes) -> str:
    """Return the version in the output of `tool --version`; "" when there is none.

    >>> version_in(b"gcc (crosstool-NG 1.24.0) 12.2.0")
    '12.2.0'
    """
    lines = [line for line in output[:4096].decode("utf-8", "replace").splitlines() if not _is_noise(line)]
    for line in lines:
        # A number in brackets is the packager's, unless it is the only one: perl 5, version 36 (v5.36.0)
        if found := _DOTTED.search(_BRACKETS.sub(" ", line)) or _DOTTED.search(line):
            return found.group()
    whole = next((found for line in lines if (found := _INTEGER.search(line))), None)
    return whole.group() if whole else ""


def _is_noise(line: str) -> bool:
    return line.strip().lower().startswith(_NOISE)


def satisfies(version: str, constraint: str) -> bool:
    """Return whether `version` satisfies `constraint` (``>=17``, ``>=3.8,<4``). Raises UsageError.

    As many numbers count as the constraint has: 17.0.15 is ==17, <=17 and not >17. An unknown version satisfies only
    the empty constraint.
    """
    wanted = parse_constraint(constraint)
    return all(_holds(version, sign, bound) for sign, bound in wanted)


def parse_constraint(constraint: str) -> tuple[tuple[str, str], ...]:
    """Return the operators and versions of a constraint: ``>=3.8,<4`` gives ((">=", "3.8"), ("<", "4"))."""
    if not constraint.strip():
        return ()
    return tuple(_one(part) for part in constraint.split(","))


def _one(text: str) -> tuple[str, str]:
    found = _CONSTRAINT.fullmatch(text)
    if not found:
        raise UsageError(f"not a version constraint: {text!r}", "write >=17, ==3.11, <2 or several joined by commas")
    return found[1], found[2]


def _holds(version: str, sign: str, bound: str) -> bool:
    have = _numbers(version)
    if not have:
        return False
    # Java before 9 printed 1.8.0_392; the underscore distinguishes it from Go 1.8.0
    old_java = "_" in version and have[0] == 1
    want = _numbers(bound)
    if old_java:
        have = have[1:]
        want = want[1:] if len(want) > 1 and want[0] == 1 else want
    have = (have + (0,) * len(want))[: len(want)]
    return _OPERATORS[sign](have, want)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d{1,18}", version, re.ASCII))
