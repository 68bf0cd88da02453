"""`python -m bench`: what the promise "it feels local" costs here, on a lab of real SSH hosts. Needs root.

A warm `sshgrid run` of a small program must cost less than one cold `ssh`; this measures both on the same hosts. Ends
with 1 when it does not hold.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.lab import machine
from tests.lab.hosts import Lab

REPEATS = 20
PROGRAM = "#!/bin/sh\necho hello\n"


def main() -> int:
    if reason := machine.missing():
        sys.stderr.write(f"error: {reason}\n")
        return 1
    with tempfile.TemporaryDirectory() as home, Lab(4) as lab:
        return _measure(lab, Path(home))


def _measure(lab: Lab, home: Path) -> int:
    inventory, program = home / "inventory.yaml", home / "hello.sh"
    inventory.write_text(lab.inventory_yaml())
    program.write_text(PROGRAM)
    os.environ["SSHGRID_HOME"] = str(home / "sshgrid")
    sshgrid = [str(Path(sys.executable).with_name("sshgrid")), "-i", str(inventory)]
    run = [*sshgrid, "run", str(program)]
    try:
        first = _seconds(run)
        # Every host has seen the program once before the warm runs are counted.
        for name in lab.hosts:
            _seconds([*sshgrid, "run", "--on", name, str(program)])
        warm = [_seconds(run) for _ in range(REPEATS)]
    finally:
        subprocess.run([*sshgrid, "master", "stop"], check=False, capture_output=True)
    cold = [_seconds(lab.ssh("h1", "echo", "hello")) for _ in range(REPEATS)]
    _row("first run, with the start of the master", [first])
    _row("warm run", warm)
    _row("cold ssh", cold)
    return 0 if statistics.median(warm) < statistics.median(cold) else 1


def _seconds(command: Sequence[str]) -> float:
    start = time.perf_counter()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
    if done.stdout != b"hello\n":
        raise RuntimeError(f"{command} printed {done.stdout!r}")
    return time.perf_counter() - start


def _row(what: str, seconds: Sequence[float]) -> None:
    median, worst = statistics.median(seconds) * 1000, max(seconds) * 1000
    sys.stdout.write(f"{what:<42}{median:>8.0f} ms median{worst:>8.0f} ms worst of {len(seconds)}\n")


if __name__ == "__main__":
    sys.exit(main())
