"""The short way of `run` through the command line means what click makes of the same words, or leaves them to click."""

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

WORDS = [
    *("run", "ps", "x.py", "-", "--", "", " ", "a b", "$(id)", "h1", "none", "3", "é", "\udcff"),
    *("-i", "-ilab", "-i=lab", "--inventory", "--inventory=lab.yaml", "--json", "--json=1", "-q", "--quiet", "-v"),
    *("--no-input", "--color", "--color=never", "-h", "--help", "--version", "-qd", "-dq", "--d", "--det"),
    *("--on", "--on=", "--on=h[1-3]", "--lang", "--lang=java>=17", "--stdin", "--stdin=none", "--name", "--name=-d"),
    *("--flags", "--flags=-O3 -Wall", "--env", "--env=A=1", "--env=", "A=2", "--envA", "-d", "--detach", "--detach=x"),
    *("--main", "--main=a.c"),
    *("-I", "--interactive", "-dI", "--show-node", "--dry-run", "--retries", "--retries=2", "--priority", "-1"),
    *("--time-limit", "--time-limit=5s", "--memory=1G", "--on-host-loss=wait", "--on-disconnect", "cancel"),
]
Told = tuple[dict[str, Any], str, tuple[str, ...], dict[str, Any]]


def as_click_has_it(words: Sequence[str]) -> Told | None:
    """What `run` is told by click; None when it is not told anything."""
    session, told = Session({}), list[Told]()

    def remember(session: Session, file: str, args: Sequence[str], wanted: Mapping[str, Any]) -> int:
        told.append((dict(session.__dict__), file, tuple(args), dict(wanted)))
        return 0

    with patch.object(run_job, "run", remember):
        verbs.invoke(words, session)
    return told[0] if told else None


def as_understood(words: fast_run.Understood) -> Told:
    settings = Session({}).__dict__ | dict(words.settings)
    return settings, words.file, words.args, dict(words.wanted)


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=8), st.booleans())
def test_what_is_understood_is_what_click_makes_of_it(words: list[str], begins: bool) -> None:
    if begins:
        words = ["run", *words, "x.py"]
    understood = fast_run.understood(words)
    if understood is not None:
        assert as_understood(understood) == as_click_has_it(words)


@pytest.mark.parametrize(
    "words",
    [
        "run x.py",
        "-i lab.yaml run x.py a --on -- b",
        "run -i lab.yaml --on h1 --env A=1 --env=B x.py",
        "--json run --show-node -",
        "run -d --name n --lang=c --stdin none --flags=-O3 x.c",
    ],
)
def test_the_usual_words_are_understood(words: str) -> None:
    understood = fast_run.understood(words.split())
    assert understood is not None
    assert as_understood(understood) == as_click_has_it(words.split())


@pytest.mark.parametrize(
    "words",
    ["", "run", "ps", "run --help", "run --on", "run --retries 2 x.py", "run -dI x.py", "run -- x.py", "-h run x"],
)
def test_everything_else_is_left_to_click(words: str) -> None:
    assert fast_run.understood(words.split()) is None


def test_no_word_of_the_command_line_is_lost() -> None:
    """An option that `run` gets tomorrow must be said here too, at least what its absence means."""
    told = as_click_has_it(["run", "x.py"])
    assert told is not None
    assert told[3] == dict(run_options.OTHERWISE)
