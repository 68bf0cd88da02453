"""The scripts behind `node exec` and `doctor`, in every shell that a node can have."""

from __future__ import annotations

import shlex
import subprocess
import time
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from sshgrid.node.diagnosis import findings, read
from tests.edge.shells import SHELLS, bare_shell, missing_shell
from tests.lab.machine import wait_until

REMOTE = resources.files("sshgrid") / "remote"

Aside = Callable[..., list[str]]


@pytest.fixture(params=SHELLS)
def aside(request: pytest.FixtureRequest, tmp_path: Path) -> Aside:
    """Run a script with these words. Return its output, with $answer as the last line."""
    if why := missing_shell(request.param):
        pytest.skip(why)
    shell, path = bare_shell(tmp_path / "tools", request.param)

    def call(script: str, *words: str) -> list[str]:
        text = f"set -- {shlex.join(words)}\n{(REMOTE / script).read_text()}\nprintf '\\n%s\\n' \"$answer\"\n"
        environ = {"HOME": str(tmp_path), "PATH": path, "SHELL": str(shell)}
        done = subprocess.run([shell], input=text.encode(), capture_output=True, env=environ, timeout=20, check=False)
        return done.stdout.decode().splitlines()

    return call


def running(mark: str) -> str:
    return subprocess.run(["pgrep", "-f", mark], capture_output=True, text=True, check=False).stdout


def test_a_command_returns_output_and_status_with_empty_input(aside: Aside) -> None:
    assert aside("execute.sh", "60", "sh", "-c", 'cat; echo "$1"; echo err >&2; exit 3', "x", "a  b") == [
        "a  b",
        "err",
        "",
        "3 ",
    ]
    assert aside("execute.sh", "60", "no-such-program")[-1] == "127 "
    assert aside("execute.sh", "60", "sh", "-c", "kill -9 $$")[-1] == "137 "


def test_the_limit_ends_a_command_that_ignores_signals(aside: Aside) -> None:
    began = time.monotonic()
    script = "trap '' TERM; while :; do sleep 97.531; done & while :; do sleep 97.531; done"
    assert aside("execute.sh", "1", "sh", "-c", script)[-1] == "124 late"
    assert time.monotonic() - began < 15
    wait_until(lambda: not running("sleep 97[.]531"), "all of it to end", 5, lambda: running("sleep 97[.]531"))


def test_doctor_prints_the_facts_that_the_diagnosis_needs(aside: Aside, tmp_path: Path) -> None:
    *lines, _, answer = aside("doctor.sh", str(tmp_path))
    assert answer == "ok"
    facts = read("\n".join(lines).encode())
    assert abs(int(facts["clock"][0]) - time.time()) < 10
    assert facts["space"][0].endswith(f" {tmp_path}")
    assert facts["space"][0].split()[0].isdigit()
    assert facts["tmp"] == ["ok /tmp"]
    names = {each.name for each in findings(facts, 0.0, 1.0)}
    assert {"system", "space", "clock", "isolation", "limit of open files"} <= names
