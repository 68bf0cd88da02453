"""A grid over the lab: a home and master for each module, a folder for each test, and nothing may be left."""

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
    """The lab without what other folders' tests left of their own: small disks, other shells."""
    lab.reset()
    return lab


@pytest.fixture(scope="module")
def module_grid(clean_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """One master for the tests of a module, and h1 to h4 as they are."""
    grid = Grid(clean_lab, tmp_path_factory.mktemp("grid"))
    yield grid
    try:
        grid.check(60, tests_too=True)
    finally:
        grid.stop()


@pytest.fixture
def grid(module_grid: Grid, tmp_path: Path) -> Iterator[Grid]:
    """The module's grid, in a folder of the test's own. Afterwards no host may have anything of a job."""
    module_grid.folder = tmp_path
    yield module_grid
    try:
        module_grid.check()
    except AssertionError:
        module_grid.kill_jobs()
        raise


@pytest.fixture
def gate() -> str:
    """A file that no host has: programs of this test wait for it, and `open_gate` makes it."""
    return f"/tmp/gate-{uuid.uuid4()}"


@pytest.fixture
def hosts(grid: Grid, lab: Lab) -> Iterator[Lab]:
    """The lab's hosts, to be troubled: afterwards all are well again, and the master has seen it."""
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
    """Makes grids of the test's own, for tests that trouble the master itself."""
    with ExitStack() as stack:

        def make() -> Grid:
            grid = Grid(clean_lab, tmp_path_factory.mktemp("own"))
            stack.callback(grid.stop)
            stack.callback(grid.check, 30, tests_too=True)
            return grid

        yield make
