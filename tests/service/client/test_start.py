"""The environment of the processes that sshgrid starts: they find the package where this process found it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sshgrid
from sshgrid.client.start import master_environment
from sshgrid.gateway.workers import worker_environment

PRINT_ORIGINS = "import importlib.util as u; print(u.find_spec('sshgrid').origin, u.find_spec('queue').origin)"


@pytest.mark.parametrize("environment", [master_environment, worker_environment])
def test_a_started_process_finds_the_source_tree(environment: Callable[[], dict[str, str]]) -> None:
    """`-S`: without the editable installation of this source tree. `queue` is a module of Python as well."""
    found = subprocess.run(
        [sys.executable, "-S", "-c", PRINT_ORIGINS],
        env=environment(),
        cwd="/",
        capture_output=True,
        text=True,
        check=True,
    )
    package, queue = found.stdout.split()
    assert package == sshgrid.__file__
    assert Path(sshgrid.__file__).parent not in Path(queue).parents
