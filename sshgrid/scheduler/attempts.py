"""Attempts under way: one task each, from the claim to the settled result, and the ways to end one early.

What an attempt says that is no longer live is dropped by the store. A task that is cancelled
because the master leaves settles nothing; its run goes on and is found again. The only `except Exception` of the
project stands here, where our own bug becomes a verdict.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Awaitable, Coroutine, Iterable, Sequence
from typing import TypeVar

import msgspec

from sshgrid import toolchains
from sshgrid.engines import AttemptResult, Keyboard
from sshgrid.engines.launch import LEASE_MARGIN_SECONDS, RunSpec, make_batch, place_in, run_name
from sshgrid.errors import HostError, NeverBegan, SshgridError, StoreError
from sshgrid.model import (
    Attempt,
    AttemptRecord,
    Cancelled,
    Crashed,
    Exited,
    Fetched,
    HostLost,
    Job,
    JobId,
    OnHostLoss,
    Outcome,
    Phase,
    Program,
    Step,
    Superseded,
    ToolchainBroken,
    job_text,
    sweep_of,
)
from sshgrid.node.managed_node import ManagedNode, Share
from sshgrid.nodes import NodePool
from sshgrid.policy import placement, retry, states
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.scheduler import admission
from sshgrid.scheduler.batches import BatchSink, Begun, Ends, Running, by_batch
from sshgrid.spool.spool import Spool

log = logging.getLogger(__name__)
T = TypeVar("T")
MANY = 10  # attempts that ended together are one line of the log
NOT_TOLD = AttemptResult(HostLost("the run was not told of"))

# INT grows to TERM and KILL, as an impatient person would: (signal, seconds until the next)
ESCALATION: dict[str, tuple[tuple[str, float], ...]] = {
    "INT": (("INT", 5.0), ("TERM", 5.0), ("KILL", 5.0)),
    "TERM": (("TERM", 5.0), ("KILL", 5.0)),
    "KILL": (("KILL", 5.0),),
}
LEAVE_SECONDS = 2.0
KEYS_WAITING = 64  # pieces of input; a client that types faster than the program reads has to wait
# Longer than the guard of a start.
CLAIM_KEPT_SECONDS = 20.0


class _JobSink:
    """Brings an attempt's news to disk first and to the watchers second."""

    def __init__(self, active_jobs: ActiveJobs, spool: Spool, running: Running) -> None:
        self._active_jobs = active_jobs
        self._spool = spool
        self._running = running

    def kept(self, stream: str) -> int:
        attempt = self._running.attempt
        return self._spool.outputs.resume(attempt.job, attempt.number, stream)

    async def output(self, stream: str, piece: bytes) -> None:
        if self._running.superseded:
            return
        attempt = self._running.attempt
        self._spool.outputs.append(attempt.job, attempt.number, stream, piece)
        self._active_jobs.notifications.tell(attempt.job)

    async def step(self, step: Step) -> None:
        if step is self._running.record.step:
            return
        self._change(step=step)
        if step is Step.RUNNING:
            # Whether a lost host was lost while the program ran must survive this master.
            self._active_jobs.store.note(self._running.attempt, self._running.record)

    async def uploaded(self, count: int, left: int = 0) -> None:
        self._change(uploaded_bytes=self._running.record.uploaded_bytes + count, upload_left_bytes=left)

    async def compiled(self, compiled: bool) -> None:
        if self._running.record.compiled is not compiled:
            self._change(compiled=compiled)

    def room(self) -> int:
        if self._running.superseded:
            return 0
        job = self._active_jobs.current(self._running.attempt.job)
        return 0 if job.cancel_requested else self._spool.outputs.room()

    async def again(self, stream: str) -> None:
        attempt = self._running.attempt
        self._spool.outputs.restart(attempt.job, attempt.number, stream)

    async def fetched(self, fetched: Fetched) -> None:
        self._change(fetched=fetched)

    def _change(self, **changes: object) -> None:
        self._running.record = msgspec.structs.replace(self._running.record, **changes)
        self._active_jobs.notifications.tell(self._running.attempt.job)


