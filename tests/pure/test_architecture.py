"""The architecture, held by a machine: floors, cycles, purity, libraries, sizes of classes, names, and words.

Everything is read from the syntax trees. A new folder must be given its floor in FLOORS, a new term its line in
docs/glossary.md.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

import pytest

import sshgrid

ROOT = Path(sshgrid.__file__).parent
TOP = ROOT.parent

# From the ground up. A folder or module imports only from its own floor or below, also inside functions.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("clock", "errors", "lru", "model", "version", "__init__"),
    ("notation", "protocol"),
    ("paths", "spool", "ssh", "sweeps", "terminal", "toolchains"),
    ("engines", "inventory", "policy", "queue"),
    ("client", "node", "users"),
    ("gateway", "monitor", "nodes", "prompt"),
    ("reports", "scheduler", "shell"),
    ("master", "server"),
    ("daemon", "testing"),
    ("cli",),
    ("__main__",),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
MOST_FLOORS = 12

# Library -> the modules that may import it. What is not listed is free.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "asyncssh": ("ssh.*", "gateway.*", "engines.*", "testing.*"),
    "click": ("cli", "cli.*", "shell", "prompt.*", "client.session"),
    "prompt_toolkit": ("shell", "prompt.*", "monitor", "monitor.*"),
    "pydantic": ("inventory", "inventory.*"),
    "sqlite3": ("queue.*",),
    "yaml": ("inventory", "inventory.*"),
}

# Here the event loop, the clock, random numbers and the outside world come in as arguments.
PURE = (
    *("errors", "model", "version", "notation.*", "policy.*", "protocol.*", "sweeps.*", "toolchains", "toolchains.*"),
    *("engines.jobscript", "engines.launch", "gateway.login_throttle", "gateway.worker_messages", "node.diagnosis"),
    *("reports.lines", "reports.replay", "ssh.parsers", "monitor.draw", "monitor.view"),
)
IMPURE = {
    *("asyncio", "asyncssh", "concurrent", "multiprocessing", "random", "secrets", "select", "socket", "sqlite3"),
    *("subprocess", "threading", "time", "uuid"),
}
# `Random` is a type to annotate with; the generator itself is an argument. `fsdecode` only changes the type of a text.
PURE_NAMES = {"os": {"fsdecode", "fsencode"}, "random": {"Random"}}
FILES = {"fcntl", "glob", "io", "os", "pathlib", "shutil", "stat", "tempfile"}
CLOCKS = {"now", "utcnow", "today"}

# A person waits for these: a library here costs each command tens of milliseconds (docs/benchmarks.md).
THIN = ("__main__", "cli", "client.connection", "client.start", "client.run_options")
HEAVY = {"asyncio", "asyncssh", "prompt_toolkit", "pydantic", "rich", "sqlite3", "yaml"}

MOST_METHODS = 20
MOST_FIELDS = 12
MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_A_MODULE = 600
# Class -> why it may be larger.
LARGER_CLASSES: dict[str, str] = {}

# Words that were replaced (docs/glossary.md): each is a whole word, in code, comments, messages and pages.
REPLACED = (
    *("zygote", "jobbook", "roster", "carrier", "intake", "redial", "handover", "forestall", "lingers", "deeds"),
    *("whoever", "somebody", "nobody", "front door", "straggler", "stranger", "proved", "knock"),
)

# Terms that the code uses as names: each has a definition.
TERMS = (
    *("Attempt", "Batch", "Batch refill", "Blob", "Build cache", "Client", "Exit code", "Extend"),
    *("Fair share", "Fence", "Forkserver", "Halt rule", "Hedged dial", "Inventory", "Job", "Keep warm"),
    *("Lease", "Login throttle", "Master", "Node", "Node pool", "Notification", "Outcome", "Phase"),
    *("Placement", "Probe", "Quarantine", "Queue", "Quota", "Revoke", "Run folder", "Slot", "Smoke test"),
    *("Speculative attempt", "Spool", "SSH gateway", "Sweep", "Task", "Toolchain", "Toolchain check"),
    *("Transaction", "Transfer", "Verdict", "Worker process", "Wrapper"),
)


def _modules() -> dict[str, ast.Module]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix("__init__").removesuffix(".")] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


MODULES = _modules()
each_module = pytest.mark.parametrize("module", [pytest.param(name, id=name or "sshgrid") for name in MODULES])


def place_of(module: str) -> str:
    """The folder, or the module at the top, that has a floor."""
    return module.split(".")[0] or "__init__"


def may(module: str, allowed: tuple[str, ...]) -> bool:
    return any(fnmatchcase(module, pattern) for pattern in allowed)


def source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def too_high(module: str, imports: set[str]) -> list[str]:
    """The imports of `module` that stand on a higher floor."""
    floor = FLOOR_OF[place_of(module)]
    return [other for other in sorted(imports) if FLOOR_OF[place_of(other)] > floor]


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


def import_cycles(imports: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module (Tarjan 1972)."""
    order: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        order[module] = lowest[module] = len(order)
        stack.append(module)
        for other in sorted(imports[module]):
            if other not in order:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], order[other])
        if lowest[module] == order[module]:
            part = [stack.pop()]
            while part[-1] != module:
                part.append(stack.pop())
            if len(part) > 1:
                found.append(sorted(part))

    for module in sorted(imports):
        if module not in order:
            visit(module)
    return found


