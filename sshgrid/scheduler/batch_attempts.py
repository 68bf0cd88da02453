"""Batches under way: attempts of one sweep that share a start and a slot of a node, one after the other.

A batch can be extended while it runs, tasks that have not started can be revoked, and its slot can be released early.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sshgrid.engines import AttemptResult, Batches
from sshgrid.engines.launch import make_batch
from sshgrid.errors import HostError, NeverBegan, SshgridError
from sshgrid.model import Attempt, Cancelled, HostLost, Job, sweep_of
from sshgrid.node.managed_node import ManagedNode
from sshgrid.nodes import NodePool
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.attempt_registry import AttemptRegistry, RunningAttempt
from sshgrid.scheduler.attempt_tasks import AttemptTasks, result_or_blame
from sshgrid.scheduler.batches import BatchSink, Begun
from sshgrid.scheduler.launching import Launching
from sshgrid.scheduler.run_removal import RunRemoval
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
    ) -> None:
        self._active_jobs = active_jobs
        self._pool = pool
        self._running = running
        self._tasks = tasks
        self._launching = launching
        self._settlement = settlement
        self._termination = termination
        self._removal = removal
        self._batches: dict[tuple[str, str], BatchSink] = {}  # by node and name

    @property
    def holding_slots(self) -> list[BatchSink]:
        """The batches that still have their slot."""
        return [sink for sink in self._batches.values() if not sink.released]

    @property
    def all(self) -> list[BatchSink]:
        """Also the batches whose slot was released before their end."""
        return list(self._batches.values())

    def ran_seconds(self, running: RunningAttempt) -> float | None:
        """How long the program of this task of a batch has run; None while it waits behind another one."""
        sink = self._batches.get((running.attempt.node, running.record.batch))
        if sink is None or not sink.state.is_first(running.run):
            return None
        state, run = sink.state, running.run
        return None if run in state.leaving or run in state.joining else state.ran_seconds

    # --- start and follow

    def start(self, found: Sequence[tuple[Job, Attempt]], *, keep_warm: bool) -> None:
        """Start the batch that these claimed attempts are. `keep_warm`: when all have ended, wait a moment for more."""
        self._start([(job, job.attempts[-1]) for job, _ in found], resume=False, keep_warm=keep_warm)

    def resume(self, batch: Sequence[Begun]) -> None:
        """Follow the batch of these attempts, which an earlier master started."""
        self._start([*self._superseded_in(batch), *batch], resume=True)

    def _superseded_in(self, batch: Sequence[Begun]) -> list[Begun]:
        """Superseded attempts that the earlier master may not have ended: the rest of the batch waits behind them."""
        job, record = batch[0]
        sweep = sweep_of(job.id)
        plan = None if sweep is None else self._active_jobs.current(sweep).submission.sweep
        if sweep is None or plan is None or not plan.backup:
            return []
        found = self._active_jobs.store.jobs.superseded(sweep)
        return [(self._active_jobs.current(task), each) for task, each in found if each.batch == record.batch]

    def _start(self, begun: Sequence[Begun], *, resume: bool, keep_warm: bool = False) -> None:
        name, node = begun[0][1].batch, begun[0][1].node
        jobs, batch = [job for job, _ in begun], [self._running.add(*each) for each in begun]
        spool = self._pool.shared.spool
        sink = self._batches[node, name] = BatchSink(
            self._active_jobs, spool, batch, self._settlement.settle_all, resumed=resume, keep_warm=keep_warm
        )
        if managed := self._pool.nodes.get(node):
            managed.slots.begin(name)
        follower = sink.follower = self._tasks.start(self._follow(sink, jobs, batch, resume), f"batch {name}")
        for job, running in zip(jobs, batch, strict=True):
            running.follower = follower
            if resume:
                self._termination.end_if_requested(job, running)

    async def _follow(
        self, sink: BatchSink, jobs: Sequence[Job], batch: Sequence[RunningAttempt], resume: bool
    ) -> None:
        """Run or resume a batch, then settle the tasks whose end was not reported."""
        node = self._pool.nodes.get(sink.node)
        if node is None:
            del self._batches[sink.node, sink.name]
            gone = AttemptResult(HostLost(f"{sink.node} is no longer in the inventory"))
            self._settlement.settle_all([(running, gone) for running in batch])
            return
        try:
            lost = await result_or_blame(sink.name, node, self._run(sink, jobs, batch, node, resume))
        finally:
            node.slots.end(sink.name)
            del self._batches[sink.node, sink.name]
        # Tasks that are on their way to the node are settled when the node has answered.
        rest = [sink.state.rest[run] for run in sink.state.settled()]
        self._settlement.settle_all([(running, lost) for running in rest])
        self._removal.start(node, sink.name, never_began=sink.never_began)

    async def _run(
        self, sink: BatchSink, jobs: Sequence[Job], batch: Sequence[RunningAttempt], node: ManagedNode, resume: bool
    ) -> AttemptResult:
        """Follow a batch to its end; the result of the tasks whose end was not reported."""
        if resume:
            patience = self._launching.patience_seconds
            await node.connected(max(patience(job, running) for job, running in zip(jobs, batch, strict=True)))
        specs = self._launching.batch_specs(jobs, batch, node, resume=resume)
        try:
            whole = make_batch(specs, name=sink.name, keep_warm=sink.state.keep_warm)
            await _batches(node).run(whole, sink, resume=resume)
        except NeverBegan:
            sink.never_began = True
            raise
        return NOT_REPORTED

    # --- change one that runs

    def extend(self, sink: BatchSink, found: Sequence[tuple[Job, Attempt]], *, keep_warm: bool) -> None:
        """Append claimed tasks to a batch, in its slot. When the node takes no more, they return to the queue."""
        sink.state.keep_warm = keep_warm
        jobs, batch = [job for job, _ in found], [self._running.add(job, job.attempts[-1]) for job, _ in found]
        sink.state.join({running.run: running for running in batch})
        self._tasks.start(self._extend(sink, jobs, batch), f"extend {sink.name}")

    async def _extend(self, sink: BatchSink, jobs: Sequence[Job], batch: Sequence[RunningAttempt]) -> None:
        node = self._pool.nodes.get(sink.node)
        sent = None if node is None else await result_or_blame(sink.name, node, self._send(sink, jobs, batch, node))
        sink.state.joined(running.run for running in batch)
        if isinstance(sent, AttemptResult):
            sink.state.remove(running.run for running in batch)
            self._settlement.settle_all([(running, sent) for running in batch])
        elif not sent:
            self._give_back(sink, batch)
        elif self._batches.get((sink.node, sink.name)) is not sink:  # the batch ended while they were on their way
            rest = [running for running in batch if running.run in sink.state.rest]
            self._settlement.settle_all([(running, NOT_REPORTED) for running in rest])

    async def _send(
        self, sink: BatchSink, jobs: Sequence[Job], batch: Sequence[RunningAttempt], node: ManagedNode
    ) -> bool:
        async with self._active_jobs.bulk_lock:
            specs = self._launching.batch_specs(jobs, batch, node, resume=False)
        return await _batches(node).extend(sink.name, specs)

    def revoke(self, sink: BatchSink, runs: Sequence[str]) -> None:
        """Return those of these runs to the queue that have not started when the node receives the request."""
        sink.state.takes_more = False  # the node would skip these runs if they were sent to the same batch again
        sink.state.leaving.update(runs)
        self._tasks.start(self._revoke(sink, runs), f"revoke from {sink.name}")

    async def _revoke(self, sink: BatchSink, runs: Sequence[str]) -> None:
        node = self._pool.nodes.get(sink.node)
        if node is None:
            return
        try:
            revoked = await _batches(node).revoke(sink.name, runs)
        except HostError as error:
            log.info("%s: cannot revoke tasks of %s: %s", node.name, sink.name, error.reason)
            return
        finally:
            sink.state.leaving.difference_update(runs)
        self._give_back(sink, [running for run in revoked if (running := sink.state.rest.get(run))])

    def _give_back(self, sink: BatchSink, batch: Sequence[RunningAttempt]) -> None:
        """Return tasks that never started to the queue; settle those that are cancelled or superseded."""
        sink.state.takes_more = False
        sink.state.remove(running.run for running in batch)
        over = [running for running in batch if self._is_over_unstarted(running)]
        self._settlement.settle_all([(running, AttemptResult(Cancelled())) for running in over])
        given = [running for running in batch if running not in over]
        for running in given:
            self._running.remove(running)
        self._active_jobs.claims.undo_begin([running.attempt.job for running in given])

    def _is_over_unstarted(self, running: RunningAttempt) -> bool:
        return running.superseded or self._active_jobs.current(running.attempt.job).cancel_requested

    async def revoke_cancelled(self, running: RunningAttempt, node: ManagedNode) -> bool:
        """Settle a task as cancelled that has not started yet; False when it has started."""
        batch = running.record.batch
        if not await _batches(node).revoke(batch, [running.run]):
            return False
        if sink := self._batches.get((node.name, batch)):
            sink.state.remove([running.run])
        self._settlement.settle(running, AttemptResult(Cancelled()))
        return True

    def release(self, sink: BatchSink) -> None:
        """Release the slot early: the last task of the batch is about to finish."""
        sink.released = True
        if node := self._pool.nodes.get(sink.node):
            node.slots.release(sink.name)
        self._active_jobs.wake.set()


def _batches(node: ManagedNode) -> Batches:
    """Return the part of the node's engine that runs batches. Raises SshgridError when it has none."""
    if node.engine.batches is None:
        raise SshgridError(f"{node.name} cannot run batches")
    return node.engine.batches
