"""What does a Makefile build, and how is it started? Reads the rules of a Makefile's text, without running make.

Convention: the program is the first target; when that is only a name for others (`all: prog`), the first of those.
When no program can be told, a target `run` is called with the arguments in ARGS. Refuses Makefiles with neither.
"""

from __future__ import annotations

import re

from sshgrid.errors import UsageError
from sshgrid.model import Struct

_VARIABLE = re.compile(r"^(?:override\s+|export\s+)?([\w.-]+)\s*(?::{0,3}|\?)=\s*(.*)$")
_MAX_TEXT = 1024 * 1024
_REFERENCE = re.compile(r"\$[({]([\w.-]+)[)}]|\$(\w)")
# names that are chores by custom, declared .PHONY or not
_CHORES = frozenset({"all", "build", "check", "clean", "default", "help", "install", "release", "run", "test"})
_GROUPS = frozenset({"all", "build", "default", "release"})


class MakeProgram(Struct, frozen=True):
    """How what a Makefile makes is started."""

    binary: str = ""  # path in the project; "" = call the target `run`
    builds: bool = True  # False: the default target is `run` itself, so there is nothing to make before


def find_program(source: bytes) -> MakeProgram:
    """What to start once `make` has run. UsageError when the Makefile does not say."""
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
    """The first thing behind `goal` that is a file; loops of names end after as many steps as there are rules."""
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
    """Prerequisites; a recipe after a semicolon, order-only ones after a bar and variables are none."""
    text = text.removeprefix(":").partition(";")[0].partition("|")[0]
    return () if "=" in text else tuple(_expand(text, variables).split())


def _expand(text: str, variables: dict[str, str]) -> str:
    """Plain $(NAME) only; what stays unknown keeps its dollar. Bounded: a variable may name itself."""
    for _ in range(8):
        expanded = _REFERENCE.sub(lambda found: variables.get(found[1] or found[2], found[0]), text)[:10_000]
        if expanded == text:
            break
        text = expanded
    return text
