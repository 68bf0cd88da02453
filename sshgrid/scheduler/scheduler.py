"""Which waiting job starts next, and on which node: a step runs whenever something has changed.

One step orders the waiting jobs by fair share (policy.fair_share), finds a node for each (policy.placement), and starts
it there (scheduler.attempts). A new job does not start while nodes that may suit it better are still being dialled.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.engines.launch import batch_name, run_name
from sshgrid.model import Attempt, AttemptRecord, Inventory, Job, Phase, is_task
from sshgrid.nodes import NodePool
from sshgrid.policy import fair_share, placement
from sshgrid.policy.placement import NodeView
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.active_sweeps import ActiveSweeps
from sshgrid.scheduler.attempts import Attempts
from sshgrid.scheduler.batch_refill import BatchRefill
from sshgrid.scheduler.batch_times import BatchTimes
from sshgrid.scheduler.rebalancing import Rebalancing
from sshgrid.scheduler.shares import Shares
from sshgrid.scheduler.speculative import SpeculativeAttempts
from sshgrid.scheduler.step_views import StepViews
from sshgrid.scheduler.sweep_outlooks import SweepOutlooks
from sshgrid.scheduler.user_limits import UserLimits
from sshgrid.scheduler.waiting_jobs import Prospect, WaitingJobs

LONGEST_PAUSE_SECONDS = 30.0
# The start of thousands of jobs must not block clients: a step ends after this long, and the next one continues.
STEP_SECONDS = 0.03
MIN_PAUSE_SECONDS = 0.01
# A new sample of load and memory starts no step, so check again after this time.
SAMPLE_SECONDS = 1.0


class Kind(NamedTuple):
    """What decides where a job can start and whether it waits. In one step, jobs of one kind start or wait together."""

    requirements: placement.Requirements
    excluded: frozenset[str]  # nodes
    is_new: bool  # has had no attempt
    waits_for_nodes: bool  # also while all suitable nodes are down
    owner: str  # "" while no group has a limit for each user


class Scheduler:
    """Starts waiting jobs on nodes. `policy` is a name in placement.POLICIES."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        pool: NodePool,
        attempts: Attempts,
        sweeps: ActiveSweeps,
        limits: UserLimits,
        policy: str,
        rng: Random,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.policy = policy
        self.paused = False  # start nothing more; runs continue
        self.shares = Shares(active_jobs)
        self._active_jobs = active_jobs
        self._pool = pool
        self._attempts = attempts
        self._sweeps = sweeps
        self._limits = limits
        self._waiting = WaitingJobs(active_jobs, pool, sweeps, attempts.keyboards, clock)
        self._speculative = SpeculativeAttempts(active_jobs, pool, attempts, sweeps, limits, clock)
        self._rng = rng
        self._clock = clock

    def use_inventory(self, inventory: Inventory) -> None:
        """Use the placement policy and the limits of groups of this inventory from now on."""
        self.policy = inventory.placement
        self._limits.groups = [group for group in inventory.groups if group.max_jobs_per_user is not None]

    async def run(self) -> None:
        """Run steps until cancelled. Raises StoreError when memory and store may differ."""
        wake = self._active_jobs.wake
        while True:
            wake.clear()
            if self._active_jobs.failure is not None:
                raise self._active_jobs.failure
            pause = LONGEST_PAUSE_SECONDS if self.paused else self._step(self._clock.wall())
            if not pause:
                await asyncio.sleep(MIN_PAUSE_SECONDS)  # `wake` is set already: waiting for it would not pause
                continue
            try:
                async with asyncio.timeout(pause):
                    await wake.wait()
            except TimeoutError:
                pass

    def _step(self, now: float) -> float:
        """Start what can start; return the seconds until the next step, or 0 when there is more to start now."""
        deadline = self._clock.monotonic() + STEP_SECONDS
        queued = [job for job in self._active_jobs.in_phase(Phase.QUEUED) if not job.held or job.cancel_requested]
        running = Counter(self._active_jobs.slots_in_use().by_owner())
        # While a thousand nodes connect there may be nothing to start: then the views are not needed.
        views = StepViews(self._pool.views() if queued else [], self._limits)
        batches, times = self._attempts.batches, BatchTimes(self._sweeps)
        outlooks = SweepOutlooks(self._active_jobs, batches, self._sweeps, views, times, self._clock)
        refill = BatchRefill(self._active_jobs, batches, self._sweeps, views, times, outlooks, running)
        waiting = self._with_tasks(queued, views, refill, now)
        backoffs = self._waiting.backoff_seconds(waiting, now)
        pauses = [LONGEST_PAUSE_SECONDS, *backoffs.values()]
        prospects: dict[Kind, Prospect] = {}
        stuck: set[Kind] = set()  # when one job of a kind finds no node, no other job of this kind is tried
        for job in fair_share.start_order([job for job in waiting if job.id not in backoffs], self.shares.by_owner()):
            kind = self._kind(job)
            if kind not in prospects:
                prospects[kind] = self._waiting.prospect(views.all, job.submission)
            if self._waiting.finish_hopeless(job, prospects[kind], now) or kind in stuck:
                continue
            if self._active_jobs.is_running(job.id):
                continue  # already started in this step, with the batch of an earlier task
            if self._limits.is_full(job.owner, running):
                refill.extend_own(job, now)  # a task appended to a batch of its sweep takes no further slot
                continue
            if rest := self._waiting.undecided_seconds(job, now):
                pauses.append(rest)
                stuck.add(kind)
                continue
            if refill.start_in_idle(job, now) or self._start_on_node(job, views, outlooks, now):
                self.shares.note_start(job.owner)
                running[job.owner] += 1
            elif not refill.extend_own(job, now):
                refill.promise(job)
                pauses.append(SAMPLE_SECONDS)
                stuck.add(kind)
                continue
            if self._clock.monotonic() > deadline:
                return 0.0
        refill.release()
        pauses.append(Rebalancing(batches, views, times).run(refill.promised))
        pauses.append(self._speculative.start(views.all, now))  # in slots that no waiting job could take
        return max(MIN_PAUSE_SECONDS, min(pauses))

    def _with_tasks(self, queued: list[Job], views: StepViews, refill: BatchRefill, now: float) -> list[Job]:
        """The queued jobs, with the next tasks of each sweep in place of the sweep."""
        sweeps = [job for job in queued if job.submission.sweep]
        if not sweeps:
            return queued
        for sweep in sweeps:
            state = self._sweeps.state(sweep.id)
            if state is None or not state.started:  # a sweep that has started waits for nodes, as its tasks do
                self._waiting.finish_hopeless(sweep, self._waiting.prospect(views.all, sweep.submission), now)
        up = [view for view in views.all if view.up]
        free = sum(max(0, placement.slots(view) - view.running) for view in up)
        slots = sum(placement.slots(view) for view in up)
        self._sweeps.note_capacity(slots, {view.node.name: view.node.weight for view in views.all})
        single = [job for job in queued if not is_task(job.id) and job.submission.sweep is None]
        # One task more than there is room for: it finds no node, and is promised the slot of another sweep's batch.
        return [*single, *self._sweeps.upcoming(free + len(refill) + 1, refill.nearly_free(), now)]

    def _kind(self, job: Job) -> Kind:
        """The kind of a job. Jobs of one kind start or wait together: if one finds no node, none does."""
        owner = job.owner if self._limits.groups else ""
        return Kind(
            placement.requirements(job.submission),
            job.excluded,
            is_new=not job.attempts,
            waits_for_nodes=job.submission.wait_for_nodes,
            owner=owner,
        )

    def _start_on_node(self, job: Job, views: StepViews, outlooks: SweepOutlooks, now: float) -> bool:
        """Choose a node for a job and start it there; False when no node can take it now."""
        view = self._choose_node(job, outlooks.worthwhile(job, views.of_owner(job.owner)))
        if view is None:
            self._active_jobs.notifications.notify(job.id)  # watchers show why it waits, which may have changed
            return False
        if not self._start_batch(job, view, now) and not self._start_alone(job, view, now):
            return False
        views.replace(self._pool.renewed(views.all, view.node.name))
        return True

    def _choose_node(self, job: Job, views: Sequence[NodeView]) -> NodeView | None:
        policy = placement.POLICIES[self.policy]
        return placement.place(views, job.submission, job.excluded, policy, self._rng, self.shares.starts)

    def _start_batch(self, job: Job, view: NodeView, now: float) -> bool:
        """Start a task of a sweep with the tasks that should share its start; False when it should start alone."""
        can_batch = self._pool.nodes[view.node.name].engine.batches is not None
        state = self._sweeps.state(job.id) if can_batch and is_task(job.id) and not job.attempts else None
        batch = [] if state is None else state.batch(job, self._sweeps.slots)
        if state is None or not batch:
            return False
        name = batch_name(run_name(self._active_jobs.store.grid, Attempt(job.id, 1, view.node.name)))
        begun = self._active_jobs.claims.begin_tasks(batch, AttemptRecord(1, view.node.name, now, batch=name))
        self._attempts.batches.start(begun, keep_warm=state.has_unstarted)
        return True

    def _start_alone(self, job: Job, view: NodeView, now: float) -> bool:
        """Start one job; False when the store says that it must not start."""
        gpus = tuple(placement.free_gpus(view)[: job.submission.gpus])
        begun = self._active_jobs.claims.begin(job, view.node.name, now, gpus)
        if begun is None:
            return False
        self._attempts.start(*begun)
        return True
