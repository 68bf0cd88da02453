"""Fixtures for the lab of real SSH hosts, and the rule that CI never skips a lab test.

Without root, tests marked `lab` are skipped with a reason. With CI=true or SSHGRID_REQUIRE_LAB=1 such a skip is a
failure, so that a lab test cannot be left out unnoticed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest

from tests.lab import machine
from tests.lab.faulty_server import FaultyServer, Mode
from tests.lab.hosts import Lab, LabHost

pytest_plugins = ["pytester"]

# The benchmarks measure durations. Tests may run in parallel, so hypothesis sets no time limit.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# A shell starts background jobs with INT and QUIT ignored, and each child process would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Four OpenSSH hosts h1..h4 for the whole session; tests use `lab_hosts`, which resets them first."""
    with Lab(hosts=_needs_lab()) as lab:
        yield lab


@pytest.fixture
def lab_hosts(lab: Lab) -> Iterator[Lab]:
    """The lab with all hosts reset. Afterwards fails if a process is left or a host has ended unexpectedly."""
    lab.reset()
    yield lab
    lab.check_quiet()


@pytest.fixture(scope="session")
def busybox_lab() -> Iterator[Lab]:
    """A lab of one host, b1: dropbear and busybox, no SFTP."""
    _needs_lab("dropbear", "dropbearconvert", "busybox")
    with Lab(hosts=0, busybox=1) as lab:
        yield lab


@pytest.fixture
def busybox_host(busybox_lab: Lab) -> Iterator[LabHost]:
    """Host b1 of `busybox_lab`, reset."""
    busybox_lab.reset()
    yield busybox_lab["b1"]
    busybox_lab.check_quiet()


@pytest.fixture
def faulty_server(tmp_path: Path) -> Iterator[Callable[[Mode], FaultyServer]]:
    """Starts faulty SSH servers: `server = faulty_server(Mode.DROPS)`; they end with the test."""
    with ExitStack() as stack:
        yield lambda mode: stack.enter_context(FaultyServer(mode, tmp_path))


def _needs_lab(*more_tools: str) -> int:
    """The number of hosts to start. Skips the test where the lab cannot run."""
    if reason := machine.missing(*more_tools):
        pytest.skip(reason)
    return 4


def lab_is_required() -> bool:
    return os.environ.get("CI") == "true" or os.environ.get("SSHGRID_REQUIRE_LAB") == "1"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and item.get_closest_marker("lab") and lab_is_required():
        report.outcome = "failed"
        report.longrepr = f"a lab test must not be skipped with CI=true or SSHGRID_REQUIRE_LAB=1: {report.longrepr}"
    return report
