"""Each user's share of the slots: the input of fair share."""

from __future__ import annotations

from collections.abc import Mapping

from sshgrid.model import Phase
from sshgrid.policy import fair_share
from sshgrid.queue.active_jobs import ActiveJobs


class Shares:
    """Which users have slots now, and in which order they got their last one."""

    def __init__(self, active_jobs: ActiveJobs) -> None:
        self._active_jobs = active_jobs
        self._last_start: dict[str, int] = {}  # by owner: the number of the start
        self.starts = 0  # how many jobs and batches have started

    def note_start(self, owner: str) -> None:
        """Note that a job or batch of this user starts in a free slot."""
        self.starts += 1
        self._last_start[owner] = self.starts

    def by_owner(self) -> Mapping[str, float]:
        """The share of each user with waiting or running jobs; the smallest share starts next."""
        running = self._active_jobs.slots_in_use().by_owner()
        owners = {job.owner for job in self._active_jobs.in_phase(Phase.QUEUED)} | running.keys()
        self._last_start = {owner: start for owner, start in self._last_start.items() if owner in owners}
        return fair_share.shares(running, self._last_start, owners)
