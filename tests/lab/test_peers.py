"""The other tools that the benchmarks compare with, run on the hosts of the lab: one contract for all of them.

Tools that pip or apt must install are checked by `make bench`, which fails where they are missing.
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
from bench.peers.ground import Ground
from bench.peers.limit import Limit
from bench.peers.parallel import Parallel, Way
from bench.peers.xargs import Xargs
from bench.work import carrying, nothing, squares
from tests.conftest import lab_is_required
from tests.lab.hosts import Lab

pytestmark = pytest.mark.lab
RUNNERS: list[Callable[[Ground], Peer]] = [Limit, Xargs]
# Where the lab is required, a missing tool is a failure.
HAS_PARALLEL = lab_is_required() or bool(shutil.which("parallel") and shutil.which("rsync"))
if HAS_PARALLEL:
    RUNNERS.append(Parallel)
WAYS: list[Way] = ["compiled in each run", "--basefile", "--transferfile"]


@pytest.fixture
def ground(lab_hosts: Lab, tmp_path: Path) -> Iterator[Ground]:
    with Ground(lab_hosts, tmp_path / "ground", slots=2) as ground:
        yield ground


@pytest.mark.parametrize("make", RUNNERS, ids=lambda make: make.__name__)
def test_a_peer_runs_all_tasks_and_reports_a_failed_one(make: Callable[[Ground], Peer], ground: Ground) -> None:
    peer = make(ground)
    assert peer.run(nothing(16)) > 0
    with pytest.raises(Failed):
        peer.run(replace(nothing(16), program=Path("/bin/false")))


@pytest.mark.skipif(not HAS_PARALLEL, reason="GNU parallel or rsync is missing")
@pytest.mark.parametrize("way", WAYS)
def test_parallel_runs_in_each_mode_and_wrong_output_is_detected(way: Way, ground: Ground) -> None:
    peer, work = Parallel(ground, way), squares(ground.home, "c", 6, 1)
    assert peer.run(work) > 0
    with pytest.raises(Failed, match="did not print"):
        peer.run(replace(work, lines=(*work.lines[:5], "6 35")))


@pytest.mark.parametrize("tar", [False, True], ids=["scp", "tar"])
@pytest.mark.parametrize("files", [1, 20])
def test_copies_arrive_complete_on_every_host(tar: bool, files: int, ground: Ground) -> None:
    peer, work = Copying(ground, tar=tar), carrying(ground.home, ground.hosts, files, 2048)
    assert peer.run(work) > 0
    with pytest.raises(Failed, match="did not print"):
        peer.run(replace(work, lines=("1 1",) * 4))
