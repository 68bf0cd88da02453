"""May a build go to another node of the same kind? Only when nothing but what its key names made it what it is.

The key holds sources, flags, toolchain, system, machine and C library; what goes beyond these (the processor's own
instructions, libraries and folders of one machine, a makefile's commands) keeps a build where it was made. Refuses when
in doubt: a compiler that runs once more costs little, a program that breaks elsewhere costs trust.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from sshgrid.model import Facts, Language

# Libraries that are the C library's or the compiler's own.
_COMMON = frozenset({"-l-", "-lm", "-lpthread", "-ldl", "-lrt", "-lc", "-lstdc++", "-lgcc", "-lobjc", "-lgfortran"})
# -march=native, -Ctarget-cpu=native, -xHost: for this processor, whatever it is.
_NATIVE = re.compile(r"native|-xhost|-qarch=auto|/qxhost", re.IGNORECASE)
_OF_THE_MACHINE = re.compile(
    r"@|-l|-L|-z|-framework|.*(?:^|[=,:]|^-[A-Za-z]+)(?:/|~|\$)|.*[=,]-[lL]|.*rpath", re.DOTALL
)
# What compilers and linkers read of the environment.
_READ_BY_COMPILERS = re.compile(
    r"HOME|CC|CXX|AS|LD|.*FLAGS|.*PATH|.*_OPTIONS|SOURCE_DATE_EPOCH|RUSTC\w*|GO(?:OS|ARCH|AMD64|ARM|ARM64|386|ENV|ROOT)|"
    r"(?:LD|GCC|CGO|RUST|CARGO|JAVA|JDK|CLANG|MONO|DOTNET)_\w+"
)


def compiler_environment(env: Iterable[tuple[str, bytes]]) -> tuple[tuple[str, bytes], ...]:
    """Of these variables, those that may change what a compiler makes."""
    return tuple(sorted(pair for pair in env if _READ_BY_COMPILERS.fullmatch(pair[0])))


def may_be_shared(
    language: Language,
    compile_commands: Iterable[tuple[str, ...]],
    env: Iterable[tuple[str, bytes]],
    facts: Facts,
) -> bool:
    """Does a build of these commands, with these variables of the user's, run wherever its key is the same?"""
    words = [word for command in compile_commands for word in command[1:]]
    known_machine = bool(facts.architecture) and facts.libc not in ("", "unknown")
    return (
        language.portable
        and known_machine
        and bool(words)
        and not any(map(_is_of_the_machine, words))
        and not compiler_environment(env)
    )


def _is_of_the_machine(word: str) -> bool:
    if word in _COMMON:
        return False
    return bool(_NATIVE.search(word) or _OF_THE_MACHINE.match(word))
