"""A node that loses several runs is quarantined, and jobs run on other nodes."""

from __future__ import annotations

import pytest

from sshgrid.errors import Dropped
from sshgrid.model import Exited, Outcome, Step
from sshgrid.policy import breaker
from sshgrid.protocol.messages import Nodes
from sshgrid.testing import Stage
from tests.service.conftest import Grids


async def loses_its_host(stage: Stage) -> Outcome:
    await stage.enter(Step.RUNNING)
    raise Dropped(stage.node, "reset")


async def test_F39_a_node_that_has_lost_three_runs_is_quarantined(
    grids: Grids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "SAME_LOSS_SECONDS", 0.0)  # losses at one moment count as one
    grid = await grids(*(loses_its_host, Exited(0)) * 3, nodes=("n1", "n2"))
    for _ in range(3):
        assert [attempt.node for attempt in (await grid.run()).attempts] == ["n1", "n2"]
    assert [attempt.node for attempt in (await grid.run()).attempts] == ["n2"]
    reasons = {node.name: node.reason for node in grid.master.node_queries.select(Nodes())}
    assert reasons == {"n1": "quarantined after losing several runs", "n2": ""}
