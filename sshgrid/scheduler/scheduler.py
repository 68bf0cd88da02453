"""Which waiting job starts next, and which will never start: looks again whenever something has changed.

It only asks and acts: who is eligible and who is next is decided in placement. Refuses to start a new job in haste
while a node that may be the better choice is still being dialled or tested.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import TypeAlias

from sshgrid.engines.launch import batch_name, run_name
from sshgrid.model import (
    Attempt,
    AttemptRecord,
    Cancelled,
    Caps,
    GaveUp,
    Group,
    Job,
    JobId,
    Phase,
    Struct,
    Submission,
    Verdict,
)
from sshgrid.nodes import NodePool
from sshgrid.policy import fair_share, placement, quota
from sshgrid.policy.placement import NodeView
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler.active_sweeps import ActiveSweeps
from sshgrid.scheduler.attempts import Attempts
from sshgrid.scheduler.batch_refill import BatchRefill
from sshgrid.scheduler.speculative import SpeculativeAttempts

# For so long a new job waits for nodes that are being dialled or tested.
DECIDE_SECONDS = 3.0
# An attached job gives up when every node that might run it has been down for so long.
NOBODY_UP_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 30.0
# Thousands of starts must not keep the master from everything else: after so long the others have their turn.
STEP_SECONDS = 0.03
MIN_PAUSE_SECONDS = 0.01

CapsOf: TypeAlias = Callable[[str], Caps]
Wants: TypeAlias = tuple[placement.Needs, frozenset[str], bool, bool, str]


class _Prospect(Struct, frozen=True):
    """Why jobs alike will never start, or why none can start now because every able node is down; None = not so."""

    impossible: GaveUp | None = None
    all_down: GaveUp | None = None


class Scheduler:
    """Claims nodes for jobs. `policy` is a name in placement.POLICIES."""

    def __init__(
        self,
        active_jobs: ActiveJobs,
        pool: NodePool,
        attempts: Attempts,
        sweeps: ActiveSweeps,
        policy: str,
        rng: Random,
        caps: CapsOf,
    ) -> None:
        self.policy = policy
        self.groups: Sequence[Group] = ()  # those with a limit
        self.paused = False  # start nothing more; what runs goes on
        self._active_jobs = active_jobs
        self._pool = pool
        self._attempts = attempts
        self._sweeps = sweeps
        self._backups = SpeculativeAttempts(active_jobs, pool, attempts, sweeps, self._may_start, self.seen_by)
        self._rng = rng
        self._caps = caps
        self.turn = 0
        self._served: dict[str, int] = {}  # owner -> number of the turn that was theirs last
        self._since = time.time()
        self._backoffs: dict[
            tuple[JobId, float], float
        ] = {}  # job and the end of its backoff -> when it was seen first

    async def run(self) -> None:
        """Until cancelled, or until what is kept can no longer be trusted (StoreError)."""
        wake = self._active_jobs.wake
        while True:
            wake.clear()
            if self._active_jobs.failure is not None:
                raise self._active_jobs.failure
            pause = LONGEST_PAUSE_SECONDS if self.paused else self._step(time.time())
            if not pause:
                await asyncio.sleep(MIN_PAUSE_SECONDS)  # `wake` is set, so waiting for it would give nobody a turn
                continue
            try:
                async with asyncio.timeout(pause):
                    await wake.wait()
            except TimeoutError:
                pass

    def _step(self, now: float) -> float:
        """Start what can be started; seconds until the next look that nothing else would cause, 0 = there is more."""
        began = time.monotonic()
        waiting = [job for job in self._active_jobs.in_phase(Phase.QUEUED) if not job.held or job.cancel_requested]
        views = self._pool.views() if waiting else []  # while a thousand nodes connect, nobody may wait
        running = Counter(self._active_jobs.slots_in_use().by_owner())
        refill = BatchRefill(self._active_jobs, self._attempts.batches, self._sweeps, views, running, self.seen_by)
        waiting = self._with_tasks(waiting, views, refill, now)
        rests = self._backoff_rests(waiting, now)
        pauses = [LONGEST_PAUSE_SECONDS, *rests.values()]
        prospects: dict[Wants, _Prospect] = {}
        stuck: set[Wants] = set()  # of many alike, one that finds no node speaks for all
        for job in fair_share.order([job for job in waiting if job.id not in rests], self._handed_out()):
            wants = _wants(job, self.groups)
            prospect = prospects.get(wants) or prospects.setdefault(wants, self._prospect(views, job.submission))
            if self._finish_hopeless(job, prospect, now) or wants in stuck:
                continue
            if self._active_jobs.is_running(job.id):
                continue  # in the batch of a task before it
            if self._is_full(job.owner, running):
                refill.go_on(job, now, own_only=True)
                continue
            if rest := self._undecided_seconds(job, now):
                pauses.append(rest)
                stuck.add(wants)
                continue
            if refill.wake(job, now):
                self._note_turn(job)
                running[job.owner] += 1
            elif node := self._start(job, views, refill, now):
                running[job.owner] += 1
                views = self._pool.renewed(views, node)
                refill.see(views)
            elif not refill.go_on(job, now):
                pauses.append(1.0)  # load and memory change by samples alone, which wake nobody
                stuck.add(wants)
                continue
            if time.monotonic() - began > STEP_SECONDS:
                return 0.0
        refill.release()
        pauses.append(refill.level())
        pauses.append(self._backups.begin(views, now))  # with what nobody could take
        return max(MIN_PAUSE_SECONDS, min(pauses))

    def _with_tasks(self, waiting: list[Job], views: Sequence[NodeView], refill: BatchRefill, now: float) -> list[Job]:
        """The jobs that wait, with the next tasks in the place of their sweeps."""
        sweeps = [job for job in waiting if job.submission.sweep]
        if not sweeps:
            return waiting
        for sweep in sweeps:
            # One that has begun waits for better times, as do its tasks.
            if not self._sweeps.begun(sweep.id):
                self._finish_hopeless(sweep, self._prospect(views, sweep.submission), now)
        free = sum(max(0, placement.slots(view) - view.running) for view in views if view.up)
        slots = sum(placement.slots(view) for view in views if view.up)
        self._sweeps.see(slots, {view.node.name: view.node.weight for view in views})
        single = [job for job in waiting if job.id > 0 and job.submission.sweep is None]
        return [*single, *self._sweeps.upcoming(free + len(refill) + 1, refill.nearly_free())]

    def _backoff_rests(self, waiting: Sequence[Job], now: float) -> dict[JobId, float]:
        """Seconds that jobs still back off: never longer than the policy's longest, however the wall clock jumps."""
        longest, clock = self._pool.shared.retry.backoff_max_seconds, time.monotonic()
        backing_off = {(job.id, job.not_before): job for job in waiting if job.not_before > now}
        self._backoffs = {key: self._backoffs.get(key, clock) for key in backing_off}
        rests = {job.id: self._backoffs[key] + longest - clock for key, job in backing_off.items()}
        return {job.id: min(job.not_before - now, rests[job.id]) for job in backing_off.values() if rests[job.id] > 0}

    def _handed_out(self) -> Mapping[str, float]:
        """What placement.order takes for the turns that each owner has had."""
        running = self._active_jobs.slots_in_use().by_owner()
        owners = {job.owner for job in self._active_jobs.in_phase(Phase.QUEUED)} | running.keys()
        self._served = {owner: turn for owner, turn in self._served.items() if owner in owners}
        return fair_share.turns(running, self._served, owners)

    def _is_full(self, owner: str, running: Mapping[str, int]) -> bool:
        """Whether this user may start no more now; the end of one of the user's jobs wakes us."""
        return quota.must_wait(running.get(owner, 0), self._caps(owner))

    def _may_start(self, owner: str) -> bool:
        return not self._is_full(owner, self._active_jobs.slots_in_use().by_owner())

    def seen_by(self, views: Sequence[NodeView], owner: str) -> Sequence[NodeView]:
        """The nodes as this user finds them: closed where a group's limit is reached."""
        return (
            quota.as_seen(views, self.groups, self._active_jobs.slots_in_use().nodes_of(owner))
            if self.groups
            else views
        )

    def _undecided_seconds(self, job: Job, now: float) -> float:
        """How long this job still waits for nodes that are being dialled or tested; 0 = it may choose."""
        language = job.submission.program.language
        self._pool.want(language)
        rest = max(job.submitted, self._since) + DECIDE_SECONDS - now
        if rest <= 0 or job.attempts or not self._pool.undecided(language):
            return 0.0
        return max(0.05, rest)

    def _start(self, job: Job, views: Sequence[NodeView], refill: BatchRefill, now: float) -> str:
        """The node where it starts; "" when it does not."""
        policy = placement.POLICIES[self.policy]
        views = refill.worthwhile(job, self.seen_by(views, job.owner))
        view = placement.place(views, job.submission, job.excluded, policy, self._rng, self.turn)
        if view is None:
            self._active_jobs.notifications.notify(job.id)
            return ""
        self._note_turn(job)
        can_batch = self._pool.nodes[view.node.name].engine.batches is not None
        batch = self._sweeps.batch(job) if can_batch and job.id < 0 and not job.attempts else []
        if batch:
            name = batch_name(run_name(self._active_jobs.store.grid, Attempt(job.id, 1, view.node.name)))
            begun = self._active_jobs.claims.begin_tasks(batch, AttemptRecord(1, view.node.name, now, batch=name))
            self._attempts.batches.start(begun, keep_warm=self._sweeps.goes_on(job.id))
            return view.node.name
        gpus = tuple(placement.free_gpus(view)[: job.submission.gpus])
        alone = self._active_jobs.claims.begin(job, view.node.name, now, gpus)
        if alone is None:
            return ""
        self._attempts.start(*alone)
        return view.node.name

    def _note_turn(self, job: Job) -> None:
        """It begins where a slot was free."""
        self.turn += 1
        self._served[job.owner] = self.turn

    def _prospect(self, views: Sequence[NodeView], submission: Submission) -> _Prospect:
        impossible = placement.permanently_impossible(views, submission, self._pool.shared.languages)
        if impossible:
            return _Prospect(GaveUp(impossible[1], no_toolchain=impossible[0] == "NoToolchain"))
        if not placement.all_down(views, submission):
            return _Prospect()
        return _Prospect(all_down=GaveUp("no node is up: " + self._reasons(views, submission)))

    def _finish_hopeless(self, job: Job, prospect: _Prospect, now: float) -> bool:
        verdict = self._hopeless(job, prospect, now)
        if verdict is None:
            return False
        self._active_jobs.store.finish(job.id, verdict, now)
        self._sweeps.forget(job.id)
        self._attempts.keyboards.remove(job.id)
        self._active_jobs.reread(job.id)
        return True

    def _hopeless(self, job: Job, prospect: _Prospect, now: float) -> Verdict | None:
        if job.cancel_requested:
            return Cancelled(job.cancel_by)
        if prospect.impossible:
            # Of a task that has never begun there is nothing to end: with its sweep it waits for better times.
            return None if job.id < 0 and not job.attempts else prospect.impossible
        since = max(job.submitted, self._since, job.attempts[-1].ended or 0.0 if job.attempts else 0.0)
        waited = now - since > (self._pool.shared.retry.patience_min_seconds if job.attempts else NOBODY_UP_SECONDS)
        return prospect.all_down if waited and prospect.all_down and not job.submission.wait_for_nodes else None

    def _reasons(self, views: Sequence[NodeView], submission: Submission) -> str:
        why = placement.explain(views, submission, (), self._pool.shared.languages)
        return "; ".join(f"{line.node}: {line.reason.partition(': ')[2]}" for line in why)


def _wants(job: Job, groups: Sequence[Group]) -> Wants:
    """What decides where a job may go, and whether it waits: jobs alike in this share their fate for one step."""
    owner = job.owner if groups else ""
    return placement.needs(job.submission), job.excluded, not job.attempts, job.submission.wait_for_nodes, owner
