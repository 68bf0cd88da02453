"""How long batches still take, by the runtime estimates of their sweeps."""

from __future__ import annotations

from sshgrid.scheduler.active_sweeps import ActiveSweeps
from sshgrid.scheduler.running_batch import RunningBatch
from sshgrid.scheduler.sweep_state import SweepState
from sshgrid.sweeps.chunking import LONG_SECONDS
from sshgrid.sweeps.estimates import rest_seconds

# Extend or reduce a batch while the node has work for this long, so that the request arrives in time: the node's next
# report, a step of the scheduler and the way back must fit in, also when the master is busy.
AHEAD_SECONDS = 1.5


class BatchTimes:
    """Estimates for the batches of these sweeps."""

    def __init__(self, sweeps: ActiveSweeps) -> None:
        self._sweeps = sweeps

    def sweep(self, batch: RunningBatch) -> SweepState | None:
        """The sweep of a batch; None when it has ended."""
        return None if batch.sweep is None else self._sweeps.state(batch.sweep)

    def task_seconds(self, batch: RunningBatch) -> float | None:
        """The expected seconds of one task of this batch; None when nothing is known."""
        state = self.sweep(batch)
        return None if state is None else state.seconds_on(batch.node)

    def left_seconds(self, batch: RunningBatch) -> float:
        """The expected seconds until the last task of a batch ends."""
        if not batch.state.rest:
            return 0.0
        takes = self.task_seconds(batch)
        if takes is None:
            return LONG_SECONDS
        return (len(batch.state.rest) - 1) * takes + rest_seconds(takes, batch.state.ran_seconds)
