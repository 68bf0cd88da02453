"""Measures one run against the same program through `ssh`, on four real SSH hosts of the lab.

The hosts, the master and the client share the processors of this machine, which slows both sides. The measurement fails
when a run prints anything else than expected.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Collection, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from bench.installed import Failed, Grid, seconds
from bench.table import Row, pairs, ratio_row, rested, say
from tests.lab.hosts import Lab

HOST = "h1"
HELLO = 'print("hello")\n'
OUTPUT = b"hello\n"
PARTS = ("first", "warm", "again", "cold", "help")
TOOLCHAINS = ("c", "java", "python")
SOURCES = {
    "c": ("hello.c", '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }\n// %d\n'),
    "java": (
        "Hello.java",
        'class Hello { public static void main(String[] a) { System.out.println("hello"); } }\n// %d\n',
    ),
}


class Bench:
    """Four hosts, a grid with them, and hello.py here and on each host."""

    def __init__(self, lab: Lab, command: Path, home: Path, repeats: int) -> None:
        self._lab = lab
        self._home = home
        self._repeats = repeats
        self._command = command
        home.mkdir()
        self._hello = home / "hello.py"
        self._hello.write_text(HELLO)
        for host in lab:
            host.run(["sh", "-c", "cat >/home/grid/hello.py"], user="grid", stdin=HELLO)
        fields = {name: {"toolchains": list(TOOLCHAINS)} for name in lab.hosts}
        self._grid = Grid(command, home / "grid", lab.inventory_yaml(fields=fields))

    def rows(self, wanted: Collection[str]) -> Iterator[Row]:
        """The rows of these PARTS, each as soon as it is measured."""
        parts = (self._first_contact, self._warm, self._again, self._cold, self._help)
        with self._grid:
            for part, measure in zip(PARTS, parts, strict=True):
                if part not in wanted:
                    continue
                if part != "first":
                    self._warm_up()
                yield from measure()

    # --- both sides

    def _run(self) -> float:
        return self._grid.seconds("run", str(self._hello), expected=OUTPUT)

    def _ssh(self) -> float:
        return seconds(self._lab.ssh(HOST, "python3", "hello.py"), OUTPUT)

    def _warm_up(self) -> None:
        say("waiting until the toolchains of every host are tested")
        self._grid.wait_for_toolchains(set(TOOLCHAINS))
        for name in self._lab.hosts:
            self._grid.seconds("run", "--on", name, str(self._hello), expected=OUTPUT)

    # --- rows

    def _warm(self) -> Iterator[Row]:
        yield ratio_row("warm run / cold ssh", pairs(self._run, self._ssh, self._repeats), 0.6)
        with self._control_master() as through_master:
            measured = pairs(self._run, through_master, self._repeats)
        yield ratio_row("warm run / ssh through a ControlMaster", measured, 4)

    @contextlib.contextmanager
    def _control_master(self) -> Iterator[Callable[[], float]]:
        words = self._lab.ssh(HOST)
        control = ["-S", str(self._home / "control")]
        subprocess.run([*words[:-1], *control, "-M", "-N", "-f", HOST], check=True, stdin=subprocess.DEVNULL)
        try:
            yield lambda: seconds([*words[:-1], *control, HOST, "python3", "hello.py"], OUTPUT)
        finally:
            subprocess.run([*words[:-1], *control, "-O", "exit", HOST], check=True, capture_output=True)

    def _cold(self) -> Iterator[Row]:
        """The master is stopped before each run, outside the measured time. Uploads and builds stay on the hosts."""

        def cold_run() -> float:
            self._grid.stop()
            return rested(self._run)

        yield ratio_row("cold run (no master) / cold ssh", pairs(cold_run, self._ssh, self._repeats), 3)

    def _first_contact(self) -> Iterator[Row]:
        """The first run ever: sshgrid has no files on the hosts or here, and no toolchain is tested."""

        def first_run() -> float:
            self._grid.reset()
            for host in self._lab:
                host.run(["rm", "-rf", host.workdir])
            return rested(self._run)

        self._run()
        yield ratio_row("very first contact, empty workdirs / cold ssh", pairs(first_run, self._ssh, 5))

    def _again(self) -> Iterator[Row]:
        """The first and the second run of the same file on the same host. Each pair has a new file."""
        for language, (name, source) in SOURCES.items():
            path = self._home / name
            measured = []
            for number in range(5):
                path.write_text(source % number)
                measured.append((rested(partial(self._run_there, path)), *self._second(path)))
            rows = [(first, second) for first, second, _ in measured]
            reused = all(nothing_done for *_, nothing_done in measured)
            row = ratio_row(f"first / second run of a {language} file", rows)
            yield Row(
                f"second run of a {language} file: uploaded, compiled",
                "0 B, no" if reused else "SOME",
                "",
                "0 B, no",
                reused,
                "info --json of each pair below",
            )
            yield row

    def _run_there(self, path: Path) -> float:
        return self._grid.seconds("run", "--on", HOST, str(path), expected=OUTPUT)

    def _second(self, path: Path) -> tuple[float, bool]:
        first = self._last_attempt()
        if first["compiled"] is not True or first["uploaded_bytes"] != path.stat().st_size:
            raise Failed(f"the first run of {path.name} did not upload and compile it: {first}")
        taken = rested(lambda: self._run_there(path))
        second = self._last_attempt()
        return taken, second["uploaded_bytes"] == 0 and second["compiled"] is False

    def _last_attempt(self) -> Any:
        return self._grid.json("info", "last")["attempts"][-1]

    def _help(self) -> Iterator[Row]:
        python = str(self._command.with_name("python"))
        measured = pairs(
            lambda: seconds([str(self._command), "--help"]), lambda: seconds([python, "-c", "pass"]), self._repeats
        )
        yield ratio_row("sshgrid --help / python -c pass", measured)
