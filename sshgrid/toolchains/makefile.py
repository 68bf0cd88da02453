"""Finds what a Makefile builds, and how to start it. Reads the rules of its text, without running make.

The program is the first target; when that only names other targets (`all: prog`), the first of these. Without such a
program, the target `run` is called with the arguments in ARGS. A Makefile with neither is a UsageError.
"""

from __future__ import annotations

import re

from sshgrid.errors import UsageError
from sshgrid.model import Struct

_VARIABLE = re.compile(r"^(?:override\s+|export\s+)?([\w.-]+)\s*(?::{0,3}|\?)=\s*(.*)$")
_MAX_TEXT = 1024 * 1024
_REFERENCE = re.compile(r"\$[({]([\w.-]+)[)}]|\$(\w)")
# targets that are not files by convention, with or without .PHONY
_CHORES = frozenset({"all", "build", "check", "clean", "default", "help", "install", "release", "run", "test"})
_GROUPS = frozenset({"all", "build", "default", "release"})


class MakeProgram(Struct, frozen=True):
    """How to start the program of a Makefile."""

    binary: str = ""  # path in the project; "": call the target `run`
    builds: bool = True  # False: the default target is `run`, so nothing is built before


def find_program(source: bytes) -> MakeProgram:
    """Return what to start after `make`. Raises UsageError when the Makefile has no program and no target `run`."""
    rules, variables = _read(source.decode("utf-8", "replace"))
    targets = [target for target in rules if not target.startswith(".") and "%" not in target]
    phony = frozenset(rules.get(".PHONY", ()))
    goals = [_expand(variables[".DEFAULT_GOAL"], variables)] if ".DEFAULT_GOAL" in variables else targets[:1]
    binary = _binary(goals[0], rules, phony) if goals else ""
    if binary:
        return MakeProgram(binary)
    if "run" in rules:
        return MakeProgram(builds=goals != ["run"])
    raise UsageError(
        "the Makefile does not say what to run: its first target names no program and there is no target 'run'",
        "add a target: run: prog ; ./prog $(ARGS)",
    )


def _binary(goal: str, rules: dict[str, tuple[str, ...]], phony: frozenset[str]) -> str:
    """Return the first file that `goal` leads to, or "". A loop of names ends after one step per rule."""
    for _ in range(len(rules) + 1):
        if goal in phony or goal in _CHORES:
            needs = rules.get(goal, ())
            if not needs or (goal in _CHORES and goal not in _GROUPS):
                return ""
            goal = needs[0]
            continue
        return goal if _is_path(goal) else ""
    return ""


def _is_path(goal: str) -> bool:
    return bool(goal) and "$" not in goal and not goal.startswith("/") and ".." not in goal.split("/")


def _read(text: str) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    rules, variables = dict[str, tuple[str, ...]](), dict[str, str]()
    for line in text[:_MAX_TEXT].replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        if line.startswith("\t"):
            continue
        line = line.partition("#")[0].rstrip()
        if assigned := _VARIABLE.match(line):
            variables[assigned[1]] = assigned[2].strip()
            continue
        targets, colon, needs = line.partition(":")
        if colon and "=" not in targets and not needs.startswith("="):
            for target in _expand(targets, variables).split():
                rules[target] = rules.get(target, ()) + _needs(needs, variables)
    return rules, variables


def _needs(text: str, variables: dict[str, str]) -> tuple[str, ...]:
    """Return the prerequisites: without a recipe after a semicolon, order-only ones after a bar, and variables."""
    text = text.removeprefix(":").partition(";")[0].partition("|")[0]
    return () if "=" in text else tuple(_expand(text, variables).split())


def _expand(text: str, variables: dict[str, str]) -> str:
    """Replace $(NAME) by its value; unknown names stay. The number of passes is bounded: a variable may name itself."""
    for _ in range(8):
        expanded = _REFERENCE.sub(lambda found: variables.get(found[1] or found[2], found[0]), text)[:10_000]
        if expanded == text:
            break
        text = expanded
    return text
