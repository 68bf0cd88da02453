"""The manual is true: its examples run, its links have targets, and its reference pages are generated from the code.

A ```console block is a session in a folder with the examples and the shipped inventory: each line after `$ ` is typed,
and the following lines are the expected output. `...` matches any text. Times, sizes and other measured figures, the
name of the user and the choice between the two local nodes are ignored. `<!-- file: NAME -->` names the block below it,
or contains a file.
"""

from __future__ import annotations

import ast
import getpass
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts)
SOURCES = sorted((ROOT / "sshgrid").rglob("*.py"))
COMMAND_SECONDS = 120.0
ALL = [README, ROOT / "CHANGELOG.md", *PAGES]

each_page = pytest.mark.parametrize("page", [pytest.param(path, id=str(path.relative_to(ROOT))) for path in ALL])


def _extension() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sshgrid_docs", DOCS / "_ext" / "sshgrid_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = _extension()


# --- sessions ---------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """One command of a session and its expected output."""

    command: str
    expected: str


_FENCED = re.compile(
    r"(?:^<!-- file: (?P<file>\S+) -->\n)?^```(?P<kind>\w*)\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
_HIDDEN = re.compile(r"^<!-- file: (?P<file>\S+)\n(?P<body>.*?)^-->$", re.MULTILINE | re.DOTALL)
_NEEDS = re.compile(r"^<!-- needs: (.*) -->$", re.MULTILINE)


def files_on(text: str) -> dict[str, str]:
    """The files that a page shows or contains in comments."""
    shown = {found["file"]: found["body"] for found in _FENCED.finditer(text) if found["file"]}
    return shown | {found["file"]: found["body"] for found in _HIDDEN.finditer(text)}


def steps_on(text: str) -> list[Step]:
    """All commands in the console blocks of a page, in order."""
    steps = []
    for block in _FENCED.finditer(text):
        if block["kind"] == "console":
            parts = re.split(r"^\$ ", block["body"], flags=re.MULTILINE)
            assert parts[0] == "", f"a console block begins with a command: {block['body']!r}"
            steps += [Step(*part.partition("\n")[::2]) for part in parts[1:]]
    return steps


class Shell:
    """One bash for a whole page: variables and `$?` are kept from command to command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        shutil.copytree(ROOT / "examples", folder / "examples")
        shutil.copy(ROOT / "inventory.yaml", folder)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SSHGRID", "XDG_"))}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environ = kept | {
            "PATH": path,
            "HOME": str(folder.parent),
            "SSHGRID_HOME": str(folder.parent / "h"),
            "LC_ALL": "C.UTF-8",
        }
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=self._environ,
            start_new_session=True,
        )
        self.type("_again() { return $_last; }")

    def type(self, command: str) -> str:
        """Run a command; returns its stdout and stderr."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        mark = f"==={uuid.uuid4().hex}==="
        script = f"{{ {command}\n}} </dev/null; _last=$?; echo; echo {mark}; _again\n"
        self._bash.stdin.write(script.encode())
        self._bash.stdin.flush()
        lines: list[str] = []
        time_limit = threading.Timer(COMMAND_SECONDS, os.killpg, (self._bash.pid, signal.SIGKILL))
        time_limit.start()
        try:
            for line in self._bash.stdout:
                if line.decode(errors="replace").strip() == mark:
                    return "".join(lines).removesuffix("\n")
                lines.append(line.decode(errors="replace"))
        finally:
            time_limit.cancel()
        pytest.fail(f"the shell ended in: {command}\n{''.join(lines)}")

    def close(self) -> None:
        """Stop the master and the shell."""
        self.type("for i in *.yaml; do sshgrid -i $i master stop >/dev/null 2>&1; done")
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.close()
        self._bash.wait(timeout=30)
        self._bash.stdout.close()


_FIGURES = (
    (r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?", "DATE"),
    (r"\b\d+(\.\d+)?(ms|s|m|h|d)\b", "TIME"),
    (r"(?<![\w/.])\d+(\.\d+)?[BKMGT]\b", "SIZE"),
    (r"\b\d+\.\d+(\.\d+)+\b", "VERSION"),
    (r"\bhere-[12]\b", "here-N"),
)


def comparable(text: str, folder: Path | None = None) -> str:
    """The text with everything replaced that differs between runs or machines."""
    if folder is not None:
        text = text.replace(str(folder), "...")
        text = re.sub(rf"\b{re.escape(getpass.getuser())}\b", "ana", text)
    for pattern, word in _FIGURES:
        text = re.sub(pattern, word, text)
    lines = (re.sub(r"[ \t]+", " ", line).strip() for line in text.splitlines())
    return "\n".join(lines).rstrip("\n")


def matches(printed: str, expected: str) -> bool:
    """Whether the output is what the page shows. A line `...` matches any lines, `...` in a line any text."""
    pattern = re.escape(expected).replace(re.escape("..."), "…")
    pattern = re.sub(r"(^|(?<=\n))…(\\?\n|$)", lambda _: r"(?:.*(?:\n|$))*?", pattern)
    return re.fullmatch(pattern.replace("…", ".*"), printed) is not None


_SESSIONS = [page for page in ALL if steps_on(page.read_text(encoding="utf-8"))]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """A shell in a folder with the examples and the inventory of a clone."""
    found = Shell(tmp_path / "g")
    yield found
    found.close()


@pytest.mark.parametrize("page", [pytest.param(page, id=str(page.relative_to(ROOT))) for page in _SESSIONS])
def test_the_commands_of_a_page_print_what_the_page_shows(page: Path, shell: Shell) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [tool for found in _NEEDS.findall(text) for tool in found.split() if shutil.which(tool) is None]
    if missing:
        assert os.environ.get("CI") != "true", f"CI has no {missing}"
        pytest.skip(f"the page needs {', '.join(missing)}")
    for name, body in files_on(text).items():
        (shell.folder / name).write_text(body, encoding="utf-8")
    for command, expected in steps_on(text):
        printed = shell.type(command)
        got, wanted = comparable(printed, shell.folder), comparable(expected)
        assert matches(got, wanted), f"$ {command}\n--- the page says\n{wanted}\n--- it printed\n{printed}"


@each_page
def test_a_file_that_a_page_shows_is_named_above_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    shown = [found for found in _FENCED.finditer(text) if found["file"]]
    above = {found["file"]: text[: found.start()].rstrip().rpartition("\n\n")[2] for found in shown}
    assert [name for name, paragraph in above.items() if f"`{name}`" not in paragraph] == []


def test_pages_with_console_sessions_are_found() -> None:
    names = {page.name for page in _SESSIONS}
    assert names >= {"README.md", "tutorial.md", "exit-codes.md", "inventory.md", "troubleshooting.md"}


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("a\nb", "a\nb", True),
        ("a\nb", "a\nc", False),
        ("a\nb\n", "a\nb", False),
        ("error: no, really", "error: ...", True),
        ("a\nx\ny\nb", "a\n...\nb", True),
        ("a\nb", "a\n...\nb", True),
        ("a\nx\ny", "a\n...", True),
        ("a\nx\ny", "a...", False),
        ("a+b", "a.b", False),
    ],
)
def test_only_dots_match_any_text(printed: str, expected: str, same: bool) -> None:
    assert matches(printed, expected) is same


