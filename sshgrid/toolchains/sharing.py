"""Decides whether a build may be used on another node of the same kind: when its key names all that influenced it.

The key has sources, flags, toolchain, system, machine and C library. A build that depends on more (instructions of one
processor, libraries and folders of one machine, commands of a makefile) stays where it was made. In doubt it is not
shared: compiling again costs little, a program that fails on another node costs trust.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sshgrid.model import Facts, Language

# Libraries of the C library or the compiler.
_COMMON = frozenset({"-l-", "-lm", "-lpthread", "-ldl", "-lrt", "-lc", "-lstdc++", "-lgcc", "-lobjc", "-lgfortran"})
# -march=native, -Ctarget-cpu=native, -xHost: for the processor of this machine.
_NATIVE = re.compile(r"native|-xhost|-qarch=auto|/qxhost", re.IGNORECASE)
_MACHINE_SPECIFIC = re.compile(
    r"@|-l|-L|-z|-framework|.*(?:^|[=,:]|^-[A-Za-z]+)(?:/|~|\$)|.*[=,]-[lL]|.*rpath", re.DOTALL
)
# Variables that compilers and linkers read.
_READ_BY_COMPILERS = re.compile(
    r"HOME|CC|CXX|AS|LD|.*FLAGS|.*PATH|.*_OPTIONS|SOURCE_DATE_EPOCH|RUSTC\w*|GO(?:OS|ARCH|AMD64|ARM|ARM64|386|ENV|ROOT)|"
    r"(?:LD|GCC|CGO|RUST|CARGO|JAVA|JDK|CLANG|MONO|DOTNET)_\w+"
)


def compiler_environment(env: Iterable[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
    """Return those of these variables that may change what a compiler produces."""
    return tuple(sorted(pair for pair in env if _READ_BY_COMPILERS.fullmatch(pair[0])))


def is_shareable(
    language: Language,
    compile_commands: Iterable[tuple[str, ...]],
    env: Iterable[tuple[str, bytes]],
    facts: Facts,
) -> bool:
    """Return whether a build by these commands, with these variables, runs on every node with the same build key."""
    words = [word for command in compile_commands for word in command[1:]]
    known_machine = bool(facts.architecture) and facts.libc not in ("", "unknown")
    return (
        language.portable
        and known_machine
        and bool(words)
        and not any(map(_is_machine_specific, words))
        and not compiler_environment(env)
    )


def _is_machine_specific(word: str) -> bool:
    if word in _COMMON:
        return False
    return bool(_NATIVE.search(word) or _MACHINE_SPECIFIC.match(word))
