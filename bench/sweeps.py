"""Compares `sshgrid sweep` with other tools: the same work, in turn, on four hosts, with as many parallel runs.

Each round measures one tool after the other, so that the load of the machine affects all of them. A target is missed
when a run is lost on either side, or when a tool cannot be installed.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bench.comparison import Comparison
from bench.peers import Peer
from bench.peers.copying import Copying
from bench.peers.dask import Dask
from bench.peers.environment import Environment
from bench.peers.fraction import Fraction
from bench.peers.hyperqueue import HyperQueue
from bench.peers.jvm_loop import JvmLoop
from bench.peers.lower_bound import LowerBound
from bench.peers.parallel import Parallel
from bench.peers.process_loop import ProcessLoop
from bench.peers.sshgrid import Sshgrid, SshgridWith
from bench.peers.xargs import Xargs
from bench.table import Row, spread
from bench.work import SPEED, Work, sleeps, squares, transfers, true_runs
from tests.lab.hosts import Lab

SLOTS = 2
SPEEDS = {"h1": 1.0, "h2": 1.0, "h3": 0.5, "h4": 0.25}
HOSTS = tuple(SPEEDS)
MEAN_LENGTHS = (0.75, 0.75, 0.75, 1.5, 1.5, 2.25)
MakePeer = Callable[[Environment], Peer]


@dataclass(frozen=True)
class Target:
    """`>=`: at least `bound` times the rate of the peer. `<=`, `<`: at most this part of its time. None: no target."""

    peer: MakePeer
    sign: str
    bound: float | None = None

    def figure(self, ours: float, theirs: float) -> float:
        return theirs / ours if self.sign == ">=" else ours / theirs

    def met(self, figure: float) -> bool | None:
        if self.bound is None:
            return None
        return {">=": figure >= self.bound, "<=": figure <= self.bound, "<": figure < self.bound}[self.sign]

    @property
    def text(self) -> str:
        return "" if self.bound is None else f"{self.sign} {self.bound:g}"


@dataclass(frozen=True)
class Contest:
    """`work(folder, count, round)` is different in each round, so that no result is cached."""

    part: str
    what: str
    count: int
    work: Callable[[Path, int, int], Work]
    toolchain: str
    targets: Sequence[Target]
    slots: int = SLOTS
    speeds: dict[str, float] = field(default_factory=dict)
    ours: type[Sshgrid] = Sshgrid


def _true(_folder: Path, count: int, _round: int) -> Work:
    return true_runs(count)


def _squares(language: str, folder: Path, count: int, version: int) -> Work:
    return squares(folder, language, count, version)


def _mixed(folder: Path, count: int, version: int) -> Work:
    rng = random.Random(version)
    return sleeps(folder, [rng.choice(MEAN_LENGTHS) * rng.uniform(0.8, 1.2) for _ in range(count)])


def _one_file(folder: Path, megabytes: int, _round: int) -> Work:
    return transfers(folder, HOSTS, 1, megabytes * 1_000_000)


def _small_files(folder: Path, count: int, _round: int) -> Work:
    return transfers(folder, HOSTS, count, 2048)


COPIERS = (Target(partial(Copying, tar=False), ">=", 1), Target(partial(Copying, tar=True), ">=", 1))
CONTESTS = (
    Contest(
        "true",
        "{count} x true",
        2000,
        _true,
        "executable",
        (
            Target(lambda environment: Fraction(Parallel(environment), 4), ">=", 10),
            Target(HyperQueue, ">=", 2),
            Target(ProcessLoop, ">=", 0.3),
            Target(Dask, ">="),
            Target(lambda environment: Fraction(Xargs(environment), 4), ">="),
        ),
    ),
    Contest(
        "c",
        "{count} runs of a new C file",
        200,
        partial(_squares, "c"),
        "c",
        (
            Target(partial(Parallel, way="compiled in each run"), "<=", 0.2),
            Target(Parallel, "<=", 0.4),
            Target(partial(Parallel, way="--transferfile"), "<="),
        ),
    ),
    Contest(
        "java",
        "{count} runs of a new Java file",
        200,
        partial(_squares, "java"),
        "java",
        (
            Target(lambda environment: Fraction(Parallel(environment, "compiled in each run"), 5), "<=", 0.2),
            Target(Parallel, "<=", 0.4),
            Target(JvmLoop, "<="),
        ),
    ),
    Contest(
        "mixed",
        "{count} runs of mixed length, hosts of different speed",
        40,
        _mixed,
        "sh",
        (Target(partial(LowerBound, speeds=SPEEDS), "<=", 1.1), Target(Parallel, "<", 1)),
        slots=1,
        speeds=SPEEDS,
    ),
    Contest("1gb", "{count} MB in one file to 4 hosts", 1000, _one_file, "sh", COPIERS, ours=SshgridWith),
    Contest("5000", "{count} files of 2 KB to 4 hosts", 5000, _small_files, "sh", COPIERS, ours=SshgridWith),
)
PARTS = tuple(contest.part for contest in CONTESTS)
FAILED = "FAILED"
SHORT = 8  # runs in a short contest, and in the warm-up


def rows(lab: Lab, command: Path, home: Path, contest: Contest, rounds: int, *, short: bool) -> Iterator[Row]:
    """A row for each target of the contest."""
    _set_speeds(lab, contest)
    with Environment(lab, home, contest.slots) as environment:
        ours = contest.ours(environment, command, {contest.toolchain}, contest.speeds)
        peers = [target.peer(environment) for target in contest.targets]
        count = SHORT if short else contest.count
        with Comparison([ours, *peers]) as comparison:
            comparison.warm_up(contest.work(home, SHORT, 0))
            for number in range(1, rounds + 1):
                comparison.round(contest.work(home, count, number))
        for target, peer in zip(contest.targets, peers, strict=True):
            row = row_of(contest.what.format(count=f"{count:,}"), target, comparison, ours, peer)
            # So few runs only show that it works.
            yield replace(row, target="", met=None) if short and row.figure != FAILED else row


def row_of(what: str, target: Target, comparison: Comparison, ours: Peer, peer: Peer) -> Row:
    """The row of a target; FAILED and not met when either side is excluded."""
    what = f"{what}: {'rate' if target.sign == '>=' else 'time'} / that of {peer.name}"
    if failure := comparison.failures.get(ours) or comparison.failures.get(peer):
        return Row(what, FAILED, "", target.text, False, failure.splitlines()[-1][:80])
    mine, theirs = comparison.seconds[ours], comparison.seconds[peer]
    ratios = [target.figure(*pair) for pair in zip(mine, theirs, strict=True)]
    figure = statistics.median(ratios)
    sides = f"{statistics.median(mine):.1f} / {statistics.median(theirs):.1f} s"
    version = f"; {comparison.versions[peer]}" if comparison.versions[peer] else ""
    note = f"{sides}, {len(ratios)} rounds{version}"
    return Row(what, f"{figure:.2f}", spread(ratios), target.text, target.met(figure), note)


def _set_speeds(lab: Lab, contest: Contest) -> None:
    for host in lab:
        speed = contest.speeds.get(host.name, 1.0)
        host.run(["sh", "-c", f"cat >{SPEED}"], stdin=f"{speed}\n")
        # A slow host has the load of other work, which its samples show.
        host.set_load(1 - speed, 1 - speed)
