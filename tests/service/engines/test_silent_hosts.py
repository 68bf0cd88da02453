"""The engine on silent hosts: a start without an answer, and leases that end before another attempt starts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from sshgrid.engines import host_wait
from sshgrid.engines.build_cache import BuildCache
from sshgrid.engines.direct import DirectEngine, direct_engine
from sshgrid.engines.launch import RunSpec
from sshgrid.engines.starter import START_GUARD_SECONDS
from sshgrid.errors import Dropped, NeverBegan
from sshgrid.model import Attempt, Exited, Facts, Fetched, JobId, OnHostLoss, Program, Recipe, Step
from sshgrid.spool.spool import Spool
from sshgrid.ssh.link import Link
from sshgrid.ssh.parsers import RunLook, RunRecord, Started

PATIENCE_SECONDS = 0.2
UPTIME = 1000.0
ENDED = RunLook(True, True, True, False, True, record=RunRecord(7, "run", 1.0, 2.0, None, None))
FACTS = Facts("Linux", "x86_64", "glibc 2.36", 4, 8 << 30, "boot", 1000, "/var/tmp/sshgrid-1000", "session")


class SilentRuns:
    """The verbs for runs of a node that never answers a start."""

    def __init__(self, look: RunLook) -> None:
        self.look = look
        self.not_after = 0.0
        self.claimed: list[str] = []

    async def start(self, _run: str, not_after: float, *_: object) -> Started:
        self.not_after = not_after
        raise Dropped("n1", "the connection ended")

    async def poll(self, runs: Sequence[str]) -> dict[str, RunLook]:
        return dict.fromkeys(runs, self.look)

    async def claim(self, run: str) -> bool:
        self.claimed.append(run)
        return True

    async def renew_lease(self, _run: str, _until: float) -> None:
        return

    def wakeup(self, _run: str) -> asyncio.Event:
        return asyncio.Event()


class SilentLink:
    facts = FACTS

    def __init__(self, look: RunLook) -> None:
        self.runs = SilentRuns(look)


class Host:
    name = "n1"

    def __init__(self, *links: SilentLink) -> None:
        self.links = list(links)
        self.silent = 0.0
        self.patience = 0.0

    async def connected(self, patience_seconds: float) -> Link:
        self.patience = patience_seconds
        if not self.links:
            await asyncio.sleep(patience_seconds)
            raise Dropped("n1", "no answer")
        return cast("Link", self.links.pop(0) if len(self.links) > 1 else self.links[0])

    def silent_seconds(self) -> float:
        return self.silent

    def uptime_now(self) -> float:
        return UPTIME


class Sink:
    def __init__(self) -> None:
        self.steps: list[Step] = []

    def kept(self, stream: str) -> int:
        return 0

    async def output(self, stream: str, piece: bytes) -> None: ...

    async def step(self, step: Step) -> None:
        self.steps.append(step)

    async def uploaded(self, count: int, left: int = 0) -> None: ...

    async def compiled(self, compiled: bool) -> None: ...

    def fetch_room(self) -> int:
        return 0

    async def restart_stream(self, stream: str) -> None: ...

    async def fetched(self, fetched: Fetched) -> None: ...


def order(on_host_loss: OnHostLoss, worked_seconds: float = 0.0) -> RunSpec:
    program = Program("python", "x.py", ())
    recipe = Recipe(layout=(), compile=(), run=(b"/usr/bin/python3",), build_key="b")
    return RunSpec(
        Attempt(JobId(1), 1, "n1"),
        "f00d-1.1",
        program,
        recipe,
        on_host_loss=on_host_loss,
        worked_seconds=worked_seconds,
    )


def engine(*links: SilentLink, host: Host | None = None) -> DirectEngine:
    def patience(worked_seconds: float) -> float:
        return max(PATIENCE_SECONDS, worked_seconds)

    return direct_engine(
        host or Host(*links), Path, patience, BuildCache(cast(Spool, None))
    )  # no build is passed on here


async def test_F1_a_silent_host_is_waited_for_as_long_as_the_run_had_worked() -> None:
    host = Host(SilentLink(ENDED))
    host.silent = 5.0
    await engine(host=host).runs.run(order(OnHostLoss.RELAUNCH, worked_seconds=30.0), Sink(), resume=True)
    assert host.patience == pytest.approx(25.0, abs=1.0)


async def test_F12_a_start_without_an_answer_is_searched_for_before_the_job_moves() -> None:
    finish = await engine(SilentLink(ENDED)).runs.run(order(OnHostLoss.RELAUNCH), Sink())
    assert finish.outcome == Exited(7)


async def test_F12_a_start_that_never_arrived_is_blocked_and_the_job_moves() -> None:
    link = SilentLink(RunLook())
    with pytest.raises(NeverBegan):
        await engine(link).runs.run(order(OnHostLoss.RELAUNCH), Sink())
    assert link.runs.claimed == ["f00d-1.1"]


@pytest.mark.parametrize(
    ("on_host_loss", "seconds"), [(OnHostLoss.RELAUNCH, START_GUARD_SECONDS), (OnHostLoss.FENCE, PATIENCE_SECONDS)]
)
async def test_F5_a_start_is_refused_after_the_end_of_its_lease(on_host_loss: OnHostLoss, seconds: float) -> None:
    link = SilentLink(ENDED)
    await engine(link).runs.run(order(on_host_loss), Sink())
    assert link.runs.not_after == UPTIME + seconds


@pytest.mark.parametrize("worked_seconds", [0.0, 0.6])
async def test_F6_no_other_attempt_starts_before_the_lease_of_an_earlier_master_has_ended(
    monkeypatch: pytest.MonkeyPatch, worked_seconds: float
) -> None:
    monkeypatch.setattr(host_wait, "LEASE_MARGIN_SECONDS", 0.3)
    began = time.monotonic()
    with pytest.raises(Dropped):
        await engine().runs.run(order(OnHostLoss.FENCE, worked_seconds), Sink(), resume=True)
    longest_lease = max(PATIENCE_SECONDS, worked_seconds)
    assert time.monotonic() - began >= longest_lease + 0.3