def test_measured_figures_are_ignored_and_results_are_compared() -> None:
    assert comparable("1  here-1   44ms  exit 3") == comparable("1 here-2 1.5s exit 3")
    assert comparable("exit 3") != comparable("exit 4")


# --- generated pages -------------------------------------------------------------------------------------------------


def test_the_module_map_lists_exactly_the_modules() -> None:
    named = set(re.findall(r"^\| `([^`]+)` \|", reference.module_map(), re.MULTILINE))
    there = set()
    for path in (ROOT / "sshgrid").rglob("*.py"):
        if path.read_text(encoding="utf-8").strip():
            there.add(".".join(path.relative_to(ROOT / "sshgrid").with_suffix("").parts).removesuffix(".__init__"))
    others = {path.relative_to(ROOT / "sshgrid").as_posix() for path in (ROOT / "sshgrid").rglob("*.s[hq]*")}
    assert named == there | others


def test_every_command_and_every_option_is_in_the_reference() -> None:
    text = reference.command_reference()
    for path, context in reference.command_tree():
        assert f"# {path}\n" in text
        for parameter in context.command.params:
            record = parameter.get_help_record(context)
            assert record is None or not record[1] or f"`{record[0]}`".replace("|", "\\|") in text, (path, record)


def test_every_option_of_the_command_line_has_a_help_text() -> None:
    silent = [
        f"{path} {parameter.opts[0]}"
        for path, context in reference.command_tree()
        for parameter in context.command.params
        if parameter.param_type_name == "option" and not getattr(parameter, "help", None)
    ]
    assert silent == []


