"""`sshgrid run`, without click: the usual words are understood here, and everything else is left to click.

People wait for `run`, and importing click is a fifth of what they wait for. There is one meaning of a command line, not
two: what is understood here is what click would make of it, which a test proves over many command lines. Refuses to
judge: a word that it does not know, a value that is missing, a mistake of any kind is click's to understand and to say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sshgrid.client.run_options import FLAGS, MANY, OTHERWISE, SESSION_FLAGS, SESSION_TEXTS, TEXTS
from sshgrid.client.session import Session, said


class Understood:
    """What the words of one command line say; `settings` are the session's, `wanted` the options of `run`."""

    def __init__(
        self, settings: Mapping[str, Any], file: str, args: tuple[str, ...], wanted: Mapping[str, Any]
    ) -> None:
        self.settings, self.file, self.args, self.wanted = settings, file, args, wanted


def understood(words: Sequence[str]) -> Understood | None:
    """None: this is for click."""
    settings: dict[str, Any] = {}
    wanted: dict[str, Any] = dict(OTHERWISE)
    waiting = list(reversed(words))
    verb = ""
    while waiting:
        word = waiting.pop()
        if word == "-" or not word.startswith("-"):
            if verb and word:
                return Understood(settings, word, tuple(reversed(waiting)), wanted)
            verb = word
            if verb != "run":
                return None
        elif not _take(word, waiting, settings, SESSION_FLAGS, SESSION_TEXTS, {}) and not (
            verb and _take(word, waiting, wanted, FLAGS, TEXTS, MANY)
        ):
            return None
    return None


def _take(
    word: str,
    waiting: list[str],
    values: dict[str, Any],
    flags: Mapping[str, str],
    texts: Mapping[str, str],
    many: Mapping[str, str],
) -> bool:
    """One option and its value into `values`; False when it is none of these, or lacks its value."""
    name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
    if name in flags and not equals:
        values[flags[name]] = True
        return True
    if (name not in texts and name not in many) or not (equals or waiting):
        return False
    if not equals:
        value = waiting.pop()
    if name in many:
        values[many[name]] = (*values[many[name]], value)
    else:
        values[texts[name]] = value
    return True


def run(words: Understood, session: Session) -> int:
    """The exit status; errors are said, never raised."""
    for name, value in words.settings.items():
        setattr(session, name, value)
    from sshgrid.client import run_job

    return said(session, lambda: run_job.run(session, words.file, words.args, words.wanted))
