"""What is to be done over the hosts: a program, and the arguments with each of which it runs once.

The same for sshgrid and for every peer, and so is the check of what came back. Refuses a result with a run missing,
doubled or failed, or with other output than it should have.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from bench.installed import Failed

TRUE = Path("/bin/true")
SQUARE_C = """#include <stdio.h>
#include <stdlib.h>
int main(int count, char **words) { long n = count > 1 ? atol(words[1]) : 0; printf("%ld %ld\\n", n, n * n); return 0; }
"""
SQUARE_JAVA = """class Square {
    public static void main(String[] words) {
        long n = Long.parseLong(words[0]);
        System.out.println(n + " " + n * n);
    }
}
"""
SPEED = "/var/tmp/speed"
# As long as the work takes on this host: its speed is a file there.
LASTS = f"""sleep "$(awk -v work="$1" '{{ print work / $1 }}' {SPEED})" && echo "$1 done"\n"""
# What has come with a run: how many files, and how many bytes in all.
COUNT = """find cargo -type f -printf '%s\\n' | awk '{ bytes += $1 } END { printf "%d %d\\n", NR, bytes }'\n"""
PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class Work:
    """`lines` is all that the runs print, in any order. `cargo` is a file or folder that each run finds in its current
    folder; the arguments are hosts then."""

    program: Path
    arguments: tuple[str, ...]
    lines: tuple[str, ...] = ()
    cargo: Path | None = None

    def part(self, one_of: int) -> Work:
        """One run of so many."""
        return replace(self, arguments=self.arguments[::one_of], lines=self.lines[::one_of])

    def check(self, who: str, printed: str, codes: Iterable[int]) -> None:
        """Failed unless as many runs as there are arguments ended well, and printed what they should."""
        ended = Counter(codes)
        if ended != {0: len(self.arguments)}:
            raise Failed(f"{who}: of {len(self.arguments)} runs of {self.program.name} ended by code: {dict(ended)}")
        wanted, found = Counter(self.lines), Counter(printed.splitlines())
        if wanted != found:
            lacking, strange = list(wanted - found)[:3], list(found - wanted)[:3]
            raise Failed(f"{who}: runs of {self.program.name} did not print {lacking}, but {strange}")


def joblog_codes(path: Path) -> list[int]:
    """Of each task in a joblog; a signal counts as a code of its own."""
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return [int(row[6]) or -int(row[7]) for row in rows]


def nothing(count: int) -> Work:
    """So many times `true`."""
    return Work(TRUE, _numbers(count))


def squares(folder: Path, language: str, count: int, version: int) -> Work:
    """A source that nobody has compiled before: its version is in it."""
    name, source = {"c": ("square.c", SQUARE_C), "java": ("Square.java", SQUARE_JAVA)}[language]
    program = folder / name
    program.write_text(f"{source}// {version}\n")
    return Work(program, _numbers(count), tuple(f"{n} {n * n}" for n in range(1, count + 1)))


def lasting(folder: Path, lengths: Iterable[float]) -> Work:
    """Work that takes so many seconds on a host of speed 1."""
    program = folder / "lasts.sh"
    program.write_text(LASTS)
    arguments = tuple(f"{length:.3f}" for length in lengths)
    return Work(program, arguments, tuple(f"{argument} done" for argument in arguments))


def carrying(folder: Path, hosts: tuple[str, ...], files: int, size_bytes: int) -> Work:
    """For each of these hosts: one file, or a folder of many, of random bytes that nobody has seen before."""
    program, cargo = folder / "count.sh", folder / "cargo"
    program.write_text(COUNT)
    paths = [cargo]
    if files > 1:
        cargo.mkdir(exist_ok=True)
        paths = [cargo / f"{number:05}" for number in range(files)]
    for path in paths:
        _fill(path, size_bytes)
    return Work(program, hosts, (f"{files} {files * size_bytes}",) * len(hosts), cargo)


def _fill(path: Path, size_bytes: int) -> None:
    with path.open("wb") as stream:
        for at in range(0, size_bytes, PIECE_BYTES):
            stream.write(os.urandom(min(PIECE_BYTES, size_bytes - at)))


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(1, count + 1))
