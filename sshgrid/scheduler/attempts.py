"""Attempts under way: one asyncio task each that starts or resumes a run, follows it, and settles its result.

An asyncio task that is cancelled because the master exits settles nothing: its run continues, and the next master
resumes it.
Batches of a sweep are in batch_attempts, signals and cancels in termination, results in settlement.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import msgspec

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.engines import AttemptResult
from sshgrid.errors import NeverBegan, SshgridError
from sshgrid.model import Attempt, Cancelled, Fetched, HostLost, Job, Step, job_text, sweep_of
from sshgrid.node.managed_node import ManagedNode
from sshgrid.node.slots import Share
from sshgrid.nodes import NodePool
from sshgrid.policy import retry, states
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.attempt_registry import AttemptRegistry, RunningAttempt
from sshgrid.scheduler.attempt_tasks import AttemptTasks, result_or_blame
from sshgrid.scheduler.batch_attempts import BatchAttempts
from sshgrid.scheduler.keyboards import Keyboards
from sshgrid.scheduler.launching import Launching
from sshgrid.scheduler.run_removal import RunRemoval
from sshgrid.scheduler.running_batch import Begun, by_batch
from sshgrid.scheduler.settlement import Settlement
from sshgrid.scheduler.termination import Termination
from sshgrid.spool.outputs import Outputs

# A master that exits waits at most this long for runs that are about to end, and for removals of ended ones.
LEAVE_SECONDS = 2.0


class AttemptSink:
    """Receives what an engine reports of one attempt: to disk first, to watchers second."""

    def __init__(self, active_jobs: ActiveJobs, outputs: Outputs, running: RunningAttempt) -> None:
        self._active_jobs = active_jobs
        self._outputs = outputs
        self._running = running

    def kept(self, stream: str) -> int:
        attempt = self._running.attempt
        return self._outputs.resume(attempt.job, attempt.number, stream)

    async def output(self, stream: str, piece: bytes) -> None:
        if self._running.superseded:
            return
        attempt = self._running.attempt
        self._outputs.append(attempt.job, attempt.number, stream, piece)
        self._active_jobs.notifications.notify(attempt.job)

    async def step(self, step: Step) -> None:
        if step is self._running.record.step:
            return
        self._change(step=step)
        if step is Step.RUNNING:
            # The next master must know whether the program ran when the host was lost.
            self._active_jobs.store.attempts.note(self._running.attempt, self._running.record)

    async def uploaded(self, count: int, left: int = 0) -> None:
        self._change(uploaded_bytes=self._running.record.uploaded_bytes + count, upload_left_bytes=left)

    async def compiled(self, compiled: bool) -> None:
        if self._running.record.compiled is not compiled:
            self._change(compiled=compiled)

    def fetch_room(self) -> int:
        if self._running.superseded:
            return 0
        job = self._active_jobs.current(self._running.attempt.job)
        return 0 if job.cancel_requested else self._outputs.room()

    async def restart_stream(self, stream: str) -> None:
        attempt = self._running.attempt
        self._outputs.restart(attempt.job, attempt.number, stream)

    async def fetched(self, fetched: Fetched) -> None:
        self._change(fetched=fetched)

    def _change(self, **changes: object) -> None:
        self._running.record = msgspec.structs.replace(self._running.record, **changes)
        self._active_jobs.notifications.notify(self._running.attempt.job)


class Attempts:
    """All attempts of this master that are under way, and the parts that run, end and settle them."""

    def __init__(self, active_jobs: ActiveJobs, pool: NodePool, clock: Clock = SYSTEM_CLOCK) -> None:
        self._active_jobs = active_jobs
        self._pool = pool
        self._clock = clock
        self._tasks = AttemptTasks(active_jobs.fail)
        self._removal = RunRemoval(self._tasks)
        self._launching = Launching(pool, clock)
        self.running = AttemptRegistry(active_jobs.store.grid)
        self.keyboards = Keyboards()
        # Termination and BatchAttempts need each other, so one gets a function.
        self.termination = Termination(
            pool, self.running, self._tasks, lambda running, node: self.batches.revoke_cancelled(running, node)
        )
        self.settlement = Settlement(
            active_jobs, pool, self.running, self.keyboards, self.termination.end_superseded, clock
        )
        self.batches = BatchAttempts(
            active_jobs,
            pool,
            self.running,
            self._tasks,
            self._launching,
            self.settlement,
            self.termination,
            self._removal,
            clock,
        )

    # --- start or resume

    def start(self, job: Job, attempt: Attempt) -> None:
        """Run the attempt that the store has claimed."""
        record = job.attempts[-1]
        if attempt.number > 1 and not record.speculative:
            self._announce_retry(job, attempt)
        self._start((job, record), resume=False)

    def resume(self, jobs: Iterable[Job]) -> None:
        """Follow the runs and batches that an earlier master started: every live attempt of each job."""
        alone, batches = by_batch((job, record) for job in jobs for record in job.live)
        for begun in alone:
            self._start(begun, resume=True)
        for batch in batches:
            self.batches.resume(batch)

    def _start(self, begun: Begun, *, resume: bool) -> None:
        job, record = begun
        running = self.running.add(job, record)
        if node := self._pool.nodes.get(record.node):
            node.slots.begin(running.run, Share(job.submission.slots, record.gpus))
        running.follower = self._tasks.start(self._follow(job, running, resume), f"attempt {running.attempt}")
        self._active_jobs.notifications.notify(job.id)
        if resume:
            self.termination.end_if_requested(job, running)

    def _announce_retry(self, job: Job, attempt: Attempt) -> None:
        """Notify watchers why the job runs again, and where."""
        before = job.attempts[-2]
        why = states.outcome_text(before.outcome) if before.outcome else "gone"
        allowed = retry.attempts_allowed(job, self._pool.shared.retry)
        where = f"moved to {attempt.node}" if attempt.node != before.node else f"trying {attempt.node} again"
        word = "lost" if isinstance(before.outcome, HostLost) else "failed"
        text = f"{before.node} {word} ({why}), {where} (attempt {attempt.number} of {allowed})"
        sweep = sweep_of(job.id)
        if sweep is None:
            self._active_jobs.notifications.add_notice(job.id, text)
        else:
            self._active_jobs.notifications.add_notice(sweep, f"task {job_text(job.id)}: {text}")

    # --- follow and settle

    async def _follow(self, job: Job, running: RunningAttempt, resume: bool) -> None:
        """Run or resume one attempt, settle its result, and remove its folder."""
        node = self._pool.nodes.get(running.attempt.node)
        if node is None:
            gone = HostLost(f"{running.attempt.node} is no longer in the inventory")
            self.settlement.settle(running, AttemptResult(gone))
            return
        try:
            result = await self._result(job, running, node, resume)
        finally:
            node.slots.end(running.run)
        self.settlement.settle(running, result)
        self._removal.start(node, running.run, never_began=running.refused or running.never_began)

    async def _result(self, job: Job, running: RunningAttempt, node: ManagedNode, resume: bool) -> AttemptResult:
        try:
            work = self._run(job, running, node, resume)
            return await result_or_blame(f"attempt {running.attempt}", node, work)
        except asyncio.CancelledError:
            if not running.refused:
                raise
            return AttemptResult(Cancelled())

    async def _run(self, job: Job, running: RunningAttempt, node: ManagedNode, resume: bool) -> AttemptResult:
        if resume:
            await node.connected(self._launching.patience_seconds(job, running))
        spec = self._launching.spec(job, running, node, resume=resume)
        sink = AttemptSink(self._active_jobs, self._pool.shared.spool.outputs, running)
        try:
            if spec.interactive and not resume:
                conversations = node.engine.conversations
                if conversations is None:
                    raise SshgridError(f"{node.name} cannot run interactive programs")
                return await conversations.converse(spec, sink, self.keyboards.of(job.id))
            return await node.engine.runs.run(spec, sink, resume=resume)
        except NeverBegan:
            running.never_began = True
            raise

    def ran_seconds(self, job: Job, now: float) -> float | None:
        """How long the oldest live attempt has run; None when it does not run yet or is about to end."""
        for running in self.running.of(job)[:1]:
            return self.batches.ran_seconds(running) if running.record.batch else now - running.record.began
        return None

    # --- leave

    async def close(self) -> None:
        """Stop following; runs continue. Runs that have just ended are still removed: there may be no next master."""
        deadline = self._clock.monotonic() + LEAVE_SECONDS
        while (leaving := self._about_to_end()) and (rest := deadline - self._clock.monotonic()) > 0:
            await asyncio.wait(leaving, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
        await self._tasks.cancel_all()

    def _about_to_end(self) -> set[asyncio.Task[None]]:
        """Removals in progress, and followers of runs that are about to end."""
        superseded = {
            running.follower
            for running in self.running
            if running.superseded and not running.record.batch and running.follower
        }
        idle = {batch.follower for batch in self.batches.all if batch.state.all_ended and batch.follower}
        return self._removal.in_progress | superseded | idle
