"""Batches under way: attempts of one sweep that share a start and a slot of a node, one after the other.

A batch can be extended while it runs, tasks that have not started can be revoked, and its slot can be released early.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sshgrid.clock import Clock
from sshgrid.engines import AttemptResult, Batches
from sshgrid.engines.launch import make_batch
from sshgrid.errors import HostError, NeverBegan, SshgridError
from sshgrid.model import Attempt, Cancelled, HostLost, Job, sweep_of
from sshgrid.node.managed_node import ManagedNode
from sshgrid.nodes import NodePool
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.attempt_registry import AttemptRegistry, RunningAttempt
from sshgrid.scheduler.attempt_tasks import AttemptTasks, result_or_blame
from sshgrid.scheduler.launching import Launching, Tasks
from sshgrid.scheduler.run_removal import RunRemoval
from sshgrid.scheduler.running_batch import Begun, RunningBatch
from sshgrid.scheduler.settlement import Settlement
from sshgrid.scheduler.termination import Termination

log = logging.getLogger(__name__)
NOT_REPORTED = AttemptResult(HostLost("the node reported no end of the run"))


class BatchAttempts:
    """All batches of this master that are under way."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        pool: NodePool,
        running: AttemptRegistry,
        tasks: AttemptTasks,
        launching: Launching,
        settlement: Settlement,
        termination: Termination,
        removal: RunRemoval,
        clock: Clock,
    ) -> None:
        self._active_jobs = active_jobs
        self._pool = pool
        self._running = running
        self._tasks = tasks
        self._launching = launching
        self._settlement = settlement
        self._termination = termination
        self._removal = removal
        self._clock = clock
        self._batches: dict[tuple[str, str], RunningBatch] = {}  # by node and name

    @property
    def holding_slots(self) -> list[RunningBatch]:
        """The batches that still have their slot."""
        return [batch for batch in self._batches.values() if not batch.released]

    @property
    def all(self) -> list[RunningBatch]:
        """Also the batches whose slot was released before their end."""
        return list(self._batches.values())

    def ran_seconds(self, running: RunningAttempt) -> float | None:
        """How long the program of this task of a batch has run; None while it waits behind another one."""
        batch = self._batches.get((running.attempt.node, running.record.batch))
        if batch is None or not batch.state.is_first(running.run):
            return None
        state, run = batch.state, running.run
        return None if run in state.leaving or run in state.joining else state.ran_seconds

    # --- start and follow

    def start(self, claimed: Sequence[tuple[Job, Attempt]], *, keep_warm: bool) -> None:
        """Start a batch of these claimed attempts. `keep_warm`: when all have ended, wait a moment for more."""
        self._start([(job, job.attempts[-1]) for job, _ in claimed], resume=False, keep_warm=keep_warm)

    def resume(self, attempts: Sequence[Begun]) -> None:
        """Follow the batch of these attempts, which an earlier master started."""
        self._start([*self._superseded_in(attempts), *attempts], resume=True)

    def _superseded_in(self, attempts: Sequence[Begun]) -> list[Begun]:
        """Superseded attempts that the earlier master may not have ended: the rest of the batch waits behind them."""
        job, record = attempts[0]
        sweep = sweep_of(job.id)
        plan = None if sweep is None else self._active_jobs.current(sweep).submission.sweep
        if sweep is None or plan is None or not plan.backup:
            return []
        found = self._active_jobs.store.jobs.superseded(sweep)
        return [(self._active_jobs.current(task), each) for task, each in found if each.batch == record.batch]

    def _start(self, begun: Sequence[Begun], *, resume: bool, keep_warm: bool = False) -> None:
        name, node = begun[0][1].batch, begun[0][1].node
        tasks = [(job, self._running.add(job, record)) for job, record in begun]
        batch = self._batches[node, name] = RunningBatch(
            self._active_jobs,
            self._pool.shared.spool,
            [running for _, running in tasks],
            self._settlement.settle_all,
            clock=self._clock,
            resumed=resume,
            keep_warm=keep_warm,
        )
        if managed := self._pool.nodes.get(node):
            managed.slots.begin(name)
        follower = batch.follower = self._tasks.start(self._follow(batch, tasks, resume), f"batch {name}")
        for job, running in tasks:
            running.follower = follower
            if resume:
                self._termination.end_if_requested(job, running)

    async def _follow(self, batch: RunningBatch, tasks: Tasks, resume: bool) -> None:
        """Run or resume a batch, then settle the tasks whose end was not reported."""
        node = self._pool.nodes.get(batch.node)
        if node is None:
            del self._batches[batch.node, batch.name]
            gone = AttemptResult(HostLost(f"{batch.node} is no longer in the inventory"))
            self._settlement.settle_all([(running, gone) for _, running in tasks])
            return
        try:
            lost = await result_or_blame(batch.name, node, self._run(batch, tasks, node, resume))
        finally:
            node.slots.end(batch.name)
            del self._batches[batch.node, batch.name]
        # Tasks that are on their way to the node are settled when the node has answered.
        rest = [batch.state.rest[run] for run in batch.state.settled()]
        self._settlement.settle_all([(running, lost) for running in rest])
        self._removal.start(node, batch.name, never_began=batch.never_began)

    async def _run(self, batch: RunningBatch, tasks: Tasks, node: ManagedNode, resume: bool) -> AttemptResult:
        """Follow a batch to its end; the result of the tasks whose end was not reported."""
        if resume:
            patience = self._launching.patience_seconds
            await node.connected(max(patience(job, running) for job, running in tasks))
        specs = self._launching.batch_specs(tasks, node, resume=resume)
        try:
            whole = make_batch(specs, name=batch.name, keep_warm=batch.state.keep_warm)
            await _batches(node).run(whole, batch, resume=resume)
        except NeverBegan:
            batch.never_began = True
            raise
        return NOT_REPORTED

    # --- change one that runs

    def extend(self, batch: RunningBatch, claimed: Sequence[tuple[Job, Attempt]], *, keep_warm: bool) -> None:
        """Append claimed tasks to a batch, in its slot. When the node takes no more, they return to the queue."""
        batch.state.keep_warm = keep_warm
        tasks = [(job, self._running.add(job, job.attempts[-1])) for job, _ in claimed]
        batch.state.join({running.run: running for _, running in tasks})
        self._tasks.start(self._extend(batch, tasks), f"extend {batch.name}")

    async def _extend(self, batch: RunningBatch, tasks: Tasks) -> None:
        node = self._pool.nodes.get(batch.node)
        sent = None if node is None else await result_or_blame(batch.name, node, self._send(batch, tasks, node))
        attempts = [running for _, running in tasks]
        batch.state.joined(running.run for running in attempts)
        if isinstance(sent, AttemptResult):
            batch.state.remove(running.run for running in attempts)
            self._settlement.settle_all([(running, sent) for running in attempts])
        elif not sent:
            self._undo_begin(batch, attempts)
        elif self._batches.get((batch.node, batch.name)) is not batch:  # the batch ended while they were on their way
            rest = [running for running in attempts if running.run in batch.state.rest]
            self._settlement.settle_all([(running, NOT_REPORTED) for running in rest])

    async def _send(self, batch: RunningBatch, tasks: Tasks, node: ManagedNode) -> bool:
        """Send tasks to the node; False when the batch takes no more."""
        async with self._active_jobs.bulk_lock:
            specs = self._launching.batch_specs(tasks, node, resume=False)
        return await _batches(node).extend(batch.name, specs)

    def revoke(self, batch: RunningBatch, runs: Sequence[str]) -> None:
        """Ask the node to revoke these runs. Those that have not started return to the queue."""
        batch.state.takes_more = False  # the node would skip these runs if they were sent to the same batch again
        batch.state.leaving.update(runs)
        self._tasks.start(self._revoke(batch, runs), f"revoke from {batch.name}")

    async def _revoke(self, batch: RunningBatch, runs: Sequence[str]) -> None:
        node = self._pool.nodes.get(batch.node)
        if node is None:
            return
        try:
            revoked = await _batches(node).revoke(batch.name, runs)
        except HostError as error:
            log.info("%s: cannot revoke tasks of %s: %s", node.name, batch.name, error.reason)
            return
        finally:
            batch.state.leaving.difference_update(runs)
        self._undo_begin(batch, [running for run in revoked if (running := batch.state.rest.get(run))])

    def _undo_begin(self, batch: RunningBatch, attempts: Sequence[RunningAttempt]) -> None:
        """Return tasks that never started to the queue; settle those that are cancelled or superseded."""
        batch.state.takes_more = False
        batch.state.remove(running.run for running in attempts)
        settled = [running for running in attempts if self._is_cancelled_or_superseded(running)]
        self._settlement.settle_all([(running, AttemptResult(Cancelled())) for running in settled])
        returned = [running for running in attempts if running not in settled]
        for running in returned:
            self._running.remove(running)
        self._active_jobs.claims.undo_begin([running.attempt.job for running in returned])

    def _is_cancelled_or_superseded(self, running: RunningAttempt) -> bool:
        return running.superseded or self._active_jobs.current(running.attempt.job).cancel_requested

    async def revoke_cancelled(self, running: RunningAttempt, node: ManagedNode) -> bool:
        """Settle a task as cancelled that has not started yet; False when it has started."""
        name = running.record.batch
        if not await _batches(node).revoke(name, [running.run]):
            return False
        if batch := self._batches.get((node.name, name)):
            batch.state.remove([running.run])
        self._settlement.settle(running, AttemptResult(Cancelled()))
        return True

    def release(self, batch: RunningBatch) -> None:
        """Release the slot early: the last task of the batch is about to finish."""
        batch.released = True
        if node := self._pool.nodes.get(batch.node):
            node.slots.release(batch.name)
        self._active_jobs.wake.set()


def _batches(node: ManagedNode) -> Batches:
    """Return the part of the node's engine that runs batches. Raises SshgridError when it has none."""
    if node.engine.batches is None:
        raise SshgridError(f"{node.name} cannot run batches")
    return node.engine.batches
