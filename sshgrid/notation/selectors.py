"""Selectors of nodes (`node[01-10],@fast,!beta`) and of jobs (`1,3,5-8`, `last`, `all`).

A part of a selector that names no known node or job is an error, and so is a pattern with more than MAX_NAMES names.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from math import prod

from sshgrid.errors import NoSuchJob, NoSuchNode, UsageError
from sshgrid.model import MAX_TASKS, JobId, Node, task_id

MAX_NAMES = 10_000

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)
_JOBS = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", re.ASCII)
_TASKS = re.compile(r"([0-9]{1,12})\.([0-9]{1,7})(?:-(?:\1\.)?([0-9]{1,7}))?", re.ASCII)
_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})([^0-9]*)", re.ASCII | re.DOTALL)
_COMMA = re.compile(r",(?![^\[]*\])")  # not the comma of node[1,3]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'host'?`` for the end of a message; "" when no known word is similar."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


# --- nodes ------------------------------------------------------------------------------------------------------------


def expand(pattern: str) -> tuple[str, ...]:
    """The names of a pattern: ten of ``node[01-10]``, two of ``node[1,3]``, one of ``alpha``. Keeps leading zeros."""
    pieces = _BRACKETS.split(pattern)
    fixed, inner = pieces[::2], [_parse_numbers(inside, pattern) for inside in pieces[1::2]]
    if any(char in piece for piece in fixed for char in "[]"):
        raise UsageError(f"{pattern!r} has an unmatched bracket", "write a range like node[01-10]")
    if prod(len(numbers) for numbers in inner) > MAX_NAMES:
        raise _too_many(pattern)
    return tuple(_weave(fixed, chosen) for chosen in itertools.product(*map(_digits, inner)))


class _Numbers:
    """The numbers in a pair of brackets. They are counted before any text is made of them."""

    def __init__(self, ranges: list[tuple[int, int, int]]) -> None:
        self.ranges = ranges

    def __len__(self) -> int:
        return sum(last - first + 1 for first, last, _ in self.ranges)


def _parse_numbers(inside: str, pattern: str) -> _Numbers:
    numbers = _Numbers([_parse_range(part.strip(), pattern) for part in inside.split(",")])
    if len(numbers) > MAX_NAMES:
        raise _too_many(pattern)
    return numbers


def _parse_range(part: str, pattern: str) -> tuple[int, int, int]:
    found = _RANGE.fullmatch(part)
    if found is None:
        raise UsageError(f"{part!r} in {pattern!r} is not a range of numbers", "write a range like node[01-10]")
    first, last = found[1], found[2] or found[1]
    if int(first) > int(last):
        raise UsageError(f"the range {part} in {pattern!r} is in reverse order", f"write {last}-{first}")
    return int(first), int(last), len(first) if first.startswith("0") else 0


def _digits(numbers: _Numbers) -> list[str]:
    return [f"{number:0{width}d}" for first, last, width in numbers.ranges for number in range(first, last + 1)]


def _weave(fixed: Sequence[str], chosen: Sequence[str]) -> str:
    return "".join(itertools.chain.from_iterable(itertools.zip_longest(fixed, chosen, fillvalue="")))


def _too_many(pattern: str) -> UsageError:
    return UsageError(f"{pattern!r} has more than {MAX_NAMES} names")


def fold(names: Iterable[str]) -> str:
    """The shortest pattern for these names: ``alpha,node[01-03,07]``. The reverse of `expand`."""
    numbered: dict[tuple[str, str], set[str]] = {}
    for name in names:
        found = _NUMBERED.fullmatch(name)
        before, digits, after = (found[1], found[2], found[3]) if found else ("", "", name)
        numbered.setdefault((before, after), set()).add(digits)
    return ",".join(
        before + (f"[{digits}]" if digits.strip("0123456789") else digits) + after
        for before, after in sorted(numbered)
        for digits in _fold_by_width(numbered[before, after])
    )


def _fold_by_width(found: set[str]) -> Iterator[str]:
    """Fold numbers with leading zeros by their width, because 1 and 01 are different names."""
    widths = {len(digits) for digits in found if digits.startswith("0") and len(digits) > 1}
    by_width: dict[int, list[str]] = {}
    for digits in found - {""}:
        by_width.setdefault(len(digits) if len(digits) in widths else 0, []).append(digits)
    if "" in found:  # a name without a number
        yield ""
    for width in sorted(by_width):
        yield _fold_numbers(sorted(by_width[width], key=lambda digits: (len(digits), digits)))


def _fold_numbers(ordered: Sequence[str]) -> str:
    """``01-03,07`` for sorted numbers."""
    runs: list[list[str]] = []
    for digits in ordered:
        if runs and int(digits) == int(runs[-1][-1]) + 1:
            runs[-1].append(digits)
        else:
            runs.append([digits])
    return ",".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def nodes(selector: str, known: Sequence[Node]) -> tuple[Node, ...]:
    """The selected nodes, in the order of `known`; ``""`` selects all. Raises NoSuchNode when a part selects none."""
    if not selector.strip():
        return tuple(known)
    parts = [part.strip() for part in _COMMA.split(selector)]
    included = [_nodes_of_part(part, known) for part in parts if not part.startswith("!")]
    excluded = [_nodes_of_part(part[1:], known) for part in parts if part.startswith("!")]
    chosen = set().union(*included) if included else {node.name for node in known}
    chosen -= set().union(*excluded)
    if not chosen:
        raise NoSuchNode(f"the selector {selector!r} selects no node", "sshgrid nodes")
    return tuple(node for node in known if node.name in chosen)


def _nodes_of_part(part: str, known: Sequence[Node]) -> set[str]:
    if not part or part == "@" or part.startswith("!"):
        raise UsageError("the selector has an empty part", "write for example: alpha,node[01-10],@fast,!beta")
    if part.startswith("@"):
        return _nodes_with_tag(part[1:], known)
    names = {node.name for node in known}
    found = names.intersection(expand(part))
    if not found:
        raise NoSuchNode(f"no node {part!r}{did_you_mean(part, names)}", "sshgrid nodes")
    return found


def _nodes_with_tag(tag: str, known: Sequence[Node]) -> set[str]:
    found = {node.name for node in known if tag in node.tags}
    if not found:
        tags = set().union(*(node.tags for node in known))
        raise NoSuchNode(f"no node has the tag {tag!r}{did_you_mean(tag, tags)}", "sshgrid nodes")
    return found


# --- jobs -------------------------------------------------------------------------------------------------------------


def jobs(selector: str, known: Sequence[JobId]) -> tuple[JobId, ...]:
    """The selected jobs, each once, in the order of the parts. Raises NoSuchJob when a part selects none.

    ``42.17`` is a task of sweep 42, ``42.1-9`` are nine tasks. Tasks that have not begun are included. ``all`` may
    select none.
    """
    ordered = sorted(known)
    if selector.strip() in ("", "all"):
        return tuple(ordered)
    found = itertools.chain.from_iterable(_jobs_of_part(part.strip(), ordered) for part in selector.split(","))
    return tuple(dict.fromkeys(found))


def _jobs_of_part(part: str, ordered: Sequence[JobId]) -> Iterator[JobId]:
    if part == "all":
        return iter(ordered)
    if part == "last":
        if not ordered:
            raise NoSuchJob("there is no job yet", "sshgrid run FILE")
        return iter(ordered[-1:])
    if found := _TASKS.fullmatch(part):
        return _tasks(JobId(int(found[1])), int(found[2]), int(found[3] or found[2]), ordered)
    return _between(part, *_bounds(part), ordered)


def _tasks(sweep: JobId, first: int, last: int, ordered: Sequence[JobId]) -> Iterator[JobId]:
    """The ids of these tasks. Whether the sweep has as many tasks is not checked."""
    _between(str(sweep), sweep, sweep, ordered)
    if not 0 < first <= last <= MAX_TASKS:
        raise UsageError(
            f"{first} to {last} is not a range of tasks of sweep {sweep}", "write for example: 42.17 or 42.1-9"
        )
    if last - first >= MAX_NAMES:
        raise UsageError(f"{sweep}.{first}-{last} are more than {MAX_NAMES} tasks", f"select the whole sweep: {sweep}")
    return (task_id(sweep, number) for number in range(first, last + 1))


def _bounds(part: str) -> tuple[int, int]:
    found = _JOBS.fullmatch(part)
    if found is None:
        raise UsageError(f"{part!r} is not a job", "write for example: 42, 3-8, 1,3,5-8, 42.17, last or all")
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last:
        raise UsageError(f"the range {part} is in reverse order", f"write {last}-{first}")
    return first, last


def _between(part: str, first: int, last: int, ordered: Sequence[JobId]) -> Iterator[JobId]:
    found = [job for job in ordered if first <= job <= last]
    if not found:
        raise NoSuchJob(f"no such job: {part}" if first == last else f"no such jobs: {part}", "sshgrid ps -a")
    return iter(found)
