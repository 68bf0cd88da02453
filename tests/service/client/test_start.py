"""Starting a master, replacing one of another version, and the environment of started processes."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import sshgrid
from sshgrid.client import start
from sshgrid.client.start import master_environment
from sshgrid.errors import MasterGone
from sshgrid.gateway.workers import worker_environment
from sshgrid.paths import Places
from sshgrid.protocol import messages
from sshgrid.version import VERSION
from tests.service.conftest import Cli
from tests.service.fake_master import FakeMaster, status_reply

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


def test_without_start_a_missing_master_is_an_error(cli: Cli) -> None:
    with pytest.raises(MasterGone, match="no master is running"):
        start.connect(cli.places, start=False)


def fake_starts(monkeypatch: pytest.MonkeyPatch, starts: list[FakeMaster]) -> None:
    """Make `_spawn` start a scripted master instead of a process."""

    class Process:
        returncode: int | None = None

        def poll(self) -> None:
            return None

    def spawn(places: Places, extra: object) -> tuple[Process, int]:
        starts.append(FakeMaster(places))
        return Process(), 0

    monkeypatch.setattr(start, "_spawn", spawn)


def test_concurrent_clients_start_one_master(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[FakeMaster] = []
    fake_starts(monkeypatch, starts)
    pids: list[int] = []

    def request() -> None:
        with start.connect(cli.places) as link:
            pids.append(link.request(messages.Status(), messages.StatusReply).pid)

    threads = [threading.Thread(target=request) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for each in starts:
        each.close()
    assert (len(starts), pids) == (1, [4242] * 8)


def test_a_stale_socket_is_replaced(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    Path(cli.places.state_dir).mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(cli.places.socket)
    starts: list[FakeMaster] = []
    fake_starts(monkeypatch, starts)
    start.connect(cli.places).close()
    starts[0].close()
    assert len(starts) == 1


def test_a_master_that_fails_to_start_is_reported_with_its_error(cli: Cli) -> None:
    (cli.home / "inventory.yaml").write_text("version: 1\nnodes: []\n")
    done = cli("ps")
    assert done.returncode == 125
    assert done.stderr.startswith(b"error: the master ended with status 125: ")
    assert b"inventory.yaml:2:8" in done.stderr
    assert done.stderr.rpartition(b"\n")[0].rpartition(b"\n")[2].startswith(b"hint: ")
    log = Path(cli.places.log)
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("killed", "comes"), [(start.MAX_START_KILLS - 1, True), (start.MAX_START_KILLS, False)])
def test_a_master_killed_during_its_start_is_started_again(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, killed: int, comes: bool
) -> None:
    starts: list[FakeMaster] = []
    fake_starts(monkeypatch, starts)
    real, victims = start._spawn, list(range(killed))

    class Victim:
        returncode = -9

        def poll(self) -> int:
            return self.returncode

    def spawn(places: Places, extra: tuple[str, ...]) -> object:
        if not victims:
            return real(places, extra)
        victims.pop()
        Path(places.log).touch()
        return Victim(), 0

    monkeypatch.setattr(start, "_spawn", spawn)
    if comes:
        start.connect(cli.places).close()
        starts[0].close()
    else:
        with pytest.raises(MasterGone, match="ended with status -9"):
            start.connect(cli.places)


def test_an_idle_master_of_another_version_is_replaced_with_a_warning(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[FakeMaster] = []
    fake_starts(monkeypatch, starts)
    warnings: list[str] = []
    with FakeMaster(cli.places, version="0.0.1") as old:
        old.reply(messages.Status, status_reply(cli.places, "0.0.1", COMPLETED=9, PENDING=0))
        with start.connect(cli.places, warn=warnings.append) as link:
            assert link.welcome == messages.Welcome(VERSION, 4242)
        assert old.received(messages.Stop) == [messages.Stop()]
    starts[0].close()
    assert warnings == [f"the master has another version, this is {VERSION}: starting a new master"]


def test_a_busy_master_of_another_version_is_kept_with_a_warning(cli: Cli) -> None:
    warnings: list[str] = []
    with FakeMaster(cli.places, version="0.0.1") as old:
        old.reply(messages.Status, status_reply(cli.places, "0.0.1", RUNNING=1))
        start.connect(cli.places, warn=warnings.append).close()
        assert not old.received(messages.Stop)
    assert warnings == [f"the master has version 0.0.1, this is {VERSION}; it is replaced when it has no jobs"]


def test_a_busy_master_of_another_protocol_is_an_error(cli: Cli) -> None:
    with FakeMaster(cli.places) as old:
        old.refuses = messages.Failure("version", "this master speaks protocol 0")
        old.reply(messages.Status, status_reply(cli.places, "0.0.1", RUNNING=1))
        with pytest.raises(MasterGone, match="this master speaks protocol 0"):
            start.connect(cli.places)


def test_an_idle_master_of_another_protocol_is_replaced(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[FakeMaster] = []
    fake_starts(monkeypatch, starts)
    with FakeMaster(cli.places) as old:
        old.refuses = messages.Failure("version", "this master speaks protocol 0")
        old.reply(messages.Status, status_reply(cli.places, "0.0.1", COMPLETED=3))
        with start.connect(cli.places) as link:
            assert link.welcome == messages.Welcome(VERSION, 4242)
        assert old.received(messages.Stop) == [messages.Stop()]
    starts[0].close()
