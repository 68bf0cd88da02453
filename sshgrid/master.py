"""The master: connects the parts of a grid, and makes the changes that clients request.

Which node a job gets is decided by the scheduler, and how an attempt runs by the attempts; questions that only read are
answered by `job_queries` and `node_queries`. Each change is written to the store before
memory.
"""

from __future__ import annotations

import signal as signals
from collections.abc import Sequence
from pathlib import Path
from random import Random

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.errors import NoNodeLeft, SshgridError, UnknownLanguage, UsageError
from sshgrid.model import Cancelled, Inventory, Job, JobId, Phase, Submission
from sshgrid.nodes import NodePool
from sshgrid.policy import placement, states, user_limits
from sshgrid.protocol.messages import Cancel, ExplainReply
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.reports.job_queries import JobQueries
from sshgrid.reports.node_queries import NodeQueries
from sshgrid.scheduler import admission
from sshgrid.scheduler.active_sweeps import ActiveSweeps
from sshgrid.scheduler.admission import inputs_of
from sshgrid.scheduler.attempts import Attempts
from sshgrid.scheduler.scheduler import Scheduler
from sshgrid.scheduler.user_limits import UserLimits
from sshgrid.scheduler.waiting_jobs import DECIDE_SECONDS
from sshgrid.spool.local_files import LocalFiles
from sshgrid.spool.spool import Spool
from sshgrid.sweeps.checks import is_success
from sshgrid.users.accounts import Accounts

# The names that `kill` accepts on every node: no numbers, no real-time signals.
SIGNALS = frozenset(name.removeprefix("SIG") for name in signals.Signals.__members__ if not name.startswith("SIGRT"))
MAX_WINDOW = 65535  # columns or rows: a terminal keeps them in 16 bits
DECIDE_LOOK_SECONDS = 0.25  # pause between two looks in `_check_possible`


