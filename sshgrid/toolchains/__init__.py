"""Languages and toolchains: which language a file is in, and whether a node has its tools.

An ambiguous file is an error that names the candidates. table.py has the languages, versions.py their versions,
recipes.py what a node does to build and run a program.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from sshgrid.errors import UnknownLanguage, UsageError
from sshgrid.model import Language
from sshgrid.notation.filenames import check_name, check_program
from sshgrid.toolchains.recipes import (
    argv_in,
    made_by,
    matches,
    placed,
    recipe,
    restore_names,
    row_error,
    smoke_test,
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
    "language_of",
    "made_by",
    "placed",
    "recipe",
    "resolve",
    "restore_names",
    "row_error",
    "satisfies",
    "smoke_test",
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
    """Return the language of a file and the requested version (``wanted="java>=17"`` gives (java, ">=17")).

    `head` is the first few kilobytes. In this order: `wanted`, mode x with ELF, the name (#! decides between several),
    #! alone. Raises UnknownLanguage, or UsageError when several languages match.
    """
    if wanted:
        return _by_name(wanted, languages)
    by_name = {language.name: language for language in languages}
    program = by_name.get("executable")
    if executable and head.startswith(_ELF) and program:
        return program, ""
    fitting = [language for language in languages if matches(language, file_name)]
    shebang = _interpreter(head)
    if len(fitting) > 1:
        fitting = _choose(file_name, fitting, shebang, head, program)
    if not fitting and shebang:
        fitting = [language for language in languages if shebang in language.interpreters][:1]
    if not fitting and executable and shebang and program:
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


def _choose(
    file_name: str, tied: list[Language], shebang: str, head: bytes, program: Language | None
) -> list[Language]:
    """Return one of several languages that match the name. Raises UsageError when nothing distinguishes them."""
    own = [language for language in tied if language not in LANGUAGES]
    if len(own) == 1:  # a row of the user's inventory overrides a built-in one
        return own
    if interpreted := [language for language in tied if shebang and shebang in language.interpreters]:
        return interpreted[:1]
    names = {language.name for language in tied}
    if names == {"sh", "bash"}:
        # #!/bin/zsh: the kernel finds it; without #! the file is POSIX sh, as for execvp
        return [program] if shebang and program else [each for each in tied if each.name == "sh"]
    if names == {"perl", "prolog"} and b":-" not in head:
        return [each for each in tied if each.name == "perl"]
    candidates = sorted(names)
    raise UsageError(
        f"{_shown(file_name)}: this can be {', '.join(candidates[:-1])} or {candidates[-1]}",
        f"say which: --lang {candidates[0]}",
    )


def _interpreter(head: bytes) -> str:
    """Return the interpreter of a #! line: "python3" for #!/usr/bin/env -S python3 -u; "" without such a line."""
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
    # The likely intention: the same suffix in other case, then the name of a language, then a similar suffix.
    named = {row.name: suffix_of(row) for row in languages}
    meant = next((each for each in known if each[1:] == ending.lower()), "") or named.get(ending.lower(), "")
    near = f"; did you mean {meant!r}?" if meant else _near(f".{ending}", known)
    return UnknownLanguage(f"{shown}: no language is known for {'.' + ending!r}{near}", _HINT)


def _near(word: str, known: Iterable[str]) -> str:
    import difflib  # here, as it would slow down the start of every command

    found = difflib.get_close_matches(word[:64], list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


def _shown(file_name: str) -> str:
    return file_name if file_name.isprintable() else repr(file_name)


# --- tools of a node -------------------------------------------------------------------------------------------------


def commands(language: Language) -> tuple[str, ...]:
    """Return the programs of a row, as it names them: ("gcc|clang|cc",)."""
    rows = (*language.compile, language.run, language.version)
    return tuple(dict.fromkeys(row[0] for row in rows if row and not row[0].startswith("{")))


def tools(languages: Iterable[Language]) -> tuple[str, ...]:
    """Return every executable to look for on a node."""
    return tuple(dict.fromkeys(tool for row in languages for command in commands(row) for tool in command.split("|")))


def resolve(language: Language, paths: Mapping[str, str]) -> Mapping[str, str] | None:
    """Return the paths of a row's commands (command as written -> path), given the tools of a node (tool -> path).

    None when a tool that a run needs is missing. A tool that only prints the version may be missing when the language
    has a smoke test.
    """
    found = {command: path for command in commands(language) if (path := _first_found(command, paths))}
    needed = {row[0] for row in (*language.compile, language.run) if row and not row[0].startswith("{")}
    if not language.hello and language.version:
        needed.add(language.version[0])
    return found if needed <= found.keys() else None


def _first_found(command: str, paths: Mapping[str, str]) -> str:
    return next((paths[tool] for tool in command.split("|") if paths.get(tool)), "")
