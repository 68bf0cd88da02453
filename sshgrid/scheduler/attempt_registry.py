"""The attempts of this master that are under way, and the newest record of each."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import msgspec

from sshgrid.engines.launch import run_name
from sshgrid.model import Attempt, AttemptRecord, Job, JobId, Step, Superseded, sweep_of


class RunningAttempt:
    """One attempt under way. Its `record` is newer than the store's: not every step is worth a commit."""

    def __init__(self, attempt: Attempt, record: AttemptRecord, run: str) -> None:
        self.attempt = attempt
        self.record = record
        self.run = run  # the name of its folder on the node
        self.build_key = ""  # set when a build of another node may be used
        self.follower: asyncio.Task[None] | None = None
        self.termination: asyncio.Task[None] | None = None
        # For both, its run folder on the node is claimed, so it cannot start.
        self.refused = False  # cancelled before it started
        self.never_began = False  # not found on the node
        self.superseded = False  # another attempt ended first: this one is being ended and its result is ignored


class AttemptRegistry:
    """All attempts under way. `grid` identifies this queue in the names of runs."""

    def __init__(self, grid: str) -> None:
        self._grid = grid
        self._attempts: dict[tuple[JobId, int], RunningAttempt] = {}  # by job and number of the attempt

    def __iter__(self) -> Iterator[RunningAttempt]:
        return iter(self._attempts.values())

    def add(self, job: Job, record: AttemptRecord) -> RunningAttempt:
        """Register an attempt that has been claimed in the store."""
        attempt = Attempt(job.id, record.number, record.node)
        running = RunningAttempt(attempt, record, run_name(self._grid, attempt))
        self._attempts[job.id, record.number] = running
        return running

    def remove(self, running: RunningAttempt) -> bool:
        """Remove an attempt that has ended and stop sending signals to it; False when it was removed before."""
        if running.termination is not None:
            running.termination.cancel()
        return self._attempts.pop((running.attempt.job, running.attempt.number), None) is not None

    def of(self, job: Job) -> list[RunningAttempt]:
        """The live attempts of a job: two while a speculative attempt runs."""
        found = (self._attempts.get((job.id, record.number)) for record in job.live)
        return [running for running in found if running is not None]

    def superseded_of(self, job: Job) -> list[RunningAttempt]:
        """The attempts of a job that another attempt of it has superseded, and that have not ended yet."""
        records = (record for record in job.attempts if isinstance(record.outcome, Superseded))
        found = (self._attempts.get((job.id, record.number)) for record in records)
        return [running for running in found if running is not None]

    def with_live_records(self, job: Job) -> Job:
        """The job with the newest record of each live attempt, which the store need not have."""
        newest = {running.attempt.number: running.record for running in self.of(job)}
        if not newest:
            return job
        records = (newest.get(record.number, record) for record in job.attempts)
        return msgspec.structs.replace(job, attempts=tuple(records))

    def longest_running(self, sweep: JobId) -> JobId | None:
        """The task of this sweep whose program started first, of those that still run; None when there is none."""
        ours = (running for running in self if sweep_of(running.attempt.job) == sweep)
        programs = (each for each in ours if each.record.step is Step.RUNNING and not each.superseded)
        return min(((each.record.began, each.attempt.job) for each in programs), default=(0.0, None))[1]
