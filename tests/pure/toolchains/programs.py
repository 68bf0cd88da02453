"""Programs, toolchains and recipes for tests."""

from __future__ import annotations

import hashlib

from sshgrid import toolchains
from sshgrid.errors import UsageError
from sshgrid.model import Facts, Language, Program, Recipe, SourceFile, Toolchain
from sshgrid.toolchains.table import LANGUAGES

ROWS = {language.name: language for language in LANGUAGES}
FACTS = Facts("Linux", "x86_64", "glibc 2.36", 4, 1 << 30, "boot", 1000, "/var/tmp/sshgrid-1000", "session")


def toolchain(language: Language, fingerprint: str = "f") -> Toolchain:
    commands = {command: f"/bin/{command.split('|')[0]}" for command in toolchains.commands(language)}
    return Toolchain(language.name, "1.0", commands, fingerprint)


def source_file(name: str, content: bytes = b"", executable: bool = False) -> SourceFile:
    return SourceFile(name, hashlib.sha256(content).hexdigest(), len(content), executable)


def program(language: str, *names: str, args: tuple[bytes, ...] = (), flags: tuple[str, ...] = ()) -> Program:
    return Program(language, names[0], tuple(map(source_file, names)), args, flags=flags)


def recipe_of(
    language: str, *names: str, source: bytes = b"", args: tuple[bytes, ...] = (), flags: tuple[str, ...] = ()
) -> Recipe:
    row = ROWS[language]
    return toolchains.recipe(row, toolchain(row), program(language, *names, args=args, flags=flags), source, FACTS)


def is_refused(name: str) -> bool:
    """Return whether the file of a program cannot have this name."""
    try:
        toolchains.check_name(name)
    except UsageError:
        return True
    return False