def test_every_key_of_the_inventory_is_in_the_reference() -> None:
    text = reference.inventory_reference()
    schema = reference.inventory.json_schema()
    keys = set(schema["properties"])
    for kind in schema["$defs"].values():
        keys |= set(kind.get("properties", {}))
    assert {key for key in keys if f"| `{key}` |" not in text} == set()


@each_page
def test_every_generated_part_of_a_page_can_be_generated(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<!-- generated" not in reference.fill(text)


def _names(module: str) -> set[str] | None:
    """Dotted names defined in a module: functions, classes, methods and assignments; None = no such module."""
    path = ROOT / "sshgrid" / module.replace(".", "/")
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not path.is_file():
        return None
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.ImportFrom(names=names):
                found |= {alias.asname or alias.name for alias in names}
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.ClassDef(name=name, body=body):
                inner = {f"{name}.{getattr(part, 'name', '')}" for part in body}
                found |= {name, *inner}
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
    return found


def _exists(dotted: str) -> bool:
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        names = _names(".".join(parts[:length]))
        if names is not None:
            return length == len(parts) or ".".join(parts[length:]) in names
    return False


NAME_THE_CODE = [
    DOCS / "architecture.md",
    *sorted((DOCS / "internals").glob("*.md")),
    *sorted((DOCS / "adr").glob("0*.md")),
]


@pytest.mark.parametrize("page", NAME_THE_CODE, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_name_of_the_code_that_a_page_mentions_exists(page: Path) -> None:
    modules = {name.split(".")[0] for name in reference.modules()}
    spans = re.findall(r"`([a-z_]+(?:\.[A-Za-z_]+)+)`", page.read_text(encoding="utf-8"))
    ours = [
        span for span in spans if span.split(".")[0] in modules and not span.endswith((".md", ".py", ".yaml", ".sql"))
    ]
    assert [span for span in ours if not _exists(span)] == []


# --- pages and links --------------------------------------------------------------------------------------------------


def _toctree(page: Path) -> list[Path]:
    found = []
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        entries = [line.strip() for line in block.splitlines() if line.strip() and not line.startswith(":")]
        found += [page.parent / f"{entry}.md" for entry in entries]
    return found


def test_every_page_and_every_decision_is_reachable_from_the_index() -> None:
    reached, waiting = set(), [DOCS / "index.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        waiting += [other for other in _toctree(page) if other not in reached]
    assert reached == set(PAGES)


def _anchor(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST build it."""
    words = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower())
    return words.replace(" ", "-")


@each_page
def test_relative_links_have_a_target(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.is_file():
            broken.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.*)$", reference.fill(other.read_text(encoding="utf-8")), re.MULTILINE)
            if anchor not in map(_anchor, headings):
                broken.append(target)
    assert broken == []


def test_the_manual_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("sphinx") is None or importlib.util.find_spec("myst_parser") is None:
        assert os.environ.get("CI") != "true", "CI has no Sphinx"
        pytest.skip("Sphinx is not installed: make docs")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", DOCS, tmp_path / "html"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (built.returncode, built.stderr) == (0, "")
    assert "<table" in (tmp_path / "html" / "commands.html").read_text(encoding="utf-8")


def _longest_words(message: str) -> str:
    """The longest run of lower-case words of a message, which contains no variable part."""
    return str(max(re.findall(r"[a-z' ]+", message), key=len)).strip()


def test_the_messages_that_troubleshooting_explains_are_in_the_code() -> None:
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row)]
    assert len(messages) > 20
    sources = [*SOURCES, *(ROOT / "sshgrid" / "remote").glob("*.sh")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    assert [message for message in messages if (_longest_words(message) or message) not in code] == []


# --- docstrings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_and_public_functions_and_classes_have_docstrings(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert not text.strip() or ast.get_docstring(tree), "the module has no docstring"
    described = ast.get_docstring(tree) or ""
    if path.name == "contract.py":
        return  # the names of its functions say what they check
    silent = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        # errors.py describes its classes in the docstring of the module.
        and not re.search(rf"^ +{node.name}\b", described, re.MULTILINE)
    ]
    assert silent == []
