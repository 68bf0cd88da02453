#!/usr/bin/env python3
"""Record the session that the README shows: `make recording` writes docs/_static/demo.svg.

Real commands run in a bash in a pseudo-terminal, on three real SSH hosts: the lab of the tests, which needs root. In
one scene the host of a running job loses power. No pause is longer than GAP_SECONDS.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT)]

from terminal_svg import Event, pictures, svg, without_waiting  # noqa: E402 - needs the path above

from tests.lab.hosts import Lab  # noqa: E402

TARGET = ROOT / "docs" / "_static" / "demo.svg"
TITLE = "A recorded session: three SSH hosts run a C and a Java program, a sweep, and a job whose host loses its power"
COLUMNS, ROWS = 78, 24
NAMES = {"h1": "alpha", "h2": "beta", "h3": "gamma"}
TYPING_SECONDS = (0.015, 0.06)
GAP_SECONDS = 1.8
COMMAND_SECONDS = 120.0
# Invisible: an "operating system command" sequence that terminals ignore.
PROMPT_MARK = b"\x1b]133;A\x07"
PROMPT = r"\[\e]133;A\a\]\[\e[36;1m\]$\[\e[0;1m\] "  # typed text is bold
BEFORE_OUTPUT = r"\e[0m"

FILES = {
    "circle.py": """\
import random, sys

seed, points = int(sys.argv[1]), 200_000
dice = random.Random(seed)
hits = sum(dice.random() ** 2 + dice.random() ** 2 < 1 for _ in range(points))
print("pi is about", 4 * hits / points)
""",
    "count.py": """\
import time

for step in range(1, 7):
    print("step", step, "of 6", flush=True)
    time.sleep(0.8)
""",
}


class Scene(NamedTuple):
    """A line to type, the pause after its output in seconds, and a function that runs during its command."""

    line: str
    pause: float
    meanwhile: Callable[[Recorder, int, Lab], None] | None = None


class Recorder:
    """A bash in a pseudo-terminal; its output is recorded."""

    def __init__(self, folder: Path, environ: dict[str, str]) -> None:
        self.events: list[Event] = []
        self._begin = time.monotonic()
        self._dice = random.Random(12)
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environ)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self.wait_for(PROMPT_MARK, 0)

    def type(self, line: str) -> int:
        """Type a line at human speed; returns the number of events before Enter."""
        for char in line:
            self._send(char)
            self.read(self._dice.uniform(*TYPING_SECONDS))
        self.read(0.25)
        before = len(self.events)
        self._send("\n")
        return before

    def wait_for(self, words: bytes, since: int) -> None:
        """Read until the output since that event contains the words."""
        deadline = time.monotonic() + COMMAND_SECONDS
        while words not in self.output(since):
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {words!r} in {self.output(since)!r}")
            self.read(0.05)

    def output(self, since: int) -> bytes:
        return b"".join(event.data for event in self.events[since:])

    def read(self, seconds: float) -> None:
        """Record the output for this time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._terminal], [], [], left)[0]:
                data = os.read(self._terminal, 65536)
                self.events.append(Event(time.monotonic() - self._begin, data))

    def close(self) -> None:
        os.kill(self._pid, signal.SIGHUP)
        os.close(self._terminal)
        os.waitpid(self._pid, 0)

    def _send(self, text: str) -> None:
        os.write(self._terminal, text.encode())


def power_off_its_host(recorder: Recorder, since: int, lab: Lab) -> None:
    """Wait until the job has printed its third line, and cut the power of the node that `--show-node` named."""
    recorder.wait_for(b"step 3", since)
    found = re.search(rb"node: (\w+)", recorder.output(since))
    if found is None:
        raise LookupError(f"no node in {recorder.output(since)!r}")
    host = next(host for host, name in NAMES.items() if name == found[1].decode())
    lab[host].power_off()


SCENES = (
    Scene("sshgrid nodes", 1.6),
    Scene("sshgrid run primes.c 50 | paste -sd' '", 1.2),
    Scene("sshgrid run --show-node Primes.java 50 | paste -sd' '", 1.4),
    Scene("echo 'int main(void) { return 7; }' > seven.c", 0.2),
    Scene('sshgrid run seven.c; echo "exit code $?"', 1.2),
    Scene("sshgrid sweep -p seed=1..5 --results out -k --tag circle.py", 1.0),
    Scene("cut -d, -f 2,3,5,8 out/results.csv | head -4", 1.6),
    Scene("sshgrid run --show-node count.py    # its machine loses power at step 3", 1.6, power_off_its_host),
    Scene("sshgrid ps -a", 2.0),
)


def record(lab: Lab) -> list[Event]:
    """Play all scenes in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="sshgrid-demo-") as name:
        folder = Path(name, "demo")
        folder.mkdir()
        for example in ("primes.c", "Primes.java"):
            shutil.copy(ROOT / "examples" / example, folder)
        for file, text in FILES.items():
            (folder / file).write_text(text, encoding="utf-8")
        (folder / "inventory.yaml").write_text(inventory(lab), encoding="utf-8")
        environ = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": name,
            "SSHGRID_HOME": str(Path(name, "h")),
            "TERM": "xterm-256color",
            "LC_ALL": "C.UTF-8",
            "PS1": PROMPT,
            "PS0": BEFORE_OUTPUT,
        }
        try:
            warm_up(folder, environ)
            recorder = Recorder(folder, environ)
            try:
                for scene in SCENES:
                    play(scene, recorder, lab)
            finally:
                recorder.close()
        finally:
            unrecorded(["master", "stop"], folder, environ)
    return recorder.events


def play(scene: Scene, recorder: Recorder, lab: Lab) -> None:
    since = recorder.type(scene.line)
    if scene.meanwhile is not None:
        scene.meanwhile(recorder, since, lab)
    recorder.wait_for(PROMPT_MARK, since)
    recorder.read(scene.pause)


def inventory(lab: Lab) -> str:
    """The hosts of the lab under the names of the recording, with the languages that it uses."""
    text = lab.inventory_yaml("defaults: {toolchains: [c, java, python], slots: 2}")
    return re.sub(r"^  (h\d):", lambda found: f"  {NAMES[found[1]]}:", text, flags=re.MULTILINE)


def warm_up(folder: Path, environ: dict[str, str]) -> None:
    """Start the master, and wait until each node has a load and all its toolchains."""
    unrecorded(["node", "check"], folder, environ)
    deadline = time.monotonic() + COMMAND_SECONDS
    while True:
        table = unrecorded(["nodes"], folder, environ)
        lines = table.splitlines()[1:]
        if all("IDLE" in line and "c,java,python" in line for line in lines):
            return
        if time.monotonic() > deadline:
            raise TimeoutError(table)
        time.sleep(0.5)


def unrecorded(words: list[str], folder: Path, environ: dict[str, str]) -> str:
    """Run a command that is not recorded; returns its stdout. RuntimeError when it fails."""
    done = subprocess.run(["sshgrid", *words], cwd=folder, env=environ, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"sshgrid {' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the session that the README shows.")
    parser.add_argument("target", nargs="?", type=Path, default=TARGET)
    target: Path = parser.parse_args().target
    with Lab(hosts=len(NAMES)) as lab:
        events = without_waiting(record(lab), GAP_SECONDS)
    target.write_text(svg(pictures(events, COLUMNS, ROWS), COLUMNS, ROWS, TITLE), encoding="utf-8")
    sys.stdout.write(f"{target}: {target.stat().st_size / 1000:.0f} kB, {events[-1].seconds:.0f} s\n")


if __name__ == "__main__":
    main()
