"""Installs sshgrid as a user does: from a copy of this tree, not editable, into its own virtual environment.

A `Grid` is that command with its own inventory and SSHGRID_HOME. A measured command that fails raises Failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("sshgrid", "pyproject.toml", "README.md", "LICENSE")
TIMEOUT_SECONDS = 300.0


class Failed(Exception):
    """A measurement failed."""


def install(folder: Path) -> Path:
    """Install a copy of this tree, as setuptools adds a build folder to it. Returns the path of the command."""
    source = folder / "source"
    source.mkdir(parents=True)
    for name in COPIED:
        origin = ROOT / name
        if origin.is_dir():
            shutil.copytree(origin, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif origin.exists():
            shutil.copy2(origin, source)
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    pip = [str(folder / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, str(source)], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"pip install: {done.stderr[-2000:]}")
    return folder / "venv/bin/sshgrid"


def seconds(
    command: Sequence[str], expected: bytes | None = None, env: dict[str, str] | None = None, cwd: Path | None = None
) -> float:
    """The wall time of a command from before its start to its end. Raises Failed for another status or output."""
    start = time.perf_counter()
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, env=env, cwd=cwd, timeout=TIMEOUT_SECONDS
    )
    taken = time.perf_counter() - start
    if done.returncode != 0 or (expected is not None and done.stdout != expected):
        raise Failed(f"{' '.join(command)}: status {done.returncode}, printed {done.stdout!r} and {done.stderr!r}")
    return taken


class Grid:
    """The command with one inventory. As a context manager it stops its master at the end."""

    def __init__(self, command: Path, home: Path, inventory: str) -> None:
        self.home = home
        home.mkdir(parents=True)
        self._inventory = home / "inventory.yaml"
        self._inventory.write_text(inventory)
        self._command = command
        self._environment = os.environ | {"SSHGRID_HOME": str(home / "sshgrid")}

    def __enter__(self) -> Grid:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def seconds(self, *words: str, expected: bytes | None = None) -> float:
        return seconds([str(self._command), "-i", str(self._inventory), *words], expected, self._environment)

    def run(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        """Run the command; its status is not checked."""
        return subprocess.run(
            [str(self._command), "-i", str(self._inventory), *words],
            check=False, stdin=subprocess.DEVNULL, capture_output=True, env=self._environment, timeout=TIMEOUT_SECONDS,
        )  # fmt: skip

    def json(self, *words: str) -> Any:
        done = self.run("--json", *words)
        if done.returncode != 0:
            raise Failed(f"sshgrid --json {' '.join(words)}: {done.stderr!r}{done.stdout!r}")
        return json.loads(done.stdout)

    def stop(self) -> None:
        """Stop the master, if there is one, and wait until its process has ended."""
        with contextlib.suppress(Failed):
            pid = self.json("master", "status")["pid"]
            self.seconds("master", "stop")
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.01)

    def reset(self) -> None:
        """Stop the master and remove its state."""
        self.stop()
        shutil.rmtree(self.home / "sshgrid")

    def wait_for_toolchains(self, wanted: set[str], deadline_seconds: float = TIMEOUT_SECONDS) -> None:
        """Wait until these toolchains are tested on every node."""
        deadline = time.monotonic() + deadline_seconds
        while missing := [node for node in self.json("nodes")["nodes"] if not wanted <= set(node["toolchains"])]:
            if time.monotonic() > deadline:
                raise Failed(f"{len(missing)} nodes are not ready, the first is {missing[0]}")
            time.sleep(1.0)
