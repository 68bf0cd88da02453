"""The targets of the Makefile that need the lab install its tools before they start it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("target", "program"), [("test", "-m pytest"), ("bench", "-m bench"), ("chaos", "-m tests.chaos")]
)
def test_a_target_installs_its_tools_before_it_starts_its_program(target: str, program: str) -> None:
    # Variables that an outer make exports would change the output.
    outer = ("MAKEFLAGS", "MAKELEVEL", "PYTEST")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    command = ["make", "--dry-run", "--no-print-directory", target]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    setup, started = (done.stdout.find(words) for words in ("scripts/setup-test-host.sh", program))
    assert 0 <= setup < started, done.stdout
