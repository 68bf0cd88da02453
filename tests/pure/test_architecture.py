"""The house rules on imports, read from the syntax trees: floors, purity, and which module may know which library.

A new module must be given its floor here: one without fails.
"""

from __future__ import annotations

import ast
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import sshgrid

ROOT = Path(sshgrid.__file__).parent

# Module (or a pattern of modules) -> floor. A module imports only from its own floor or below, also inside functions.
FLOORS: dict[str, int] = {
    "digest": 0,
    "errors": 0,
    "model": 0,
    "version": 0,
    "breaker": 1,
    "diagnosis": 1,
    "inventory": 1,
    "inventory.*": 1,
    "jobscript": 1,
    "lifecycle": 1,
    "paths": 1,
    "placement": 1,
    "quantities": 1,
    "globs": 1,
    "guard": 1,
    "halting": 1,
    "order": 1,
    "pace": 1,
    "inputs": 1,
    "parameters": 1,
    "quota": 1,
    "readings": 1,
    "replay": 1,
    "report": 1,
    "rights": 1,
    "selectors": 1,
    "stragglers": 1,
    "templates": 1,
    "toolchains": 1,
    "toolchains.*": 1,
    "wire": 1,
    "wire_sweeps": 1,
    "wire_users": 1,
    "credentials": 2,
    "database": 2,
    "builds": 2,
    "cargo": 2,
    "carrier": 2,
    "channels": 2,
    "dial": 2,
    "disk": 2,
    "front": 2,
    "engines": 2,
    "engines.*": 2,
    "inventory_cache": 2,
    "local_node": 2,
    "nodes": 2,
    "redial": 2,
    "spool": 2,
    "store": 2,
    "trial": 2,
    "attempts": 3,
    "backups": 3,
    "batches": 3,
    "board": 3,
    "fanout": 3,
    "handover": 3,
    "intake": 3,
    "jobbook": 3,
    "master": 3,
    "member": 3,
    "people": 3,
    "proof": 3,
    "roster": 3,
    "refill": 3,
    "scheduler": 3,
    "sweep_report": 3,
    "sweeps": 3,
    "verification": 3,
    "watching": 3,
    "children": 4,
    "client": 4,
    "door": 4,
    "door_channel": 4,
    "door_frame": 4,
    "remote_master": 4,
    "clients": 4,
    "serve": 4,
    "session": 4,
    "sftp_folder": 4,
    "": 5,  # sshgrid itself: public names only
    "__main__": 5,
    "cli": 5,
    "cli.*": 5,
    "daemon": 5,
    "feed": 5,
    "monitor": 5,
    "monitor.*": 5,
    "shell": 5,
    "prompt": 5,
    "prompt.*": 5,
    "testing": 5,
    "zygote": 5,
    "testing.*": 5,
}

GATEWAY = ("door", "door_channel", "door_frame", "sftp_folder")

# Library -> the modules that may import it. What is not listed is free.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "asyncssh": ("nodes", "cargo", "channels", "dial", "local_node", "trial", *GATEWAY, "testing", "engines.*"),
    "sqlite3": ("store", "database"),
    "yaml": ("inventory", "inventory.*"),
    "pydantic": ("inventory", "inventory.*"),
    "prompt_toolkit": ("shell", "prompt.*", "monitor", "monitor.*"),
}

# On floors 0 and 1 the loop, the clock, dice and the outside world come in as arguments.
IMPURE = {
    *("asyncio", "asyncssh", "concurrent", "multiprocessing", "random", "secrets", "select", "socket", "sqlite3"),
    *("subprocess", "threading", "time", "uuid"),
}
# `Random` is a type to annotate with; the dice themselves are passed in.
PURE_NAMES = {"random": {"Random"}}
FILES = {"fcntl", "glob", "io", "os", "pathlib", "shutil", "stat", "tempfile"}
MAY_READ_FILES = ("inventory", "inventory.edit", "paths")
CLOCKS = {"now", "utcnow", "today"}

# People wait for these: a library here costs each command tens of milliseconds (docs/design.md).
THIN = ("cli", "client", "__main__")
HEAVY = {"asyncio", "asyncssh", "prompt_toolkit", "pydantic", "rich", "sqlite3", "yaml"}


def _modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = _modules()
each_module = pytest.mark.parametrize("module", [pytest.param(name, id=name or "sshgrid") for name in MODULES])


def floor_of(module: str) -> int | None:
    """An exact line wins over a pattern."""
    if module in FLOORS:
        return FLOORS[module]
    return next((floor for pattern, floor in FLOORS.items() if pattern and fnmatchcase(module, pattern)), None)


def may(module: str, allowed: tuple[str, ...]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in allowed)


