"""The parser of `run` without click gives the same result as click, or leaves the arguments to click."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshgrid.cli import fast_run, verbs
from sshgrid.client import run_job, run_options
from sshgrid.client.session import Session

ARGUMENTS = [
    *("run", "ps", "x.py", "-", "--", "", " ", "a b", "$(id)", "h1", "none", "3", "é", "\udcff"),
    *("-i", "-ilab", "-i=lab", "--inventory", "--inventory=lab.yaml", "--json", "--json=1", "-q", "--quiet", "-v"),
    *("--no-input", "--color", "--color=never", "-h", "--help", "--version", "-qd", "-dq", "--d", "--det"),
    *("--on", "--on=", "--on=h[1-3]", "--lang", "--lang=java>=17", "--stdin", "--stdin=none", "--name", "--name=-d"),
    *("--flags", "--flags=-O3 -Wall", "--env", "--env=A=1", "--env=", "A=2", "--envA", "-d", "--detach", "--detach=x"),
    *("--main", "--main=a.c"),
    *("-I", "--interactive", "-dI", "--show-node", "--dry-run", "--retries", "--retries=2", "--priority", "-1"),
    *("--time-limit", "--time-limit=5s", "--memory=1G", "--on-host-loss=wait", "--on-disconnect", "cancel"),
]
Parsed = tuple[dict[str, Any], str, tuple[str, ...], dict[str, Any]]


def parsed_by_click(argv: Sequence[str]) -> Parsed | None:
    """What click passes to `run`; None when it does not call it."""
    session, calls = Session({}), list[Parsed]()

    def remember(session: Session, file: str, args: Sequence[str], options: Mapping[str, Any]) -> int:
        calls.append((dict(session.__dict__), file, tuple(args), dict(options)))
        return 0

    with patch.object(run_job, "run", remember):
        verbs.invoke(argv, session)
    return calls[0] if calls else None


def as_tuple(parsed: fast_run.ParsedRun) -> Parsed:
    settings = Session({}).__dict__ | dict(parsed.settings)
    return settings, parsed.file, parsed.args, dict(parsed.options)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(ARGUMENTS), max_size=8), st.booleans())
def test_every_result_equals_that_of_click(argv: list[str], complete: bool) -> None:
    if complete:
        argv = ["run", *argv, "x.py"]
    parsed = fast_run.parse(argv)
    if parsed is not None:
        assert as_tuple(parsed) == parsed_by_click(argv)


@pytest.mark.parametrize(
    "line",
    [
        "run x.py",
        "-i lab.yaml run x.py a --on -- b",
        "run -i lab.yaml --on h1 --env A=1 --env=B x.py",
        "--json run --show-node -",
        "run -d --name n --lang=c --stdin none --flags=-O3 x.c",
    ],
)
def test_usual_command_lines_are_parsed_without_click(line: str) -> None:
    parsed = fast_run.parse(line.split())
    assert parsed is not None
    assert as_tuple(parsed) == parsed_by_click(line.split())


@pytest.mark.parametrize(
    "line",
    ["", "run", "ps", "run --help", "run --on", "run --retries 2 x.py", "run -dI x.py", "run -- x.py", "-h run x"],
)
def test_other_command_lines_are_left_to_click(line: str) -> None:
    assert fast_run.parse(line.split()) is None


@pytest.mark.parametrize(
    "argv",
    [
        [flag, *(() if option.kind == run_options.FLAG else ("h1",))]
        for option in run_options.options_of("run")
        for flag in option.flags
        if option.kind in (run_options.TEXT, run_options.PATH, run_options.FLAG)
    ],
)
def test_each_option_without_a_check_is_parsed_without_click(argv: list[str]) -> None:
    parsed = fast_run.parse(["run", *argv, "x.py"])
    assert parsed is not None
    assert as_tuple(parsed) == parsed_by_click(["run", *argv, "x.py"])


def test_click_and_the_table_have_the_same_defaults() -> None:
    parsed = parsed_by_click(["run", "x.py"])
    assert parsed is not None
    assert parsed[3] == run_options.defaults_of("run")