def classes(tree: ast.AST) -> Iterator[ast.ClassDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def methods(node: ast.ClassDef) -> int:
    return sum(isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) for each in node.body)


def fields(node: ast.ClassDef) -> set[str]:
    """The attributes that its methods assign: of a frozen class none."""
    targets: Iterator[ast.expr] = chain.from_iterable(
        each.targets if isinstance(each, ast.Assign) else [each.target]
        for each in ast.walk(node)
        if isinstance(each, ast.Assign | ast.AnnAssign | ast.AugAssign)
    )
    flat = chain.from_iterable(each.elts if isinstance(each, ast.Tuple) else [each] for each in targets)
    return {
        each.attr
        for each in flat
        if isinstance(each, ast.Attribute) and isinstance(each.value, ast.Name) and each.value.id == "self"
    }


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def written() -> Iterator[Path]:
    """The files whose words are held: the package and the pages, not the history."""
    yield from sorted(path for path in ROOT.rglob("*") if path.suffix in (".py", ".sh", ".sql"))
    yield from sorted(TOP.glob("docs/**/*.md"))
    yield TOP / "README.md"


# --- the rules --------------------------------------------------------------------------------------------------------


def test_architecture_has_at_most_twelve_floors() -> None:
    assert len(FLOORS) <= MOST_FLOORS


@each_module
def test_architecture_gives_every_module_a_floor(module: str) -> None:
    assert place_of(module) in FLOOR_OF, f"add {place_of(module)} to FLOORS"


def test_architecture_has_no_floor_for_what_is_gone() -> None:
    assert set(FLOOR_OF) - {place_of(module) for module in MODULES} == set()


@each_module
def test_architecture_imports_run_only_to_the_same_floor_or_down(module: str) -> None:
    assert too_high(module, own(MODULES[module])) == []


def test_architecture_has_no_import_cycle() -> None:
    assert import_cycles({module: own(tree) - {module} for module, tree in MODULES.items()}) == []


def test_architecture_has_no_cycle_of_folders() -> None:
    imports: dict[str, set[str]] = defaultdict(set)
    for module, tree in MODULES.items():
        imports[place_of(module)] |= {place_of(other) for other in own(tree)} - {place_of(module), "__init__"}
    assert import_cycles(imports) == []


@each_module
def test_imports_are_absolute(module: str) -> None:
    relative = [origin for origin, _ in imported(MODULES[module]) if origin.startswith(".")]
    assert relative == []


@each_module
def test_a_library_is_imported_only_where_it_is_allowed(module: str) -> None:
    known = libraries(MODULES[module]) & LIBRARIES.keys()
    assert [library for library in sorted(known) if not may(module, LIBRARIES[library])] == []


@pytest.mark.parametrize("module", [name for name in MODULES if may(name, PURE)])
def test_pure_modules_import_nothing_impure(module: str) -> None:
    assert impurities(MODULES[module]) == []


@pytest.mark.parametrize("module", THIN)
def test_thin_modules_import_nothing_heavy_not_even_through_others(module: str) -> None:
    seen: set[str] = set()
    waiting: list[tuple[str, ...]] = [(module,), ("",)]  # importing any part imports the package itself
    while waiting:
        path = waiting.pop()
        tree = at_import(MODULES[path[-1]])
        assert libraries(tree) & HEAVY == set(), f"imported by way of {' -> '.join(path)}"
        waiting += [(*path, other) for other in sorted(own(tree) - seen)]
        seen |= own(tree)


