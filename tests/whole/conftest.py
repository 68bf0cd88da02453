"""A grid on the hosts of the lab: a home and a master for each module, a folder for each test, a check after each."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.hosts import Lab
from tests.whole.grid import Grid


@pytest.fixture(scope="session")
def clean_lab(lab: Lab) -> Lab:
    """The lab, reset: tests of other folders may have left small disks or other login shells."""
    lab.reset()
    return lab


@pytest.fixture(scope="module")
def module_grid(clean_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One master for the tests of a module, with h1 to h4 as its nodes."""
    grid = Grid(clean_lab, tmp_path_factory.mktemp("grid"))
    yield grid
    try:
        grid.check(60, with_checks=True)
    finally:
        grid.stop()


@pytest.fixture
def grid(module_grid: Grid, tmp_path: Path) -> Iterator[Grid]:
    """The grid of the module, in a folder of the test. Afterwards fails if a host has a process or folder of a run."""
    module_grid.folder = tmp_path
    yield module_grid
    try:
        module_grid.check()
    except AssertionError:
        module_grid.kill_jobs()
        raise


@pytest.fixture
def gate() -> str:
    """A path that no host has: programs of this test wait for it, and `open_gate` creates it."""
    return f"/tmp/gate-{uuid.uuid4()}"


@pytest.fixture
def hosts(grid: Grid, lab: Lab) -> Iterator[Lab]:
    """The hosts of the lab, for tests that make them fail. Afterwards all are healthy, and the master has connected."""
    yield lab
    for host in lab:
        host.power_on()
        host.thaw()
        host.heal()
        host.start_server()
        host.set_load(0.0, 0.0)
        host.set_shell("bash")
        host.set_bashrc("")
    grid.wait_until_up()


@pytest.fixture
def new_grid(clean_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Grid]]:
    """Creates a grid for one test, for tests that stop or damage the master."""
    with ExitStack() as stack:

        def make() -> Grid:
            grid = Grid(clean_lab, tmp_path_factory.mktemp("grid"))
            stack.callback(grid.stop)
            stack.callback(grid.check, 30, with_checks=True)
            return grid

        yield make
