"""Read-only questions about jobs and sweeps: lists, one job, counts, progress, and events as they happen.

Most jobs in a list wait for the same reason, so the reason is computed once per kind of job and list.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import assert_never

import msgspec

from sshgrid.clock import Clock
from sshgrid.model import Inventory, Job, JobId, Phase, Program, Submission
from sshgrid.nodes import NodePool
from sshgrid.notation import selectors
from sshgrid.policy import placement, retry, states
from sshgrid.policy.placement import NodeView
from sshgrid.protocol.messages import JobLine, Jobs, Logs, NodeReason, Watch
from sshgrid.protocol.sweep_messages import SweepProgress, TaskLine, WatchSweep
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.reports.lines import job_line
from sshgrid.reports.sweep_report import RunningAttempts, SweepReport, SweepSource
from sshgrid.reports.sweep_watch import SweepWatcher
from sshgrid.reports.watch import Events, JobWatcher, LogReader, follow

_RANK = {Phase.RUNNING: 0, Phase.QUEUED: 1, Phase.DONE: 2}
_NOTHING = Submission(Program("", "", ()), "")


class _Moment:
    """The nodes at one moment, and why jobs wait at that moment."""

    def __init__(
        self,
        views: Callable[[], Sequence[NodeView]],
        may_start: Callable[[str], bool],
        views_of: Callable[[Sequence[NodeView], str], Sequence[NodeView]],
    ) -> None:
        views = functools.cache(views)  # read for waiting jobs only, and most jobs in a list do not wait
        self.views = functools.cache(lambda owner: views_of(views(), owner))
        self._may_start = functools.cache(may_start)
        self._codes: dict[object, str] = {}

    def pending_code(self, job: Job) -> str:
        if not self._may_start(job.owner):
            return "UserLimit"
        views = self.views(job.owner)
        key = id(views), placement.requirements(job.submission), job.excluded
        if key not in self._codes:
            self._codes[key] = placement.pending_code(views, job.submission, job.excluded)
        return self._codes[key]


class JobQueries:
    """Answers questions about the jobs of a master.

    `inventory` returns the inventory as it is now, `may_start` whether a user may start one more job, `views_of` the
    nodes as a user may use them.
    """

    def __init__(
        self,
        active_jobs: ActiveJobs,
        pool: NodePool,
        sweeps: SweepSource,
        attempts: RunningAttempts,
        *,
        inventory: Callable[[], Inventory],
        may_start: Callable[[str], bool],
        views_of: Callable[[Sequence[NodeView], str], Sequence[NodeView]],
        clock: Clock,
    ) -> None:
        self._active_jobs = active_jobs
        self._spool = pool.shared.spool
        self._pool = pool
        self._attempts = attempts
        self._inventory = inventory
        self._may_start = may_start
        self._views_of = views_of
        self._clock = clock
        self._sweeps = SweepReport(active_jobs, self._spool, sweeps, attempts, self._disconnected, clock)

    # --- many jobs

    def select(self, query: Jobs, seen_by: str = "") -> list[JobLine]:
        """The jobs that `query` selects; with `seen_by` only the jobs of this user."""
        if not seen_by and query.limit and query == Jobs(active_only=True, limit=query.limit):
            found = self._active_jobs.active()  # the monitor asks this every other second: do not read the store for it
        else:
            found = self._stored(query, seen_by)
        if query.limit:
            found = sorted(found, key=lambda job: (_RANK[job.phase], job.id))[: query.limit]
        moment = self._moment()
        lines = [self._line(job, moment) for job in found]
        return [line for line in lines if not query.states or line.state in query.states]

    def _stored(self, query: Jobs, seen_by: str) -> list[Job]:
        store = self._active_jobs.store
        ids = selectors.jobs(query.selector, store.jobs.ids(seen_by)) if query.selector else None
        if seen_by and query.user not in ("", seen_by):
            return []
        since = self._clock.wall() - query.since_seconds if query.since_seconds is not None else 0.0
        return store.jobs.select(ids, active_only=query.active_only, owner=seen_by or query.user, since=since)

    def counts(self, owner: str = "") -> dict[str, int]:
        """The number of jobs in each state, of one owner or of all, without reading each job."""
        found: dict[str, int] = {}
        for phase, verdict, number in self._active_jobs.store.jobs.tally(owner):
            state = states.state(Job(JobId(0), "", _NOTHING, 0.0, phase=phase, verdict=verdict))
            found[state] = found.get(state, 0) + number
        return found

    def files_of(self, owner: str) -> set[str]:
        """The digests of all uploaded files that jobs of this owner name."""
        return self._active_jobs.store.jobs.blobs(owner)

    # --- one job

    def owner(self, job: JobId) -> str:
        """The user who submitted the job. Raises NoSuchJob."""
        return self._active_jobs.current(job).owner

    def info(self, job: JobId) -> JobLine:
        """One job in detail. Raises NoSuchJob."""
        return self.line(self._active_jobs.current(job), explain=True)

    def progress(self, job: JobId) -> SweepProgress:
        """Counts of a sweep's tasks by state. Raises NoSuchJob, UsageError."""
        return self._sweeps.progress(self._active_jobs.current(job))

    def tasks(self, job: JobId, wanted: tuple[str, ...]) -> tuple[TaskLine, ...]:
        """A sweep's tasks that have begun; with `wanted` only those in these states. Raises NoSuchJob, UsageError."""
        return self._sweeps.tasks(self._active_jobs.current(job), wanted)

    @asynccontextmanager
    async def watch(self, request: Watch | WatchSweep | Logs) -> AsyncIterator[Events]:
        """The events of one job until it has ended. Raises NoSuchJob, UsageError."""
        events = self._events(request)
        try:
            yield events
        finally:
            await events.aclose()

    def _events(self, request: Watch | WatchSweep | Logs) -> Events:
        active_jobs, spool, line = self._active_jobs, self._spool, self.line
        active_jobs.current(request.job)
        match request:
            case WatchSweep():
                sweep = SweepWatcher(active_jobs, spool, self._sweeps, request)
                return follow(active_jobs, request.job, sweep, line, pause=sweep.pause)
            case Watch():
                return follow(active_jobs, request.job, JobWatcher(active_jobs, spool, line, request), line)
            case Logs():
                log = LogReader(active_jobs, spool, request)
                return follow(active_jobs, request.job, log, line, once=not request.follow)
            case _:
                assert_never(request)

    # --- lines

    def line(self, job: Job, explain: bool = False) -> JobLine:
        """One job as `ps` shows it; `explain` adds for a waiting job what rules each node out."""
        return self._line(job, self._moment(), explain)

    def _moment(self) -> _Moment:
        return _Moment(self._pool.views, self._may_start, self._views_of)

    def _line(self, job: Job, moment: _Moment, explain: bool = False) -> JobLine:
        now = self._clock.wall()
        job = self._attempts.with_live_records(job)
        if job.submission.sweep:
            return self._sweep_line(job, now, moment)
        inventory = self._inventory()
        allowed = retry.attempts_allowed(job, inventory.retry)
        pending, why = "", tuple[NodeReason, ...]()
        if job.phase is Phase.QUEUED:
            pending = moment.pending_code(job)
            if explain:
                why = placement.explain(moment.views(job.owner), job.submission, job.excluded, inventory.languages)
        return job_line(job, now, allowed, self._disconnected(job), pending, why)

    def _sweep_line(self, job: Job, now: float, moment: _Moment) -> JobLine:
        """A sweep is running when it has not ended and one of its tasks has begun."""
        progress = self._sweeps.progress(job)
        pending = moment.pending_code(job) if job.phase is Phase.QUEUED else ""
        line = job_line(job, now, 1, pending=pending)
        if job.phase is Phase.DONE:
            return msgspec.structs.replace(line, sweep=progress, seconds=(job.ended or now) - job.submitted)
        if not (progress.running or progress.ended):
            return msgspec.structs.replace(line, sweep=progress)
        return msgspec.structs.replace(
            line,
            sweep=progress,
            state="RUNNING",
            seconds=now - job.submitted,
            reason=job.held or f"{progress.ended} of {progress.tasks} done",
        )

    def _disconnected(self, job: Job) -> bool:
        """Whether the job runs, and the master is connected to none of its nodes."""
        return bool(job.live) and not any(self._is_up(record.node) for record in job.live)

    def _is_up(self, node: str) -> bool:
        managed = self._pool.nodes.get(node)
        return managed is not None and managed.up