class Master:
    """One grid. `run` works until it is cancelled; `close` ends what the master has open."""

    def __init__(
        self,
        pool: NodePool,
        active_jobs: ActiveJobs,
        inventory: Inventory,
        rng: Random,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.pool = pool
        self.active_jobs = active_jobs
        self.inventory = inventory
        self._rng = rng
        self._clock = clock
        self.attempts = Attempts(active_jobs, pool, clock)
        self.accounts = Accounts(active_jobs, lambda job, by: self._cancel(job, "TERM", by), clock)
        self.sweeps = ActiveSweeps(
            active_jobs, self.spool.blobs, lambda task: self._cancel(task, "TERM", "its sweep"), clock
        )
        limits = UserLimits(active_jobs, self.accounts.caps)
        self.scheduler = Scheduler(
            active_jobs, pool, self.attempts, self.sweeps, limits, inventory.placement, rng, clock
        )
        self.local_files = LocalFiles(self.spool, clock)
        self.job_queries = JobQueries(
            active_jobs,
            pool,
            self.sweeps,
            self.attempts.running,
            inventory=lambda: self.inventory,
            may_start=limits.may_start,
            views_of=limits.views_of,
            clock=clock,
        )
        self.node_queries = NodeQueries(pool, active_jobs.notifications, lambda: self.inventory, clock)

    @property
    def spool(self) -> Spool:
        return self.pool.shared.spool

    # --- the life of a master

    async def run(self) -> None:
        """Resume what an earlier master left, then start what waits; until cancelled."""
        self._discard_unknown_output()
        self.sweeps.resume()
        await self.use_inventory(self.inventory)
        self.attempts.resume(self.active_jobs.in_phase(Phase.RUNNING))
        await self.scheduler.run()

    def _discard_unknown_output(self) -> None:
        """Remove output of jobs and attempts that the queue does not have.

        An earlier master may have been killed while it removed a job, or the queue may come from a backup.
        """
        for job_id in set(self.spool.outputs.jobs()) - set(self.active_jobs.store.jobs.ids()):
            self.spool.outputs.remove(job_id)
        for job in (*self.active_jobs.in_phase(Phase.QUEUED), *self.active_jobs.in_phase(Phase.RUNNING)):
            self.spool.outputs.remove_after(job.id, job.attempts[-1].number if job.attempts else 0)

    async def use_inventory(self, inventory: Inventory) -> None:
        """Use the nodes and settings of this inventory from now on."""
        self.inventory = inventory
        self.scheduler.use_inventory(inventory)
        await self.pool.use_inventory(inventory.nodes, inventory.languages, inventory.retry)

    async def drop_removed_nodes(self) -> None:
        """Drop nodes that the inventory no longer has and whose last run has ended."""
        names = {node.name for node in self.inventory.nodes}
        if any(managed.name not in names and not managed.slots.running for managed in self.pool.nodes.values()):
            await self.use_inventory(self.inventory)

    def pause(self) -> None:
        """Start no more attempts; those that run continue."""
        self.scheduler.paused = True

    async def close(self) -> None:
        """Close everything; runs on nodes continue, and the next master resumes them."""
        await self.local_files.close()
        await self.attempts.close()
        await self.pool.close()
        self.accounts.close()
        self.spool.close()
        self.active_jobs.store.close()

    # --- submissions

    async def submit(self, submission: Submission, key: str, owner: str = "") -> JobId:
        """Accept a job; it is durable on return. A `key` that this owner has used before returns the earlier job.

        Raises UnknownLanguage, NoNodeLeft, UsageError, OverLimit.
        """
        if before := self.active_jobs.store.jobs.by_key(owner, key):
            return before.id  # it was accepted before, even if no node could take it now
        caps = self.accounts.caps(owner)
        waiting = 0 if caps.queued is None else self.active_jobs.queued_of(owner) + self.sweeps.unstarted(owner)
        submission = user_limits.apply_caps(submission, caps, waiting)
        submission = admission.complete(submission, self.inventory.languages, self.spool)
        await self._check_possible(submission)
        job = self.active_jobs.store.add(submission, owner, key, self._clock.wall())
        if submission.sweep:
            self.sweeps.add(job)
        self.active_jobs.update(job)
        return job.id

    async def _check_possible(self, submission: Submission) -> None:
        """Raise UnknownLanguage or NoNodeLeft when no node can ever run this.

        Waits up to DECIDE_SECONDS for nodes that have not been asked about the language yet.
        """
        deadline = self._clock.monotonic() + DECIDE_SECONDS
        language = submission.program.language
        while True:
            views = self.pool.views()
            if impossible := placement.permanently_impossible(views, submission, self.inventory.languages):
                code, message = impossible
                raise _refusal(code, message)
            able = any(language in view.toolchains for view in views)
            if able or not self.pool.undecided(language) or self._clock.monotonic() > deadline:
                return
            self.pool.want(language)
            await self.active_jobs.notifications.changed(None, DECIDE_LOOK_SECONDS)

    async def explain(self, submission: Submission) -> ExplainReply:
        """Where this submission would run now, and what rules the other nodes out. Raises as `submit`."""
        submission = admission.complete(submission, self.inventory.languages, self.spool)
        await self._check_possible(submission)
        views = self.pool.views()
        policy = placement.POLICIES[self.inventory.placement]
        chosen = placement.place(views, submission, (), policy, self._rng, self.scheduler.shares.starts)
        able = placement.eligible(views, submission)
        return ExplainReply(
            chosen.node.name if chosen else "",
            tuple((view.node.name, placement.score(view)) for view in able),
            placement.explain(views, submission, (), self.inventory.languages),
        )

    # --- changes of jobs

    async def cancel(self, request: Cancel, by: str = "") -> int:
        """Cancel jobs, or only send them a signal. Return how many of them had not ended.

        Raises NoSuchJob, UsageError, HostError.
        """
        if request.signal not in SIGNALS:
            raise UsageError(f"no such signal: {request.signal[:80]!r}", "--signal KILL")
        ending = request.signal in ("INT", "TERM", "KILL")
        count = 0
        for job_id in request.jobs:
            job = self.active_jobs.current(job_id)
            if job.phase is Phase.DONE:
                continue
            count += 1
            if ending:
                self._cancel(job, request.signal, by)
            else:
                await self.attempts.termination.send_signal(job, request.signal)
        return count

    def _cancel(self, job: Job, signal: str, by: str) -> None:
        """End a job, with this signal if it runs. A sweep stays QUEUED until its last task has ended."""
        reason = f"{signal} by {by}" if by else signal
        job = self.active_jobs.store.request_cancel(job.id, reason)
        if job.submission.sweep and job.phase is Phase.QUEUED:
            self.active_jobs.update(job)
            self.sweeps.update(job, lambda task: self._cancel(task, signal, by))
        elif job.phase is Phase.QUEUED:
            self.active_jobs.store.finish(job.id, Cancelled(reason), self._clock.wall())
            self.attempts.keyboards.remove(job.id)
            self.active_jobs.reread(job.id)
        elif job.phase is Phase.RUNNING:
            self.active_jobs.update(job)
            self.attempts.termination.end(job, signal)

    async def send_input(self, job_id: JobId, piece: bytes) -> None:
        """Send bytes to the standard input of an interactive run; b"" closes it. Other runs ignore them."""
        await self.attempts.keyboards.put_input(self.active_jobs.current(job_id), piece)

    async def resize(self, job_id: JobId, columns: int, rows: int) -> None:
        """Set the window size of an interactive run on a terminal. Raises UsageError."""
        if not (0 <= columns <= MAX_WINDOW and 0 <= rows <= MAX_WINDOW):
            raise UsageError(f"not a window size: {columns} columns, {rows} rows")
        await self.attempts.keyboards.put_window_size(self.active_jobs.current(job_id), columns, rows)

    async def hold(self, jobs: Sequence[JobId], release: bool) -> int:
        """Keep waiting jobs from starting, or release them. Return how many of them wait."""
        waiting = [job_id for job_id in jobs if self.active_jobs.current(job_id).phase is Phase.QUEUED]
        for job_id in waiting:
            job = self.active_jobs.store.hold(job_id, "" if release else states.HELD_BY_USER)
            self.active_jobs.update(job)
            self.sweeps.update(job)
        return len(waiting)

    async def retry(self, jobs: Sequence[JobId], failed: bool) -> int:
        """Queue ended jobs again; with `failed` only those that did not succeed.

        Return how many jobs and tasks were queued. Raises NoSuchJob, UsageError.
        """
        count = 0
        for job_id in jobs:
            job = self.active_jobs.current(job_id)
            if job.submission.sweep:
                count += self._retry_sweep(job, failed)
            elif not (failed and is_success(job.verdict)):
                count += self.active_jobs.retry([job.id])
                self.active_jobs.reread(job.id)
        return count

    def _retry_sweep(self, job: Job, failed: bool) -> int:
        if job.phase is not Phase.DONE:
            raise UsageError(f"sweep {job.id} has not ended", f"sshgrid wait {job.id}")
        ended = self.active_jobs.store.jobs.task_verdicts(job.id)
        again = [task for task, phase, verdict in ended if phase is Phase.DONE and not (failed and is_success(verdict))]
        unbegun = self.job_queries.progress(job.id).left
        if not again and not unbegun:
            return 0
        self.active_jobs.retry([*again, job.id])
        self.sweeps.add(self.active_jobs.store.jobs.get(job.id))
        for task in again:
            self.active_jobs.reread(task)
        self.active_jobs.reread(job.id)
        return len(again) + unbegun

    async def remove(self, jobs: Sequence[JobId]) -> int:
        """Remove ended jobs, their output, and uploaded files that no other job needs."""
        for job_id in jobs:
            self.active_jobs.remove(job_id)
            self.spool.outputs.remove(job_id)
            self.active_jobs.notifications.drop_notices(job_id)
        store = self.active_jobs.store
        inputs = inputs_of(store.jobs.input_lists(), self.spool)
        self.spool.blobs.evict(store.jobs.blobs() | inputs, self._clock.wall())
        return len(jobs)

    def back_up(self, path: Path) -> None:
        """Write a copy of the queue to a new file."""
        self.active_jobs.store.backup(path)


def _refusal(code: str, message: str) -> SshgridError:
    if code == "NoToolchain":
        return UnknownLanguage(message, "sshgrid toolchains")
    return NoNodeLeft(message, "sshgrid nodes")