class Attempts:
    """All attempts of this master that are under way."""

    def __init__(self, active_jobs: ActiveJobs, pool: NodePool) -> None:
        self._active_jobs = active_jobs
        self._pool = pool
        self._spool = pool.shared.spool
        self._running: dict[tuple[JobId, int], Running] = {}  # by job and number of the attempt
        self._batches: dict[tuple[str, str], BatchSink] = {}  # by node and name
        self._keyboards: dict[JobId, Keyboard] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._cleaning: set[asyncio.Task[None]] = set()  # of these, what removes ended runs from nodes right now

    # --- beginning

    def begin(self, job: Job, attempt: Attempt) -> None:
        """Run what the store has claimed."""
        record = job.attempts[-1]
        if attempt.number > 1 and not record.backup:
            self._say_moved(job, attempt)
        self._launch((job, record), resume=False)

    def begin_batch(self, found: Sequence[tuple[Job, Attempt]], *, keep_warm: bool) -> None:
        """The same for tasks that go to one slot of a node together, where more may follow."""
        self._launch_batch([(job, job.attempts[-1]) for job, _ in found], resume=False, keep_warm=keep_warm)

    def resume(self, jobs: Iterable[Job]) -> None:
        """Find the runs that an earlier master started: of a job that has a backup both."""
        alone, batches = by_batch((job, record) for job in jobs for record in job.live)
        for begun in alone:
            self._launch(begun, resume=True)
        for batch in batches:
            self._launch_batch([*self._superseded_in(batch), *batch], resume=True)

    def _superseded_in(self, batch: Sequence[Begun]) -> list[Begun]:
        """What an earlier master may not have lived to end: in a batch that goes on it would stand before the rest."""
        job, record = batch[0]
        sweep = sweep_of(job.id)
        plan = None if sweep is None else self._active_jobs.current(sweep).submission.sweep
        if sweep is None or plan is None or not plan.backup:
            return []
        found = self._active_jobs.store.superseded(sweep)
        return [(self._active_jobs.current(task), each) for task, each in found if each.batch == record.batch]

    def _launch_batch(self, begun: Sequence[Begun], *, resume: bool, keep_warm: bool = False) -> None:
        name, node = begun[0][1].batch, begun[0][1].node
        jobs, batch = [job for job, _ in begun], [self._running_of(*each) for each in begun]
        sink = self._batches[node, name] = BatchSink(self._active_jobs, self._spool, batch, self._settle_all)
        sink.takes_more = not resume
        sink.keep_warm = keep_warm
        if managed := self._pool.nodes.get(node):
            managed.begun(name)
        task = sink.follower = self._spawn(self._batch(sink, jobs, batch, resume), f"batch {name}")
        for job, running in zip(jobs, batch, strict=True):
            running.task = task
            if resume:
                self._end_what_was_asked_for(job, running)

    def _running_of(self, job: Job, record: AttemptRecord) -> Running:
        """What is kept of an attempt under way."""
        attempt = Attempt(job.id, record.number, record.node)
        running = Running(attempt, record, run_name(self._active_jobs.store.grid, attempt))
        self._running[job.id, record.number] = running
        return running

    def _end_what_was_asked_for(self, job: Job, running: Running) -> None:
        """Of a run that an earlier master started: it was cancelled then, or superseded."""
        if isinstance(running.record.outcome, Superseded):
            self._end_superseded(job)
        elif job.cancel_requested:
            self._end(running, lifecycle_signal(job))

    # --- batches under way

    @property
    def batches(self) -> list[BatchSink]:
        """Those that still have their slot."""
        return [sink for sink in self._batches.values() if not sink.released]

    @property
    def all_batches(self) -> list[BatchSink]:
        """Also those whose slot was given away, as they were about to end."""
        return list(self._batches.values())

    def extend(self, sink: BatchSink, found: Sequence[tuple[Job, Attempt]], *, keep_warm: bool) -> None:
        """Begin tasks behind the last ones of a batch, in its slot; where it takes no more they are given back."""
        sink.keep_warm = keep_warm
        jobs, batch = [job for job, _ in found], [self._running_of(job, job.attempts[-1]) for job, _ in found]
        sink.join(batch)
        self._spawn(self._extend(sink, jobs, batch), f"more for {sink.name}")

    async def _extend(self, sink: BatchSink, jobs: Sequence[Job], batch: Sequence[Running]) -> None:
        node = self._pool.nodes.get(sink.node)
        sent = None if node is None else await self._judged(sink.name, node, self._send(sink, jobs, batch, node))
        sink.joining.difference_update(running.run for running in batch)
        if isinstance(sent, AttemptResult):
            sink.leave(running.run for running in batch)
            self._settle_all([(running, sent) for running in batch])
        elif not sent:
            self._give_back(sink, batch)
        elif self._batches.get((sink.node, sink.name)) is not sink:  # it ended while they were on their way
            self._settle_all([(running, NOT_TOLD) for running in batch if running.run in sink.rest])

    async def _send(self, sink: BatchSink, jobs: Sequence[Job], batch: Sequence[Running], node: ManagedNode) -> bool:
        async with self._active_jobs.turn:
            orders = self._orders(jobs, batch, node, resume=False)
        return await node.engine.extend(sink.name, orders, keep_warm=sink.keep_warm)

    def revoke(self, sink: BatchSink, runs: Sequence[str]) -> None:
        """Give runs of a batch back to the queue, those that have not begun when its node hears of it."""
        sink.takes_more = False  # it would pass over them, should they come again
        sink.leaving.update(runs)
        self._spawn(self._take_back(sink, runs), f"take back from {sink.name}")

    async def _take_back(self, sink: BatchSink, runs: Sequence[str]) -> None:
        node = self._pool.nodes.get(sink.node)
        if node is None:
            return
        try:
            taken = await node.engine.revoke(sink.name, runs)
        except HostError as error:
            log.info("%s: cannot take anything back from %s: %s", node.name, sink.name, error.reason)
            return
        finally:
            sink.leaving.difference_update(runs)
        self._give_back(sink, [running for run in taken if (running := sink.rest.get(run))])

    def _give_back(self, sink: BatchSink, batch: Sequence[Running]) -> None:
        """They never began, and never will."""
        sink.takes_more = False
        sink.leave(running.run for running in batch)
        over = [running for running in batch if self._is_over_when_given_back(running)]
        self._settle_all([(running, AttemptResult(Cancelled())) for running in over])
        given = [running for running in batch if running not in over]
        self._drop(given)
        self._active_jobs.give_back_tasks([running.attempt.job for running in given])

    def _is_over_when_given_back(self, running: Running) -> bool:
        return running.superseded or self._active_jobs.current(running.attempt.job).cancel_requested

    def release(self, sink: BatchSink) -> None:
        """Its slot may be given to another one already: it is about to end."""
        sink.released = True
        if node := self._pool.nodes.get(sink.node):
            node.let_go(sink.name)
        self._active_jobs.wake.set()

    def _launch(self, begun: Begun, *, resume: bool) -> None:
        job, record = begun
        running = self._running_of(job, record)
        if node := self._pool.nodes.get(record.node):
            node.begun(running.run, Share(job.submission.slots, record.gpus))
        running.task = self._spawn(self._attempt(job, running, resume), f"attempt {running.attempt}")
        self._active_jobs.notifications.tell(job.id)
        if resume:
            self._end_what_was_asked_for(job, running)

    def _say_moved(self, job: Job, attempt: Attempt) -> None:
        before = job.attempts[-2]
        why = states.outcome_text(before.outcome) if before.outcome else "gone"
        allowed = retry.attempts_allowed(job, self._pool.shared.retry)
        where = f"moved to {attempt.node}" if attempt.node != before.node else f"trying {attempt.node} again"
        word = "lost" if isinstance(before.outcome, HostLost) else "failed"
        text = f"{before.node} {word} ({why}), {where} (attempt {attempt.number} of {allowed})"
        sweep = sweep_of(job.id)
        if sweep is None:
            self._active_jobs.notifications.say(job.id, text)
        else:
            self._active_jobs.notifications.say(sweep, f"task {job_text(job.id)}: {text}")

    def _spawn(self, work: Coroutine[object, object, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[None]) -> None:
        """A task that failed has settled nothing: when the disk is to blame, the master must not go on without it."""
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, StoreError):
            self._active_jobs.fail(error)
        elif error is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    # --- one attempt

    async def _attempt(self, job: Job, running: Running, resume: bool) -> None:
        node = self._pool.nodes.get(running.attempt.node)
        if node is None:
            self._settle(running, AttemptResult(HostLost(f"{running.attempt.node} is no longer in the inventory")))
            return
        try:
            finish = await self._outcome(job, running, node, resume)
        finally:
            node.ended(running.run)
        self._settle(running, finish)
        # A start that is still on its way meets the folder until the node would refuse it as too late anyway.
        self._clean(node, running.run, CLAIM_KEPT_SECONDS if running.refused or running.never_began else 0.0)

    async def _batch(self, sink: BatchSink, jobs: Sequence[Job], batch: Sequence[Running], resume: bool) -> None:
        node = self._pool.nodes.get(sink.node)
        if node is None:
            del self._batches[sink.node, sink.name]
            gone = AttemptResult(HostLost(f"{sink.node} is no longer in the inventory"))
            self._settle_all([(running, gone) for running in batch])
            return
        try:
            lost = await self._judged(sink.name, node, self._rest_of_batch(jobs, batch, node, sink, resume))
        finally:
            node.ended(sink.name)
            del self._batches[sink.node, sink.name]
        # What the node has not taken yet goes back to the queue as soon as that is known.
        self._settle_all([(running, lost) for run, running in sink.rest.items() if run not in sink.joining])
        self._clean(node, sink.name, CLAIM_KEPT_SECONDS if sink.never_began else 0.0)

    def _clean(self, node: ManagedNode, run: str, pause: float = 0.0) -> None:
        """Remove a run, or batch, from its node; who leaves waits for that, but for no pause."""
        cleaning = self._spawn(self._discard(node, run, pause), f"clean {run}")
        if not pause:
            self._cleaning.add(cleaning)
            cleaning.add_done_callback(self._cleaning.discard)

    async def _rest_of_batch(
        self, jobs: Sequence[Job], batch: Sequence[Running], node: ManagedNode, sink: BatchSink, resume: bool
    ) -> AttemptResult:
        """Follow a batch; what became of those tasks of which no end was told."""
        if resume:
            await node.connected(max(self._patience(job, run) for job, run in zip(jobs, batch, strict=True)))
        orders = self._orders(jobs, batch, node, resume=resume)
        try:
            whole = make_batch(orders, name=sink.name, keep_warm=sink.keep_warm)
            await node.engine.run_batch(whole, sink, resume=resume)
        except NeverBegan:
            sink.never_began = True
            raise
        return NOT_TOLD

    def _orders(
        self, jobs: Sequence[Job], batch: Sequence[Running], node: ManagedNode, *, resume: bool
    ) -> list[RunSpec]:
        source = self._source(jobs[0].submission.program, resume)
        return [self._order(job, run, node, resume, source) for job, run in zip(jobs, batch, strict=True)]

    async def _outcome(self, job: Job, running: Running, node: ManagedNode, resume: bool) -> AttemptResult:
        try:
            work = self._run(job, running, node, resume)
            return await self._judged(f"attempt {running.attempt}", node, work)
        except asyncio.CancelledError:
            if not running.refused:
                raise
            return AttemptResult(Cancelled())

    async def _run(self, job: Job, running: Running, node: ManagedNode, resume: bool) -> AttemptResult:
        if resume:
            await node.connected(self._patience(job, running))
        order = self._order(job, running, node, resume)
        sink = _JobSink(self._active_jobs, self._spool, running)
        try:
            if order.interactive and not resume:
                return await node.engine.converse(order, sink, self._keyboard(job.id))
            return await node.engine.run(order, sink, resume=resume)
        except NeverBegan:
            running.never_began = True
            raise

    async def _judged(self, what: str, node: ManagedNode, work: Awaitable[T]) -> T | AttemptResult:
        """What comes of the work; when that is an error, whose fault it is makes the outcome."""
        try:
            return await work
        except HostError as error:
            log.info("%s on %s: %s", what, node.name, error.reason)
            return AttemptResult(HostLost(error.reason))
        except StoreError:
            raise
        except SshgridError as error:
            return AttemptResult(ToolchainBroken(error.message))
        except Exception as error:
            log.exception("%s on %s", what, node.name)
            return AttemptResult(Crashed(f"{type(error).__name__}: {error}"))

    def _patience(self, job: Job, running: Running) -> float:
        """Seconds that a master waits for the node of a run which an earlier one started."""
        if job.submission.on_host_loss is OnHostLoss.WAIT:
            return math.inf
        # The lease that the earlier master gave last may end as late as this one's patience: nobody else before that.
        margin = LEASE_MARGIN_SECONDS if job.submission.on_host_loss is OnHostLoss.FENCE else 0.0
        return retry.patience(self._pool.shared.retry, time.time() - running.record.began) + margin

    def _order(
        self, job: Job, running: Running, node: ManagedNode, resume: bool, source: bytes | None = None
    ) -> RunSpec:
        """`source`: what the main file says, when it was read already."""
        program = job.submission.program
        row = self._pool.shared.language(program.language)
        found = node.toolchains.get(program.language)
        if found is None and resume:
            found = admission.stand_in(row)  # it runs already: what the node has now no longer matters
        if found is None or node.facts is None:
            raise SshgridError(f"{node.name} no longer has {program.language}")
        source = self._source(program, resume) if source is None else source
        recipe = toolchains.recipe(row, found, program, source, node.facts)
        if not node.config.shared_builds:
            recipe = msgspec.structs.replace(recipe, shared=False)
        if job.submission.verify_build:
            recipe = toolchains.verified(recipe, row.name)
        running.build = recipe.build_key if recipe.shared else ""
        words = f"{found.language} {found.version}".strip()
        asked = job.submission
        order = RunSpec(
            running.attempt,
            running.run,
            program,
            recipe,
            asked.interactive,
            asked.terminal,
            asked.keep_children,
            asked.on_host_loss,
            max(0.0, time.time() - running.record.began) if resume else 0.0,
            running.record.gpus,
        )
        isolation = order.isolation(node.facts)
        running.record = msgspec.structs.replace(running.record, toolchain=words, isolation=isolation)
        return order

    def _source(self, program: Program, resume: bool) -> bytes:
        """What the main file says. Without the files (a queue was restored alone) only this one job cannot run."""
        files = program.uploads
        lost = self._spool.blobs.missing(file.sha256 for file in files)
        if lost and resume:
            return b""  # it has all it needs: nothing is sent to a run that is under way
        if lost:
            names = ", ".join(file.name for file in files if file.sha256 in lost)[:80]
            raise SshgridError(f"{names} is no longer in the spool beside the queue")
        return self._spool.blobs.read(next(file for file in program.files if file.name == program.entry).sha256)

    def _settle(self, running: Running, finish: AttemptResult) -> None:
        self._settle_all([(running, finish)])

    def _settle_all(self, ends: Ends) -> None:
        """The results on disk, then in memory, then told."""
        now = time.time()
        self._spool.outputs.sync([(running.attempt.job, running.attempt.number) for running, _ in ends])
        with self._active_jobs.store.transaction():
            settled = [found for running, finish in ends if (found := self._settle_one(running, finish, now))]
        self._drop(running for running, _ in ends)
        with self._active_jobs.following_the_store():
            told = [self._tell_end(attempt, job) for attempt, job in settled]
        if len(settled) < MANY:
            for (attempt, _), outcome in zip(settled, told, strict=True):
                log.info("attempt %s on %s: %s", attempt, attempt.node, outcome)
        else:
            first, last = settled[0][0], settled[-1][0]
            log.info("attempts %s to %s on %s: %s", first, last, first.node, dict(Counter(map(str, told))))

    def _tell_end(self, attempt: Attempt, job: Job) -> Outcome | Superseded | None:
        record = next(record for record in job.attempts if record.number == attempt.number)
        self._judge_node(attempt, record)
        if job.submission.verify_build and record.why_compiled:
            words = f"{attempt.node} has compiled it itself: {record.why_compiled}"
            self._active_jobs.notifications.say(sweep_of(job.id) or job.id, words)
        if not self._active_jobs.is_over(job.id):  # else the end of one before it has ended this one for good
            self._active_jobs.keep(job)
        self._end_superseded(job)
        return record.outcome

    def _drop(self, ended: Iterable[Running]) -> None:
        for running in ended:
            attempt = running.attempt
            if self._running.pop((attempt.job, attempt.number), None):
                self._keyboards.pop(attempt.job, None)
            if running.ending is not None:
                running.ending.cancel()

    def _why_compiled(self, running: Running) -> str:
        if not running.record.compiled or not running.build:
            return ""
        return self._pool.shared.builds.why_not_taken(running.build, running.attempt.node)

    def _settle_one(self, running: Running, finish: AttemptResult, now: float) -> tuple[Attempt, Job] | None:
        """In the store; None for late news."""
        attempt = running.attempt
        if running.superseded:
            log.info("attempt %s was superseded and has ended", attempt)
            return None
        job = self._active_jobs.current(attempt.job)
        outcome = self._as_cancelled(job, finish.outcome)
        record = msgspec.structs.replace(
            running.record, outcome=outcome, ended=now, usage=finish.usage, why_compiled=self._why_compiled(running)
        )
        others = isinstance(outcome, HostLost | ToolchainBroken) and placement.others(
            self._pool.views(), job.submission, job.excluded | {attempt.node}
        )
        settled = retry.settle(job, record, outcome, self._pool.shared.retry, now, self._pool.shared.rng, others)
        store = self._active_jobs.store
        goes_on = settled.phase is Phase.RUNNING
        if not (store.leave(attempt, record) if goes_on else store.settle(attempt, record, settled)):
            log.info("attempt %s: late news dropped", attempt)
            return None
        return attempt, settled

    def _end_superseded(self, job: Job) -> None:
        """Whatever another attempt was quicker than is killed, and nothing that it still says counts."""
        for record in job.attempts:
            running = self._running.get((job.id, record.number))
            if running is not None and isinstance(record.outcome, Superseded):
                running.superseded = True
                if running.ending is None:  # who was asked to end in peace may do so
                    self._end(running, "KILL")

    def _judge_node(self, attempt: Attempt, record: AttemptRecord) -> None:
        node = self._pool.nodes.get(attempt.node)
        if node is None:
            return
        outcome = record.outcome
        if isinstance(outcome, HostLost) and record.step is Step.RUNNING:
            node.lost_a_run()
        elif isinstance(outcome, Exited):
            node.quarantine = node.quarantine.proved()

    def _as_cancelled(self, job: Job, outcome: Outcome) -> Outcome:
        """What ended because somebody asked is cancelled, whatever its last words were."""
        if job.cancel_requested and not isinstance(outcome, HostLost | Crashed):
            return Cancelled(job.cancel_by)
        return outcome

    async def _discard(self, node: ManagedNode, run: str, pause: float = 0.0) -> None:
        """Nothing of the run, or batch, stays on the node. A node that is away is asked when it is back."""
        node.claims.add(run)
        await asyncio.sleep(pause)
        node.claims.discard(run)
        try:
            await node.engine.discard(run)
        except HostError as error:
            log.info("%s: cannot clean %s yet: %s", node.name, run, error.reason)
            node.leftovers.add(run)

    # --- looking at one

    def live(self, job: Job) -> Job:
        """The job with the newest step of each running attempt, which the store need not know."""
        newest = {running.attempt.number: running.record for running in self._of(job)}
        if not newest:
            return job
        records = (newest.get(record.number, record) for record in job.attempts)
        return msgspec.structs.replace(job, attempts=tuple(records))

    def longest_running(self, sweep: JobId) -> JobId | None:
        """Of its tasks whose program runs, the one that began first."""
        ours = (running for running in self._running.values() if sweep_of(running.attempt.job) == sweep)
        programs = (each for each in ours if each.record.step is Step.RUNNING and not each.superseded)
        return min(((each.record.began, each.attempt.job) for each in programs), default=(0.0, None))[1]

    def _of(self, job: Job) -> list[Running]:
        """What runs of a job and may settle it: two while it has a backup."""
        found = (self._running.get((job.id, record.number)) for record in job.live)
        return [running for running in found if running is not None]

    def ran_seconds(self, job: Job, now: float) -> float | None:
        """For how long its oldest live attempt has run; None while it waits in a batch, or is on its way in or out."""
        for running in self._of(job)[:1]:
            if not running.record.batch:
                return now - running.record.began
            sink = self._batches.get((running.attempt.node, running.record.batch))
            if sink and sink.is_first(running.run) and running.run not in sink.leaving | sink.joining:
                return sink.ran_seconds
        return None

    # --- ending one early

    async def signal(self, job: Job, name: str) -> None:
        """Only a signal; the run decides what it means. Raises HostError when its node does not answer."""
        for running in self._of(job):
            if node := self._pool.nodes.get(running.attempt.node):
                await node.engine.signal(place_in(running.record.batch, running.run), name)

    async def typed(self, job: Job, piece: bytes) -> None:
        """Standard input of an interactive run, kept until it begins; words for one that has ended are dropped."""
        if job.submission.interactive and job.phase is not Phase.DONE:
            await self._keyboard(job.id).put(piece)

    async def resized(self, job: Job, columns: int, rows: int) -> None:
        """As `typed`, for the size of the window."""
        if job.submission.interactive and job.phase is not Phase.DONE:
            await self._keyboard(job.id).put((columns, rows))

    def forget(self, job_id: JobId) -> None:
        """The job ended without an attempt: what was typed for it goes."""
        self._keyboards.pop(job_id, None)

    def _keyboard(self, job_id: JobId) -> Keyboard:
        return self._keyboards.setdefault(job_id, asyncio.Queue(KEYS_WAITING))

    def end(self, job: Job, signal: str) -> None:
        """Signals of growing force until each attempt has ended."""
        for running in self._of(job):
            self._end(running, signal)

    def _end(self, running: Running, signal: str) -> None:
        if running.ending is not None:
            running.ending.cancel()
        running.ending = self._spawn(self._escalate(running, signal), f"end {running.attempt}")

    async def _escalate(self, running: Running, signal: str) -> None:
        node = self._pool.nodes.get(running.attempt.node)
        if node is None:
            return
        for name, pause in ESCALATION[signal]:
            await self._until_sent(running, node, name)
            await asyncio.sleep(pause)
        while True:
            await self._until_sent(running, node, "KILL")
            await asyncio.sleep(1.0)

    async def _until_sent(self, running: Running, node: ManagedNode, name: str) -> None:
        """A run that has not begun is refused its folder; one on a silent node is asked until it answers."""
        while True:
            try:
                if await node.engine.signal(place_in(running.record.batch, running.run), name):
                    return
                if await self._refuse(running, node):
                    return
            except HostError as error:
                log.info("%s: cannot send %s to %s yet: %s", node.name, name, running.run, error.reason)
            await asyncio.sleep(0.2)

    async def _refuse(self, running: Running, node: ManagedNode) -> bool:
        """It has not begun, and ends like that."""
        if running.record.batch:
            taken = await node.engine.revoke(running.record.batch, [running.run])
            if taken:
                if sink := self._batches.get((node.name, running.record.batch)):
                    sink.leave([running.run])
                self._settle(running, AttemptResult(Cancelled()))
            return bool(taken)
        if not await node.engine.refuse(running.run):
            return False
        running.refused = True
        assert running.task is not None
        running.task.cancel()
        return True

    # --- leaving

    async def close(self) -> None:
        """Runs go on; what has just ended is still cleaned up, as perhaps no master comes after this one."""
        deadline = time.monotonic() + LEAVE_SECONDS
        while (leaving := self._leaving()) and (rest := deadline - time.monotonic()) > 0:
            await asyncio.wait(leaving, timeout=rest, return_when=asyncio.FIRST_COMPLETED)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _leaving(self) -> set[asyncio.Task[None]]:
        """What removes ended runs from nodes, and the runs that are about to end."""
        superseded = {
            run.task for run in self._running.values() if run.superseded and not run.record.batch and run.task
        }
        done = {sink.follower for sink in self._batches.values() if not sink.rest and sink.follower}
        return self._cleaning | superseded | done


def lifecycle_signal(job: Job) -> str:
    """The signal by which a job was cancelled: the first word of who asked."""
    name = job.cancel_by.split(maxsplit=1)[0] if job.cancel_by else "TERM"
    return name if name in ESCALATION else "TERM"
