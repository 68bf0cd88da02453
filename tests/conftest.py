"""Fixtures for the lab of real SSH hosts, and the rule that in CI a lab test is never skipped.

A laptop without root skips the tests marked `lab` and says why. With CI=true or SSHGRID_REQUIRE_LAB=1 such a skip is a
failure: a check that silently did not run is no check.
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
from tests.lab.hosts import Lab, LabHost
from tests.lab.liar import Liar, Mode

pytest_plugins = ["pytester"]

# How long something takes is measured by the benchmarks, not by tests, which may run beside each other.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

# Started as a shell's background job, a process has INT and QUIT ignored, and so would everything that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Four OpenSSH hosts h1..h4 for the whole session; tests take `lab_hosts`, which is this one made new."""
    with Lab(hosts=_needs_lab()) as lab:
        yield lab


@pytest.fixture
def lab_hosts(lab: Lab) -> Iterator[Lab]:
    """The lab, every host as on its first day; afterwards no process may be left and no host may have died unasked."""
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
    """Host b1 of `busybox_lab`, as on its first day."""
    busybox_lab.reset()
    yield busybox_lab["b1"]
    busybox_lab.check_quiet()


@pytest.fixture
def liar(tmp_path: Path) -> Iterator[Callable[[Mode], Liar]]:
    """Starts misbehaving SSH servers: `server = liar(Mode.DROPS)`; they end with the test."""
    with ExitStack() as stack:
        yield lambda mode: stack.enter_context(Liar(mode, tmp_path))


def _needs_lab(*more_tools: str) -> int:
    """The number of hosts to start; skips where none can be."""
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
        report.longrepr = f"a lab test may not be skipped here (CI=true or SSHGRID_REQUIRE_LAB=1): {report.longrepr}"
    return report
