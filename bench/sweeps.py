"""`sshgrid sweep` beside its peers: the same work, in turn, on the same four hosts, with as many runs at once.

CONTESTS are data; each round is measured one side after the other, so that all meet the same noise. Refuses a figure
when a run was lost on either side, and counts a peer that cannot be had as a target missed.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from bench.meeting import Meeting
from bench.peers import Peer
from bench.peers.bound import LowerBound
from bench.peers.copying import Copying
from bench.peers.dask import Dask
from bench.peers.ground import Ground
from bench.peers.hyperqueue import HyperQueue
from bench.peers.limit import Limit
from bench.peers.parallel import Parallel
from bench.peers.share import Share
from bench.peers.sshgrid import Sshgrid, SshgridWith
from bench.peers.started import Started
from bench.peers.xargs import Xargs
from bench.table import Row, spread
from bench.work import SPEED, Work, carrying, lasting, nothing, squares
from tests.lab.hosts import Lab

SLOTS = 2
SPEEDS = {"h1": 1.0, "h2": 1.0, "h3": 0.5, "h4": 0.25}
HOSTS = tuple(SPEEDS)
MEAN_LENGTHS = (0.75, 0.75, 0.75, 1.5, 1.5, 2.25)
MakePeer = Callable[[Ground], Peer]


@dataclass(frozen=True)
class Target:
    """`>=`: so many times the peer's rate at least; `<=`, `<`: so much of its time at most. No bound: to know it."""

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
    """`work(folder, count, round)` is new in each round: nobody may have compiled it before."""

    part: str
    what: str
    count: int
    work: Callable[[Path, int, int], Work]
    toolchain: str
    targets: Sequence[Target]
    slots: int = SLOTS
    speeds: dict[str, float] = field(default_factory=dict)
    ours: type[Sshgrid] = Sshgrid


def _nothing(_folder: Path, count: int, _round: int) -> Work:
    return nothing(count)


def _squares(language: str, folder: Path, count: int, version: int) -> Work:
    return squares(folder, language, count, version)


def _mixed(folder: Path, count: int, version: int) -> Work:
    dice = random.Random(version)
    return lasting(folder, [dice.choice(MEAN_LENGTHS) * dice.uniform(0.8, 1.2) for _ in range(count)])


def _one_file(folder: Path, megabytes: int, _round: int) -> Work:
    return carrying(folder, HOSTS, 1, megabytes * 1_000_000)


def _small_files(folder: Path, count: int, _round: int) -> Work:
    return carrying(folder, HOSTS, count, 2048)


COPIERS = (Target(partial(Copying, tar=False), ">=", 1), Target(partial(Copying, tar=True), ">=", 1))
CONTESTS = (
    Contest(
        "true",
        "{count} x true",
        2000,
        _nothing,
        "executable",
        (
            Target(lambda ground: Share(Parallel(ground), 4), ">=", 10),
            Target(HyperQueue, ">=", 2),
            Target(Limit, ">=", 0.3),
            Target(Dask, ">="),
            Target(lambda ground: Share(Xargs(ground), 4), ">="),
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
            Target(lambda ground: Share(Parallel(ground, "compiled in each run"), 5), "<=", 0.2),
            Target(Parallel, "<=", 0.4),
            Target(Started, "<="),
        ),
    ),
    Contest(
        "mixed",
        "{count} runs of mixed length, hosts of unlike speed",
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
    """One for each target."""
    _set_speeds(lab, contest)
    with Ground(lab, home, contest.slots) as ground:
        ours = contest.ours(ground, command, {contest.toolchain}, contest.speeds)
        rivals = [target.peer(ground) for target in contest.targets]
        count = SHORT if short else contest.count
        with Meeting([ours, *rivals]) as meeting:
            meeting.warm_up(contest.work(home, SHORT, 0))
            for number in range(1, rounds + 1):
                meeting.round(contest.work(home, count, number))
        for target, rival in zip(contest.targets, rivals, strict=True):
            row = row_of(contest.what.format(count=f"{count:,}"), target, meeting, ours, rival)
            # So few runs show that it works, and no more.
            yield replace(row, target="", met=None) if short and row.figure != FAILED else row


def row_of(what: str, target: Target, meeting: Meeting, ours: Peer, rival: Peer) -> Row:
    """The line of the table; FAILED, and not met, when either side is out."""
    what = f"{what}: {'rate' if target.sign == '>=' else 'time'} / that of {rival.name}"
    if out := meeting.out.get(ours) or meeting.out.get(rival):
        return Row(what, FAILED, "", target.text, False, out.splitlines()[-1][:80])
    mine, theirs = meeting.seconds[ours], meeting.seconds[rival]
    ratios = [target.figure(*pair) for pair in zip(mine, theirs, strict=True)]
    figure = statistics.median(ratios)
    sides = f"{statistics.median(mine):.1f} / {statistics.median(theirs):.1f} s"
    version = f"; {meeting.versions[rival]}" if meeting.versions[rival] else ""
    note = f"{sides}, {len(ratios)} rounds{version}"
    return Row(what, f"{figure:.2f}", spread(ratios), target.text, target.met(figure), note)


def _set_speeds(lab: Lab, contest: Contest) -> None:
    for host in lab:
        speed = contest.speeds.get(host.name, 1.0)
        host.run(["sh", "-c", f"cat >{SPEED}"], stdin=f"{speed}\n")
        # What makes a host slow is somebody else's work, and shows.
        host.set_load(1 - speed, 1 - speed)
