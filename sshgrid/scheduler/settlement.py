"""Settles attempts that have ended: output to disk first, then the store, then memory and watchers.

The result of an attempt that is no longer live is dropped by the store.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

import msgspec

from sshgrid.clock import Clock
from sshgrid.engines import AttemptResult
from sshgrid.model import (
    Attempt,
    AttemptRecord,
    Cancelled,
    Crashed,
    Exited,
    HostLost,
    Job,
    Outcome,
    Phase,
    Step,
    Superseded,
    ToolchainBroken,
    sweep_of,
)
from sshgrid.nodes import NodePool
from sshgrid.policy import placement, retry
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.attempt_registry import AttemptRegistry, RunningAttempt
from sshgrid.scheduler.keyboards import Keyboards
from sshgrid.scheduler.running_batch import Ends

log = logging.getLogger(__name__)
MANY = 10  # this many attempts that ended together, or more, are logged in one line


class Settlement:
    """Settles attempts. `end_superseded` ends the attempts that a settled one has superseded."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        pool: NodePool,
        running: AttemptRegistry,
        keyboards: Keyboards,
        end_superseded: Callable[[Job], None],
        clock: Clock,
    ) -> None:
        self._active_jobs = active_jobs
        self._pool = pool
        self._running = running
        self._keyboards = keyboards
        self._end_superseded = end_superseded
        self._clock = clock

    def settle(self, running: RunningAttempt, result: AttemptResult) -> None:
        """Settle one attempt: durable on return."""
        self.settle_all([(running, result)])

    def settle_all(self, ends: Ends) -> None:
        """Settle attempts that ended together with one commit: durable on return."""
        now = self._clock.wall()
        self._pool.shared.spool.outputs.sync([(running.attempt.job, running.attempt.number) for running, _ in ends])
        with self._active_jobs.store.transaction():
            settled = [found for running, result in ends if (found := self._write(running, result, now))]
        for running, _ in ends:
            if self._running.remove(running):
                self._keyboards.remove(running.attempt.job)
        with self._active_jobs.memory_update():
            outcomes = [self._publish(attempt, job) for attempt, job in settled]
        if len(settled) < MANY:
            for (attempt, _), outcome in zip(settled, outcomes, strict=True):
                log.info("attempt %s on %s: %s", attempt, attempt.node, outcome)
        else:
            first, last = settled[0][0], settled[-1][0]
            log.info("attempts %s to %s on %s: %s", first, last, first.node, dict(Counter(map(str, outcomes))))

    def _write(self, running: RunningAttempt, result: AttemptResult, now: float) -> tuple[Attempt, Job] | None:
        """Write the end of one attempt to the store; None when the attempt is no longer live."""
        attempt = running.attempt
        if running.superseded:
            log.info("attempt %s was superseded and has ended", attempt)
            return None
        job = self._active_jobs.current(attempt.job)
        outcome = _with_cancel(job, result.outcome)
        record = msgspec.structs.replace(
            running.record, outcome=outcome, ended=now, usage=result.usage, why_compiled=self._why_compiled(running)
        )
        has_untried_node = isinstance(outcome, HostLost | ToolchainBroken) and placement.has_untried_node(
            self._pool.views(), job.submission, job.excluded | {attempt.node}
        )
        settled = retry.settle(
            job, record, outcome, self._pool.shared.retry, now, self._pool.shared.rng, has_untried_node
        )
        store = self._active_jobs.store
        another_runs = settled.phase is Phase.RUNNING
        if not (
            store.attempts.settle_one_of_two(attempt, record)
            if another_runs
            else store.attempts.settle(attempt, record, settled)
        ):
            log.info("attempt %s: late result dropped", attempt)
            return None
        return attempt, settled

    def _publish(self, attempt: Attempt, job: Job) -> Outcome | Superseded | None:
        """Update memory and watchers after the end of an attempt; return its outcome."""
        record = next(record for record in job.attempts if record.number == attempt.number)
        self._judge_node(attempt, record)
        if job.submission.verify_build and record.why_compiled:
            text = f"{attempt.node} compiled the program itself: {record.why_compiled}"
            self._active_jobs.notifications.add_notice(sweep_of(job.id) or job.id, text)
        if not self._active_jobs.has_ended(job.id):  # else an earlier result has already ended the job
            self._active_jobs.update(job)
        self._end_superseded(job)
        return record.outcome

    def _judge_node(self, attempt: Attempt, record: AttemptRecord) -> None:
        """Count a lost run against its node's quarantine, and a completed one in favour of the node."""
        node = self._pool.nodes.get(attempt.node)
        if node is None:
            return
        if isinstance(record.outcome, HostLost) and record.step is Step.RUNNING:
            node.lost_a_run()
        elif isinstance(record.outcome, Exited):
            node.quarantine = node.quarantine.run_ended()

    def _why_compiled(self, running: RunningAttempt) -> str:
        """Why the node compiled the program although builds of other nodes may be used; "" when that is not so."""
        if not running.record.compiled or not running.build_key:
            return ""
        return self._pool.shared.builds.why_not_taken(running.build_key, running.attempt.node)


def _with_cancel(job: Job, outcome: Outcome) -> Outcome:
    """Cancelled for an attempt that ended after a cancel request, whatever its program returned."""
    if job.cancel_requested and not isinstance(outcome, HostLost | Crashed):
        return Cancelled(job.cancel_by)
    return outcome