@pytest.mark.parametrize("folder", sorted({path.parent for path in ROOT.rglob("*.py")}), ids=lambda path: path.name)
def test_architecture_folders_say_their_purpose_in_one_sentence(folder: Path) -> None:
    purpose = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert re.match(r"[A-Za-z`].+[.:]", purpose), f"{folder.name}/__init__.py has no docstring"


@each_module
def test_architecture_classes_stay_small(module: str) -> None:
    large = [
        f"{node.name}: {methods(node)} methods, {len(fields(node))} fields"
        for node in classes(MODULES[module])
        if (methods(node) > MOST_METHODS or len(fields(node)) > MOST_FIELDS) and node.name not in LARGER_CLASSES
    ]
    assert large == []


def test_architecture_exceptions_are_still_needed() -> None:
    sizes = {node.name: (methods(node), len(fields(node))) for tree in MODULES.values() for node in classes(tree)}
    assert [
        name
        for name in LARGER_CLASSES
        if name not in sizes or (sizes[name][0] <= MOST_METHODS and sizes[name][1] <= MOST_FIELDS)
    ] == []


@each_module
def test_architecture_functions_and_modules_stay_short(module: str) -> None:
    long = [
        f"{node.name}: {(node.end_lineno or 0) - node.lineno + 1} lines"
        for node in functions(MODULES[module])
        if (node.end_lineno or 0) - node.lineno >= MOST_LINES_OF_A_FUNCTION
    ]
    assert long == []
    assert source(module).read_text(encoding="utf-8").count("\n") <= MOST_LINES_OF_A_MODULE


def test_architecture_one_class_name_is_one_class() -> None:
    places: dict[str, list[str]] = defaultdict(list)
    for module, tree in MODULES.items():
        for node in classes(tree):
            places[node.name].append(module)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


@pytest.mark.parametrize("path", list(written()), ids=lambda path: str(path.relative_to(TOP)))
def test_architecture_replaced_words_do_not_come_back(path: Path) -> None:
    pattern = re.compile(rf"\b({'|'.join(REPLACED)})s?\b", re.IGNORECASE)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [f"{number}: {line.strip()}" for number, line in enumerate(lines, 1) if pattern.search(line)] == []


def test_architecture_page_names_every_folder_and_every_module_at_the_top() -> None:
    page = (TOP / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = [name for name in FLOOR_OF if name not in ("__init__", "__main__") and f"`{name}" not in page]
    assert missing == []


def glossary() -> dict[str, str]:
    """The terms of docs/glossary.md with their definitions. Fails when a term is defined twice."""
    text = (TOP / "docs" / "glossary.md").read_text(encoding="utf-8")
    entries = re.findall(r"^- \*\*(.+?)\*\*: (.*(?:\n  .*)*)", text, re.MULTILINE)
    assert len(entries) == len(dict(entries))
    return dict(entries)


def test_architecture_glossary_defines_the_main_terms_once_each() -> None:
    entries = glossary()
    assert [term for term in TERMS if len(entries.get(term, "").split()) < 5] == []


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
        "def f():\n    from sshgrid import master\n    from sshgrid.model import Job\n    import sshgrid.queue.store"
    )
    assert too_high("model", own(tree)) == ["master", "queue.store"]
    assert too_high("queue.store", own(tree)) == ["master"]
    assert too_high("cli", own(tree)) == []


def test_a_cycle_is_found() -> None:
    assert import_cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert import_cycles({"a": {"b"}, "b": set()}) == []


def test_fields_and_methods_of_a_class_are_counted() -> None:
    tree = ast.parse(
        "class A:\n  def __init__(self):\n    self.a, self.b = 1, 2\n    self.c: int = 3\n"
        "  def f(self):\n    self.d += 1"
    )
    node = next(classes(tree))
    assert (methods(node), fields(node)) == (2, {"a", "b", "c", "d"})


def test_a_lazy_import_costs_nothing_at_the_start() -> None:
    tree = ast.parse("import json\nif TYPE_CHECKING:\n    import yaml\ndef f():\n    import asyncio")
    assert libraries(at_import(tree)) == {"json"}
