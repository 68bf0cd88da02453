"""The work of a benchmark: a program, and a list of arguments; the program runs once with each.

The work and its check are the same for sshgrid and for every peer. A missing, repeated or failed run, and wrong output,
raise Failed.
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
# Sleeps for the time of the work on this host, whose speed is in a file.
SLEEP = f"""sleep "$(awk -v work="$1" '{{ print work / $1 }}' {SPEED})" && echo "$1 done"\n"""
# Prints the number of the files that came with a run, and their bytes.
COUNT = """find data -type f -printf '%s\\n' | awk '{ bytes += $1 } END { printf "%d %d\\n", NR, bytes }'\n"""
PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class Work:
    """`lines` is the output of all runs, in any order. `data` is a file or folder that each run needs in its folder.

    With data, the arguments are hosts.
    """

    program: Path
    arguments: tuple[str, ...]
    lines: tuple[str, ...] = ()
    data: Path | None = None

    def part(self, one_of: int) -> Work:
        """The work with one of `one_of` runs."""
        return replace(self, arguments=self.arguments[::one_of], lines=self.lines[::one_of])

    def check(self, name: str, printed: str, codes: Iterable[int]) -> None:
        """Raise Failed unless a run for each argument exited with 0, and the output is `lines`."""
        ended = Counter(codes)
        if ended != {0: len(self.arguments)}:
            raise Failed(f"{name}: of {len(self.arguments)} runs of {self.program.name} ended by code: {dict(ended)}")
        expected, found = Counter(self.lines), Counter(printed.splitlines())
        if expected != found:
            missing, wrong = list(expected - found)[:3], list(found - expected)[:3]
            raise Failed(f"{name}: runs of {self.program.name} did not print {missing}, but {wrong}")


def joblog_codes(path: Path) -> list[int]:
    """The exit code of each task in a joblog; -N for signal N."""
    rows = [line.split("\t") for line in path.read_text().splitlines()[1:]]
    return [int(row[6]) or -int(row[7]) for row in rows]


def true_runs(count: int) -> Work:
    """`count` runs of `true`."""
    return Work(TRUE, _numbers(count))


def squares(folder: Path, language: str, count: int, version: int) -> Work:
    """Runs of a new source file, which contains its version."""
    name, source = {"c": ("square.c", SQUARE_C), "java": ("Square.java", SQUARE_JAVA)}[language]
    program = folder / name
    program.write_text(f"{source}// {version}\n")
    return Work(program, _numbers(count), tuple(f"{n} {n * n}" for n in range(1, count + 1)))


def sleeps(folder: Path, lengths: Iterable[float]) -> Work:
    """Runs that take these seconds on a host with speed 1."""
    program = folder / "lasts.sh"
    program.write_text(SLEEP)
    arguments = tuple(f"{length:.3f}" for length in lengths)
    return Work(program, arguments, tuple(f"{argument} done" for argument in arguments))


def transfers(folder: Path, hosts: tuple[str, ...], files: int, size_bytes: int) -> Work:
    """A run on each of these hosts that needs one file, or a folder of files, with new random bytes."""
    program, data = folder / "count.sh", folder / "data"
    program.write_text(COUNT)
    paths = [data]
    if files > 1:
        data.mkdir(exist_ok=True)
        paths = [data / f"{number:05}" for number in range(files)]
    for path in paths:
        _fill(path, size_bytes)
    return Work(program, hosts, (f"{files} {files * size_bytes}",) * len(hosts), data)


def _fill(path: Path, size_bytes: int) -> None:
    with path.open("wb") as stream:
        for at in range(0, size_bytes, PIECE_BYTES):
            stream.write(os.urandom(min(PIECE_BYTES, size_bytes - at)))


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(number) for number in range(1, count + 1))
