"""The man pages: committed as scripts/build_man.py writes them, complete, and valid roff."""

from __future__ import annotations

import importlib.util
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import click
import pytest

from sshgrid.cli.verbs import cli
from sshgrid.client.session import Session

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "man"


def _builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_man", ROOT / "scripts" / "build_man.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


builder = _builder()
PATHS = [path for path, _ in builder.command_tree()]
COMMANDS = [
    (path, line)
    for path, examples in builder.sections()["examples"].items()
    for _, text in examples
    for line in text.splitlines()
]


def test_the_committed_pages_are_those_that_the_script_writes() -> None:
    committed = {path.name: path.read_text(encoding="ascii") for path in FOLDER.glob("*.1")}
    assert committed == builder.pages(), "make man"


def test_every_command_has_a_page_and_an_example() -> None:
    assert {path.stem for path in FOLDER.glob("*.1")} == {path.replace(" ", "-") for path in PATHS}
    examples = builder.sections()["examples"]
    assert set(examples) == set(PATHS)
    assert [path for path in PATHS if not any(path in command for _, command in examples[path])] == []


@pytest.mark.parametrize("path", PATHS)
def test_a_page_names_each_option_of_its_command(path: str) -> None:
    context = dict(builder.command_tree())[path]
    page = builder.pages()[f"{path.replace(' ', '-')}.1"]
    shown = {re.sub(r"\\(.)", r"\1", name) for name in re.findall(r"\\fB((?:\\-)+[^\\ ](?:[^\\]|\\-)*)\\fP", page)}
    wanted = {
        name
        for parameter in context.command.get_params(context)
        if isinstance(parameter, click.Option) and not parameter.hidden
        for name in parameter.opts
    }
    assert "--help" in wanted
    assert wanted - shown == set()


def _words(line: str) -> list[str]:
    """The arguments of the sshgrid command in a line of shell code, up to the first `|`, `<`, `>` or `)`."""
    lexer = shlex.shlex(line[line.index("sshgrid ") :], posix=True, punctuation_chars="|<>()")
    lexer.whitespace_split = True
    return list(itertools.takewhile(lambda word: word not in ("|", "<", ">", ")"), lexer))[1:]


@pytest.mark.parametrize(("path", "line"), COMMANDS, ids=[line for _, line in COMMANDS])
def test_the_parser_of_the_command_accepts_its_examples(path: str, line: str) -> None:
    words, session = _words(line), Session({})
    context: click.Context | None = None
    command: click.Command = cli
    while True:
        context = command.make_context(command.name or "sshgrid", list(words), parent=context, obj=session)
        if not isinstance(command, click.Group):
            break
        words = [*context._protected_args, *context.args]
        _, found, words = command.resolve_command(context, words)
        assert found is not None
        command = found


@pytest.mark.parametrize(
    ("text", "roff"),
    [
        (".so /etc/passwd", r"\&.so /etc/passwd"),
        ("'\\n'", r"\(aq\en\(aq"),
        ("--copy-key", r"\-\-copy\-key"),
        ('`~^"', r"\(ga\(ti\(ha\(dq"),
        ("é", r"\[u00E9]"),
    ],
)
def test_what_roff_would_interpret_is_escaped_in_a_command(text: str, roff: str) -> None:
    assert builder.literal(text) == roff


@pytest.mark.parametrize(
    ("text", "roff"),
    [
        ("a `--to` b", r"a \fB\-\-to\fP b"),
        ("-vv shows; well-known", r"\-vv shows; well-known"),
        (".m files", r"\&.m files"),
        ("One. Two.", "One.\nTwo."),
        (r"a\b", r"a\eb"),
    ],
)
def test_what_roff_would_interpret_is_escaped_in_a_text(text: str, roff: str) -> None:
    assert builder.prose(text) == roff


def test_every_exit_code_that_a_page_shows_is_in_the_table_of_the_manual() -> None:
    codes = builder.exit_codes()
    assert {code for row in builder.EXIT_STATUS.values() for code in row} | set(builder.OTHER) <= set(codes)


def test_man_renders_every_page_without_a_warning() -> None:
    if shutil.which("man") is None:
        assert os.environ.get("CI") != "true", "CI has no man"
        pytest.skip("no man here")
    files = sorted(map(str, FOLDER.glob("*.1")))
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-P", "cat", "-l", *files],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANWIDTH": "80"},
        check=True,
    )
    assert done.stderr == ""
    assert "sshgrid run --on @fast --lang 'python>=3.11' train.py --epochs 3" in done.stdout


def test_a_wheel_contains_all_pages() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    taken = {path for glob in setuptools["data-files"]["share/man/man1"] for path in ROOT.glob(glob)}
    assert taken == set(FOLDER.glob("*.1")) != set()
