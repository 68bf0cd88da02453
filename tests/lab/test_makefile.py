"""The targets of the Makefile: their tools are installed first, and the README shows the commands of `make test`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


def dry_run(target: str) -> str:
    """The commands that make would run for a target."""
    # Variables that an outer make exports would change the output.
    outer = ("MAKEFLAGS", "MAKELEVEL", "PYTEST", "JOBS")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    command = ["make", "--dry-run", "--no-print-directory", target]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    ("target", "program"), [("test", "-m pytest"), ("bench", "-m bench"), ("chaos", "-m tests.chaos")]
)
def test_a_target_installs_its_tools_before_it_starts_its_program(target: str, program: str) -> None:
    printed = dry_run(target)
    setup, started = (printed.find(words) for words in ("scripts/setup-test-host.sh", program))
    assert 0 <= setup < started, printed


def test_the_readme_shows_the_commands_of_make_test() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    block = readme.partition("<!-- make test -->")[2].split("```")[1]
    shown = [line for line in block.splitlines() if line.startswith(("scripts/", ".venv/"))]
    run = [line for line in dry_run("test").splitlines() if line.startswith(("scripts/setup", ".venv/"))]
    assert shown == run != []
