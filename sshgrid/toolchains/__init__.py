"""Which language is a file, and does a node have what it takes? Reads file names, first bytes and lists of paths.

Refuses to guess: an ambiguous file is an error that names the candidates. Everything about languages can be had from
here: the table itself is in table.py, versions in versions.py, and what a node must do in recipes.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from sshgrid.errors import UnknownLanguage, UsageError
from sshgrid.model import Language
from sshgrid.notation.filenames import check_name, check_program
from sshgrid.toolchains.recipes import (
    argv_in,
    given_away,
    hello,
    matches,
    placed,
    recipe,
    restore_names,
    row_error,
    suffix_of,
    verified,
)
from sshgrid.toolchains.table import ALIASES, LANGUAGES
from sshgrid.toolchains.versions import parse_constraint, satisfies, version_in

__all__ = [
    "LANGUAGES",
    "argv_in",
    "check_name",
    "check_program",
    "commands",
    "given_away",
    "hello",
    "language_of",
    "placed",
    "recipe",
    "resolve",
    "restore_names",
    "row_error",
    "satisfies",
    "tools",
    "verified",
    "version_in",
]

_HINT = "sshgrid toolchains lists the languages; --lang NAME says which one it is"
_WANTED = re.compile(r"\s*([^\s<>=!,]+)\s*((?:[<>=!].*)?)", re.DOTALL)
_ELF = b"\x7fELF"


# --- which language --------------------------------------------------------------------------------------------------


def language_of(
    file_name: str, head: bytes, executable: bool, languages: Sequence[Language] = LANGUAGES, wanted: str = ""
) -> tuple[Language, str]:
    """The language of a file and the version asked for (``wanted="java>=17"`` -> (java, ">=17")).

    `head` is the first few kilobytes. What the user wants wins, then mode x with ELF, then the name, where #! settles
    a tie, then #! alone. UnknownLanguage; UsageError when several fit.
    """
    if wanted:
        return _by_name(wanted, languages)
    by_name = {language.name: language for language in languages}
    program = by_name.get("executable")
    if executable and head.startswith(_ELF) and program:
        return program, ""
    fitting = [language for language in languages if matches(language, file_name)]
    spoken = _interpreter(head)
    if len(fitting) > 1:
        fitting = _settle(file_name, fitting, spoken, head, program)
    if not fitting and spoken:
        fitting = [language for language in languages if spoken in language.interpreters][:1]
    if not fitting and executable and spoken and program:
        fitting = [program]
    if not fitting:
        raise _unknown(file_name, head, languages)
    return fitting[0], ""


def _by_name(wanted: str, languages: Sequence[Language]) -> tuple[Language, str]:
    found = _WANTED.fullmatch(wanted)
    if not found:
        raise UsageError(f"--lang {wanted!r} is not NAME or NAME>=VERSION", "sshgrid run --lang 'java>=17' FILE")
    name, constraint = found[1], found[2].strip()
    parse_constraint(constraint)
    names = {language.name: language for language in languages}
    language = names.get(name) or names.get(name.lower()) or names.get(ALIASES.get(name.lower(), ""))
    if not language:
        near = _near(name, [*names, *ALIASES])
        raise UnknownLanguage(f"no language is called {name!r}{near}", "sshgrid toolchains")
    return language, constraint


def _settle(file_name: str, tied: list[Language], spoken: str, head: bytes, program: Language | None) -> list[Language]:
    """One of several languages whose rows match the name. UsageError when nothing tells them apart."""
    own = [language for language in tied if language not in LANGUAGES]
    if len(own) == 1:  # a row of the user's inventory wins over ours
        return own
    if said := [language for language in tied if spoken and spoken in language.interpreters]:
        return said[:1]
    names = {language.name for language in tied}
    if names == {"sh", "bash"}:
        # #!/bin/zsh: the kernel finds it, where it is; without #! it is POSIX, as for execvp
        return [program] if spoken and program else [each for each in tied if each.name == "sh"]
    if names == {"perl", "prolog"} and b":-" not in head:
        return [each for each in tied if each.name == "perl"]
    candidates = sorted(names)
    raise UsageError(
        f"{_shown(file_name)}: this can be {', '.join(candidates[:-1])} or {candidates[-1]}",
        f"say which: --lang {candidates[0]}",
    )


def _interpreter(head: bytes) -> str:
    """ "python3" of #!/usr/bin/env -S python3 -u; "" without a #! line."""
    if not head.startswith(b"#!"):
        return ""
    words = head[2:512].partition(b"\n")[0].decode("utf-8", "replace").split()
    if not words:
        return ""
    name = words[0].rpartition("/")[2]
    if name == "env":
        rest = (word for word in words[1:] if not word.startswith("-") and "=" not in word)
        name = next(rest, "").rpartition("/")[2]
    return name


def _unknown(file_name: str, head: bytes, languages: Sequence[Language]) -> UnknownLanguage:
    shown = _shown(file_name)
    if head.startswith((_ELF, b"#!")):
        return UnknownLanguage(f"{shown} is a program, but its mode is not executable", f"chmod +x {shown}")
    base = file_name.rpartition("/")[2]
    stem, dot, ending = base.rpartition(".")
    if not (stem and dot):
        return UnknownLanguage(f"{shown}: no language is known for a file without an ending", _HINT)
    known = sorted({pattern[1:] for row in languages for pattern in row.match if pattern.startswith("*.")})
    # what was most likely meant: the same ending in other letters, then the name of a language, then a near one
    named = {row.name: suffix_of(row) for row in languages}
    meant = next((each for each in known if each[1:] == ending.lower()), "") or named.get(ending.lower(), "")
    near = f"; did you mean {meant!r}?" if meant else _near(f".{ending}", known)
    return UnknownLanguage(f"{shown}: no language is known for {'.' + ending!r}{near}", _HINT)


def _near(word: str, known: Iterable[str]) -> str:
    import difflib  # only for the error: the client's start is what people wait for

    found = difflib.get_close_matches(word[:64], list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def _shown(file_name: str) -> str:
    return file_name if file_name.isprintable() else repr(file_name)


# --- does a node have it ---------------------------------------------------------------------------------------------


def commands(language: Language) -> tuple[str, ...]:
    """The programs a row starts, as it writes them: ("gcc|clang|cc",)."""
    rows = (*language.compile, language.run, language.version)
    return tuple(dict.fromkeys(row[0] for row in rows if row and not row[0].startswith("{")))


def tools(languages: Iterable[Language]) -> tuple[str, ...]:
    """Every executable to look for on a node."""
    return tuple(dict.fromkeys(tool for row in languages for command in commands(row) for tool in command.split("|")))


def resolve(language: Language, paths: Mapping[str, str]) -> Mapping[str, str] | None:
    """From what was found on a node (tool -> path) to what its commands are (command as written -> path).

    None when something is missing that a run needs. A tool that is only asked for the version may be missing, when
    a hello can prove the language instead.
    """
    found = {command: path for command in commands(language) if (path := _first_found(command, paths))}
    needed = {row[0] for row in (*language.compile, language.run) if row and not row[0].startswith("{")}
    if not language.hello and language.version:
        needed.add(language.version[0])
    return found if needed <= found.keys() else None


def _first_found(command: str, paths: Mapping[str, str]) -> str:
    return next((paths[tool] for tool in command.split("|") if paths.get(tool)), "")