def imported(tree: ast.AST) -> set[tuple[str, str]]:
    """(module, name) of every import, wherever it stands; name is "" for `import module`."""
    found: set[tuple[str, str]] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {(alias.name, "") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {("." * node.level + (node.module or ""), alias.name) for alias in node.names}
    return found


def libraries(tree: ast.AST) -> set[str]:
    return {module.split(".")[0] for module, _ in imported(tree)}


def own(tree: ast.AST) -> set[str]:
    """Our modules that it imports; "" is the package itself."""
    found = set()
    for module, name in imported(tree):
        if module.split(".")[0] != "sshgrid":
            continue
        inside = module.removeprefix("sshgrid").removeprefix(".")
        deeper = f"{inside}.{name}".strip(".")
        found.add(deeper if deeper in MODULES else inside)
    return found


def at_import(tree: ast.Module) -> ast.Module:
    """What runs when the module is imported: no function bodies, nothing that is only for the type checker."""

    class Lazy(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if ast.unparse(node.test).endswith("TYPE_CHECKING") else self.generic_visit(node)

    kept = [Lazy().visit(node) for node in ast.parse(ast.unparse(tree)).body]
    return ast.Module(body=[node for node in kept if node is not None], type_ignores=[])


def too_high(module: str, tree: ast.AST) -> list[str]:
    floor = floor_of(module)
    return [other for other in sorted(own(tree)) if floor is not None and (floor_of(other) or 0) > floor]


def impurities(tree: ast.AST, files: bool = False) -> list[str]:
    """What a pure module must not hold; `files` allows what reads and writes them."""
    found = [
        module
        for module, name in sorted(imported(tree))
        if (top := module.split(".")[0]) in (IMPURE if files else IMPURE | FILES)
        and name not in PURE_NAMES.get(top, ())
    ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CLOCKS:
            found.append(ast.unparse(node.func))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open" and not files:
            found.append("open")
        if isinstance(node, ast.AsyncFunctionDef) and not _is_stub(node):
            found.append(f"async def {node.name}")
    return found


def _is_stub(node: ast.AsyncFunctionDef) -> bool:
    """The body of a Protocol's method."""
    last = node.body[-1]
    return isinstance(last, ast.Expr) and isinstance(last.value, ast.Constant)


# --- the rules --------------------------------------------------------------------------------------------------------


@each_module
def test_every_module_has_a_floor(module: str) -> None:
    assert floor_of(module) is not None, f"say in FLOORS on which floor sshgrid/{module} lives"


@each_module
def test_a_module_imports_only_from_its_own_floor_or_below(module: str) -> None:
    assert too_high(module, MODULES[module]) == []


@each_module
def test_imports_are_absolute(module: str) -> None:
    relative = [origin for origin, _ in imported(MODULES[module]) if origin.startswith(".")]
    assert relative == []


@each_module
def test_a_library_stays_in_the_modules_that_may_know_it(module: str) -> None:
    known = libraries(MODULES[module]) & LIBRARIES.keys()
    assert [library for library in sorted(known) if not may(module, LIBRARIES[library])] == []


@pytest.mark.parametrize("module", [name for name in MODULES if floor_of(name) in (0, 1)])
def test_the_two_lowest_floors_are_pure(module: str) -> None:
    assert impurities(MODULES[module], files=may(module, MAY_READ_FILES)) == []


@pytest.mark.parametrize("module", [name for name in THIN if name in MODULES])
def test_what_people_wait_for_imports_nothing_heavy_not_even_through_others(module: str) -> None:
    seen: set[str] = set()
    waiting: list[tuple[str, ...]] = [(module,), ("",)]  # importing any part imports the package itself
    while waiting:
        path = waiting.pop()
        tree = at_import(MODULES[path[-1]])
        assert libraries(tree) & HEAVY == set(), f"imported by way of {' -> '.join(path)}"
        waiting += [(*path, other) for other in sorted(own(tree) - seen)]
        seen |= own(tree)


# --- the rules bite ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import asyncio", ["asyncio"]),
        ("def f():\n    import time", ["time"]),
        ("from time import monotonic", ["time"]),
        ("import random", ["random"]),
        ("from random import choice", ["random"]),
        ("from random import Random", []),
        ("import sqlite3.dbapi2", ["sqlite3.dbapi2"]),
        ("import os", ["os"]),
        ("open('x')", ["open"]),
        ("from datetime import datetime\ndatetime.now()", ["datetime.now"]),
        ("from datetime import datetime\ndatetime.fromtimestamp(0)", []),
        ("async def f():\n    return 1", ["async def f"]),
        ("class P:\n    async def f(self): ...", []),
    ],
)
def test_an_impure_line_is_found(source: str, expected: list[str]) -> None:
    assert impurities(ast.parse(source)) == expected


def test_an_import_from_a_higher_floor_is_found_even_inside_a_function() -> None:
    tree = ast.parse(
        "def f():\n    from sshgrid import store\n    from sshgrid.model import Job\n    import sshgrid.protocol.messages"
    )
    assert too_high("model", tree) == ["store", "wire"]
    assert too_high("wire", tree) == ["store"]
    assert too_high("store", tree) == []


def test_a_module_nobody_gave_a_floor_is_found() -> None:
    assert floor_of("a_module_nobody_gave_a_floor") is None
    assert floor_of("engines.slurm") == 2


def test_a_lazy_import_costs_nothing_at_the_start() -> None:
    tree = ast.parse("import json\nif TYPE_CHECKING:\n    import yaml\ndef f():\n    import asyncio")
    assert libraries(at_import(tree)) == {"json"}
