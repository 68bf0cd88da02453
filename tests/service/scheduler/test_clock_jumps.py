"""A wall clock that jumps (NTP, a laptop that wakes, a user) changes only the times that are displayed."""

from __future__ import annotations

import time
from random import Random

import pytest

from sshgrid.clock import Clock
from sshgrid.errors import Dropped
from sshgrid.model import Exited, Outcome, RetryPolicy, Step
from sshgrid.testing import Stage, until
from tests.service.conftest import Grids

HOUR = 3600.0


class TurnedClock:
    """A system clock whose wall time a test can turn."""

    def __init__(self) -> None:
        self.turned = 0.0
        self.clock = Clock(lambda: time.time() + self.turned, time.monotonic)


@pytest.mark.parametrize("hours", [-1, 1])
async def test_F37_a_jump_of_the_wall_clock_makes_no_node_silent_and_changes_no_uptime(
    grids: Grids, hours: int
) -> None:
    turned = TurnedClock()
    grid = await grids(clock=turned.clock)
    node = await until(lambda: grid.node("n1") if grid.node("n1").facts else None)
    uptime = node.uptime_now()
    turned.turned = hours * HOUR
    assert node.silent_seconds() < 60.0
    assert 0.0 <= node.uptime_now() - uptime < 60.0
    assert abs(node.liveness.last_seen - turned.clock.wall()) < 60.0


class Slowest(Random):
    def uniform(self, a: float, b: float) -> float:
        return b


async def test_F37_a_wall_clock_set_back_makes_no_backoff_longer_than_the_policy_allows(grids: Grids) -> None:
    async def loses_its_host(stage: Stage) -> Outcome:
        await stage.enter(Step.RUNNING)
        raise Dropped(stage.node, "reset")

    turned = TurnedClock()
    policy = RetryPolicy(retries=2, backoff_seconds=0.5, backoff_max_seconds=0.5, patience_min_seconds=0.05)
    grid = await grids(loses_its_host, Exited(0), nodes=("n1",), retry=policy, clock=turned.clock)
    grid.pool.shared.rng = Slowest()
    job = await grid.submit()
    await until(lambda: grid.job(job).not_before > turned.clock.wall())
    turned.turned = -HOUR
    assert (await grid.wait(job)).state == "COMPLETED"
