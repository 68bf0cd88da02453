"""A home folder for each test, the command line as a process, and the scripted master."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from sshgrid import paths
from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.model import Node, RetryPolicy
from sshgrid.paths import Places
from sshgrid.testing import Play, ScriptedGrid, inventory
from tests.service.fake_master import DEADLINE_SECONDS, FakeMaster

INVENTORY = "version: 1\nnodes:\n  h2: {host: 127.0.0.1}\n"
ROOT = str(Path(__file__).parents[2])


class Cli:
    """Runs `python -m sshgrid` with a separate home folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(mode=0o700)
        (self.home / "inventory.yaml").write_text(INVENTORY)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SSHGRID_")}
        self.environ = {**kept, "SSHGRID_HOME": str(self.home), "PYTHONPATH": ROOT, "HOME": str(folder)}
        self.children: list[subprocess.Popen[bytes]] = []

    @property
    def places(self) -> Places:
        return paths.places(None, self.environ, str(self.folder), str(self.folder))

    def start(self, *argv: str, stdin: int | None = subprocess.DEVNULL, **environ: str) -> subprocess.Popen[bytes]:
        child = subprocess.Popen(
            [sys.executable, "-m", "sshgrid", *argv],
            cwd=self.folder,
            env={**self.environ, **environ},
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.children.append(child)
        return child

    def __call__(self, *argv: str, stdin: bytes | None = None, **environ: str) -> subprocess.CompletedProcess[bytes]:
        child = self.start(*argv, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE, **environ)
        out, err = child.communicate(stdin, timeout=30)
        return subprocess.CompletedProcess(argv, child.returncode, out, err)

    def close(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
            for pipe in (child.stdin, child.stdout, child.stderr):
                if pipe is not None:
                    pipe.close()


@pytest.fixture
def cli() -> Iterator[Cli]:
    # Not tmp_path, whose paths are too long for a socket.
    with tempfile.TemporaryDirectory(prefix="sg") as folder:
        cli = Cli(Path(folder))
        yield cli
        cli.close()


@pytest.fixture
def fake(cli: Cli) -> Iterator[FakeMaster]:
    with FakeMaster(cli.places) as fake:
        yield fake


@pytest.fixture
def program(cli: Cli) -> str:
    """A program in the working folder of the command line."""
    (cli.folder / "hello.py").write_text("print('hello')\n")
    return "hello.py"


def wait_until(predicate: Callable[[], bool], seen: Callable[[], object]) -> None:
    """Wait until the predicate is true; a failure shows `seen`."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not predicate():
        assert time.monotonic() < deadline, f"deadline passed; seen: {seen()}"
        time.sleep(0.01)


def interrupt(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGINT)


class Grids:
    """Creates scripted grids over one queue: a second one is the next master."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[ScriptedGrid] = []

    async def __call__(
        self,
        *plays: Play,
        nodes: tuple[str | Node, ...] = ("n1", "n2", "n3"),
        down: tuple[str, ...] = (),
        retry: RetryPolicy | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> ScriptedGrid:
        grid = ScriptedGrid(self.folder, inventory(*nodes, retry=retry), *plays, down=down, clock=clock)
        self.made.append(grid)
        return await grid.begin()

    async def close(self) -> None:
        for grid in self.made:
            await grid.end()
            await grid.engine.close()


@pytest.fixture
async def grids(tmp_path: Path) -> AsyncIterator[Grids]:
    grids = Grids(tmp_path / "state")
    yield grids
    await grids.close()


@pytest.fixture
def quiet_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fails when the master logged an error, or asyncio found an exception that was not retrieved."""
    yield
    gc.collect()
    errors = [record for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert errors == [], [record.getMessage() for record in errors]
