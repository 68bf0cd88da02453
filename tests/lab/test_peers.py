"""One contract for all peers of the benchmark that need no installation, on the hosts of the lab.

`make bench` itself tests the peers that pip and apt install.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.installed import Failed
from bench.peers import Peer
from bench.peers.copying import Copying
from bench.peers.environment import Environment
from bench.peers.parallel import Parallel, Way
from bench.peers.process_loop import ProcessLoop
from bench.peers.xargs import Xargs
from bench.work import squares, transfers, true_runs
from tests.conftest import lab_is_required
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab
RUNNERS: list[Callable[[Environment], Peer]] = [ProcessLoop, Xargs]
# Where the lab is required, a missing tool is a failure.
HAS_PARALLEL = lab_is_required() or bool(shutil.which("parallel") and shutil.which("rsync"))
if HAS_PARALLEL:
    RUNNERS.append(Parallel)
WAYS: list[Way] = ["compiled in each run", "--basefile", "--transferfile"]


@pytest.fixture
def environment(lab_hosts: Lab, tmp_path: Path) -> Iterator[Environment]:
    with Environment(lab_hosts, tmp_path / "environment", slots=2) as environment:
        yield environment


@pytest.mark.parametrize("make", RUNNERS, ids=lambda make: make.__name__)
def test_a_peer_runs_all_work_and_raises_for_a_failed_run(
    make: Callable[[Environment], Peer], environment: Environment
) -> None:
    peer = make(environment)
    assert peer.run(true_runs(16)) > 0
    with pytest.raises(Failed):
        peer.run(replace(true_runs(16), program=Path("/bin/false")))


@pytest.mark.skipif(not HAS_PARALLEL, reason="needs GNU parallel and rsync")
@pytest.mark.parametrize("way", WAYS)
def test_parallel_compiles_in_each_way(way: Way, environment: Environment) -> None:
    peer, work = Parallel(environment, way), squares(environment.home, "c", 6, 1)
    assert peer.run(work) > 0
    with pytest.raises(Failed, match="did not print"):
        peer.run(replace(work, lines=(*work.lines[:5], "6 35")))


@pytest.mark.parametrize("tar", [False, True], ids=["scp", "tar"])
@pytest.mark.parametrize("files", [1, 20])
def test_copies_are_complete_on_every_host(tar: bool, files: int, environment: Environment) -> None:
    peer, work = Copying(environment, tar=tar), transfers(environment.home, environment.hosts, files, 2048)
    assert peer.run(work) > 0
    with pytest.raises(Failed, match="did not print"):
        peer.run(replace(work, lines=("1 1",) * 4))
