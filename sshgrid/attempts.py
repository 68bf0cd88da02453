"""Attempts under way: one task each, from the claim to the settled result, and the ways to end one early.

An attempt's number is the fence: what an older attempt still says is dropped by the store. A task that is cancelled
because the master leaves settles nothing; its run goes on and is found again. The only `except Exception` of the
project stands here, where our own bug becomes a verdict.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Coroutine, Iterable, Sequence

import msgspec

from sshgrid import intake, lifecycle, placement, toolchains
from sshgrid.batches import BatchSink, Ends, Running, by_batch
from sshgrid.engines import Finish, Keyboard, place_in
from sshgrid.errors import HostError, NeverBegan, SshgridError, StoreError
from sshgrid.jobbook import JobBook
from sshgrid.jobscript import LEASE_MARGIN_SECONDS, Order, make_batch, run_name
from sshgrid.member import Member, Share
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
    ToolchainBroken,
    job_text,
    sweep_of,
)
from sshgrid.roster import Roster
from sshgrid.spool import Spool

log = logging.getLogger(__name__)

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

    def __init__(self, book: JobBook, spool: Spool, running: Running) -> None:
        self._book = book
        self._spool = spool
        self._running = running

    def kept(self, stream: str) -> int:
        attempt = self._running.attempt
        return self._spool.go_on(attempt.job, attempt.number, stream)

    async def output(self, stream: str, piece: bytes) -> None:
        attempt = self._running.attempt
        self._spool.append(attempt.job, attempt.number, stream, piece)
        self._book.board.tell(attempt.job)

    async def step(self, step: Step) -> None:
        if step is self._running.record.step:
            return
        self._change(step=step)
        if step is Step.RUNNING:
            # Whether a lost host was lost while the program ran must survive this master.
            self._book.store.note(self._running.attempt, self._running.record)

    async def uploaded(self, count: int, left: int = 0) -> None:
        self._change(uploaded_bytes=self._running.record.uploaded_bytes + count, upload_left_bytes=left)

    async def compiled(self, compiled: bool) -> None:
        if self._running.record.compiled is not compiled:
            self._change(compiled=compiled)

    def room(self) -> int:
        job = self._book.current(self._running.attempt.job)
        return 0 if job.cancel_requested else self._spool.room()

    async def again(self, stream: str) -> None:
        attempt = self._running.attempt
        self._spool.restart(attempt.job, attempt.number, stream)

    async def fetched(self, fetched: Fetched) -> None:
        self._change(fetched=fetched)

    def _change(self, **changes: object) -> None:
        self._running.record = msgspec.structs.replace(self._running.record, **changes)
        self._book.board.tell(self._running.attempt.job)


class Attempts:
    """All attempts of this master that are under way."""

    def __init__(self, book: JobBook, roster: Roster) -> None:
        self._book = book
        self._roster = roster
        self._spool = roster.spool
        self._running: dict[JobId, Running] = {}
        self._keyboards: dict[JobId, Keyboard] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._cleaning: set[asyncio.Task[None]] = set()  # of these, what removes ended runs from nodes right now

    # --- beginning

    def begin(self, job: Job, attempt: Attempt) -> None:
        """Run what the store has claimed."""
        if attempt.number > 1:
            self._say_moved(job, attempt)
        self._launch(job, attempt, resume=False)

    def begin_batch(self, found: Sequence[tuple[Job, Attempt]]) -> None:
        """The same for tasks that go to one slot of a node together."""
        self._launch_batch([job for job, _ in found], resume=False)

    def resume(self, jobs: Iterable[Job]) -> None:
        """Find the runs that an earlier master started."""
        alone, batches = by_batch(jobs)
        for job in alone:
            last = job.attempts[-1]
            self._launch(job, Attempt(job.id, last.number, last.node), resume=True)
        for batch in batches:
            self._launch_batch(batch, resume=True)

    def _launch_batch(self, jobs: Sequence[Job], *, resume: bool) -> None:
        name, node = jobs[0].attempts[-1].batch, jobs[0].attempts[-1].node
        batch = []
        for job in jobs:
            attempt = Attempt(job.id, job.attempts[-1].number, node)
            running = Running(attempt, job.attempts[-1], run_name(self._book.store.grid, attempt))
            batch.append(running)
            self._running[job.id] = running
        if member := self._roster.members.get(node):
            member.begun(name)
        task = self._spawn(self._batch(name, node, jobs, batch, resume), f"batch {name}")
        for job, running in zip(jobs, batch, strict=True):
            running.task = task
            if resume and job.cancel_requested:
                self.end(job, lifecycle_signal(job))

    def _launch(self, job: Job, attempt: Attempt, *, resume: bool) -> None:
        run = run_name(self._book.store.grid, attempt)
        running = Running(attempt, job.attempts[-1], run)
        self._running[job.id] = running
        if member := self._roster.members.get(attempt.node):
            member.begun(run, Share(job.submission.slots, job.attempts[-1].gpus))
        running.task = self._spawn(self._attempt(job, running, resume), f"attempt {attempt}")
        self._book.board.tell(job.id)
        if resume and job.cancel_requested:
            self.end(job, lifecycle_signal(job))

    def _say_moved(self, job: Job, attempt: Attempt) -> None:
        before = job.attempts[-2]
        why = lifecycle.outcome_text(before.outcome) if before.outcome else "gone"
        allowed = lifecycle.attempts_allowed(job, self._roster.retry)
        where = f"moved to {attempt.node}" if attempt.node != before.node else f"trying {attempt.node} again"
        word = "lost" if isinstance(before.outcome, HostLost) else "failed"
        text = f"{before.node} {word} ({why}), {where} (attempt {attempt.number} of {allowed})"
        sweep = sweep_of(job.id)
        if sweep is None:
            self._book.board.say(job.id, text)
        else:
            self._book.board.say(sweep, f"task {job_text(job.id)}: {text}")

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
            self._book.fail(error)
        elif error is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    # --- one attempt

    async def _attempt(self, job: Job, running: Running, resume: bool) -> None:
        member = self._roster.members.get(running.attempt.node)
        if member is None:
            self._settle(running, Finish(HostLost(f"{running.attempt.node} is no longer in the inventory")))
            return
        try:
            finish = await self._outcome(job, running, member, resume)
        finally:
            member.ended(running.run)
        self._settle(running, finish)
        # A start that is still on its way meets the folder until the node would refuse it as too late anyway.
        self._clean(member, running.run, CLAIM_KEPT_SECONDS if running.refused or running.never_began else 0.0)

    async def _batch(self, name: str, node: str, jobs: Sequence[Job], batch: Sequence[Running], resume: bool) -> None:
        member = self._roster.members.get(node)
        if member is None:
            gone = Finish(HostLost(f"{node} is no longer in the inventory"))
            self._settle_all([(running, gone) for running in batch])
            return
        sink = BatchSink(self._book, self._spool, batch, self._settle_all, lambda: self._release(member, name))
        try:
            lost = await self._judged(name, member, self._rest_of_batch(jobs, batch, member, sink, resume))
        finally:
            member.ended(name)
        self._settle_all([(running, lost) for running in sink.rest.values()])
        self._clean(member, name)

    def _clean(self, member: Member, run: str, pause: float = 0.0) -> None:
        """Remove a run, or batch, from its node; who leaves waits for that, but for no pause."""
        cleaning = self._spawn(self._discard(member, run, pause), f"clean {run}")
        if not pause:
            self._cleaning.add(cleaning)
            cleaning.add_done_callback(self._cleaning.discard)

    def _release(self, member: Member, name: str) -> None:
        member.let_go(name)
        self._book.wake.set()

    async def _rest_of_batch(
        self, jobs: Sequence[Job], batch: Sequence[Running], member: Member, sink: BatchSink, resume: bool
    ) -> Finish:
        """Follow a batch; what became of those tasks of which no end was told."""
        if resume:
            await member.connected(max(self._patience(job, run) for job, run in zip(jobs, batch, strict=True)))
        source = self._source(jobs[0].submission.program, resume)
        orders = [self._order(job, run, member, resume, source) for job, run in zip(jobs, batch, strict=True)]
        await member.engine.run_batch(make_batch(orders, name=batch[0].record.batch), sink, resume=resume)
        return Finish(HostLost("the run was not told of"))

    async def _outcome(self, job: Job, running: Running, member: Member, resume: bool) -> Finish:
        try:
            work = self._run(job, running, member, resume)
            return await self._judged(f"attempt {running.attempt}", member, work)
        except asyncio.CancelledError:
            if not running.refused:
                raise
            return Finish(Cancelled())

    async def _run(self, job: Job, running: Running, member: Member, resume: bool) -> Finish:
        if resume:
            await member.connected(self._patience(job, running))
        order = self._order(job, running, member, resume)
        sink = _JobSink(self._book, self._spool, running)
        try:
            if order.interactive and not resume:
                return await member.engine.converse(order, sink, self._keyboard(job.id))
            return await member.engine.run(order, sink, resume=resume)
        except NeverBegan:
            running.never_began = True
            raise

    async def _judged(self, what: str, member: Member, work: Awaitable[Finish]) -> Finish:
        """How it ended, also when that was by an error: whose fault it is makes the outcome."""
        try:
            return await work
        except HostError as error:
            log.info("%s on %s: %s", what, member.name, error.reason)
            return Finish(HostLost(error.reason))
        except StoreError:
            raise
        except SshgridError as error:
            return Finish(ToolchainBroken(error.message))
        except Exception as error:
            log.exception("%s on %s", what, member.name)
            return Finish(Crashed(f"{type(error).__name__}: {error}"))

    def _patience(self, job: Job, running: Running) -> float:
        """Seconds that a master waits for the node of a run which an earlier one started."""
        if job.submission.on_host_loss is OnHostLoss.WAIT:
            return math.inf
        # The lease that the earlier master gave last may end as late as this one's patience: nobody else before that.
        margin = LEASE_MARGIN_SECONDS if job.submission.on_host_loss is OnHostLoss.FENCE else 0.0
        return lifecycle.patience(self._roster.retry, time.time() - running.record.began) + margin

    def _order(self, job: Job, running: Running, member: Member, resume: bool, source: bytes | None = None) -> Order:
        """`source`: what the main file says, when it was read already."""
        program = job.submission.program
        row = self._roster.language(program.language)
        found = member.toolchains.get(program.language)
        if found is None and resume:
            found = intake.stand_in(row)  # it runs already: what the node has now no longer matters
        if found is None or member.facts is None:
            raise SshgridError(f"{member.name} no longer has {program.language}")
        source = self._source(program, resume) if source is None else source
        recipe = toolchains.recipe(row, found, program, source, member.facts)
        if not member.node.shared_builds:
            recipe = msgspec.structs.replace(recipe, shared=False)
        words = f"{found.language} {found.version}".strip()
        asked = job.submission
        order = Order(
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
        isolation = order.isolation(member.facts)
        running.record = msgspec.structs.replace(running.record, toolchain=words, isolation=isolation)
        return order

    def _source(self, program: Program, resume: bool) -> bytes:
        """What the main file says. Without the files (a queue was restored alone) only this one job cannot run."""
        files = program.uploads
        lost = self._spool.missing(file.sha256 for file in files)
        if lost and resume:
            return b""  # it has all it needs: nothing is sent to a run that is under way
        if lost:
            names = ", ".join(file.name for file in files if file.sha256 in lost)[:80]
            raise SshgridError(f"{names} is no longer in the spool beside the queue")
        return self._spool.read(next(file for file in program.files if file.name == program.entry).sha256)

    def _settle(self, running: Running, finish: Finish) -> None:
        self._settle_all([(running, finish)])

    def _settle_all(self, ends: Ends) -> None:
        """The results on disk, then in memory, then told."""
        now = time.time()
        self._spool.sync([(running.attempt.job, running.attempt.number) for running, _ in ends])
        with self._book.store.batch():
            settled = [found for running, finish in ends if (found := self._settle_one(running, finish, now))]
        for running, _ in ends:
            if self._running.get(running.attempt.job) is running:
                del self._running[running.attempt.job]
                self._keyboards.pop(running.attempt.job, None)
            if running.ending is not None:
                running.ending.cancel()
        for attempt, job in settled:
            record = job.attempts[-1]
            assert record.outcome is not None
            self._judge_node(attempt, record, record.outcome)
            log.info("attempt %s on %s: %s", attempt, attempt.node, record.outcome)
            self._book.keep(job)

    def _settle_one(self, running: Running, finish: Finish, now: float) -> tuple[Attempt, Job] | None:
        """In the store; None for late news."""
        attempt = running.attempt
        job = self._book.current(attempt.job)
        outcome = self._as_cancelled(job, finish.outcome)
        record = msgspec.structs.replace(running.record, outcome=outcome, ended=now, usage=finish.usage)
        others = isinstance(outcome, HostLost | ToolchainBroken) and placement.others(
            self._roster.views(), job.submission, job.excluded | {attempt.node}
        )
        settled = lifecycle.settle(job, record, outcome, self._roster.retry, now, self._roster.rng, others)
        if settled.phase is Phase.RUNNING or not self._book.store.settle(attempt, record, settled):
            log.info("attempt %s: late news dropped", attempt)
            return None
        return attempt, settled

    def _judge_node(self, attempt: Attempt, record: AttemptRecord, outcome: Outcome) -> None:
        member = self._roster.members.get(attempt.node)
        if member is None:
            return
        if isinstance(outcome, HostLost) and record.step is Step.RUNNING:
            member.lost_a_run()
        elif isinstance(outcome, Exited):
            member.quarantine = member.quarantine.proved()

    def _as_cancelled(self, job: Job, outcome: Outcome) -> Outcome:
        """What ended because somebody asked is cancelled, whatever its last words were."""
        if job.cancel_requested and not isinstance(outcome, HostLost | Crashed):
            return Cancelled(job.cancel_by)
        return outcome

    async def _discard(self, member: Member, run: str, pause: float = 0.0) -> None:
        """Nothing of the run, or batch, stays on the node. A node that is away is asked when it is back."""
        member.claims.add(run)
        await asyncio.sleep(pause)
        member.claims.discard(run)
        try:
            await member.engine.discard(run)
        except HostError as error:
            log.info("%s: cannot clean %s yet: %s", member.name, run, error.reason)
            member.leftovers.add(run)

    # --- looking at one

    def live(self, job: Job) -> Job:
        """The job with the newest step of its running attempt, which the store need not know."""
        running = self._running.get(job.id)
        if running is None or job.phase is not Phase.RUNNING or not job.attempts:
            return job
        return msgspec.structs.replace(job, attempts=(*job.attempts[:-1], running.record))

    # --- ending one early

    async def signal(self, job: Job, name: str) -> None:
        """Only a signal; the run decides what it means. Raises HostError when its node does not answer."""
        running = self._running.get(job.id)
        member = self._roster.members.get(running.attempt.node) if running else None
        if running and member:
            await member.engine.signal(place_in(running.record.batch, running.run), name)

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
        """Signals of growing force until the attempt has ended."""
        running = self._running.get(job.id)
        if running is None:
            return
        if running.ending is not None:
            running.ending.cancel()
        running.ending = self._spawn(self._escalate(running, signal), f"end {running.attempt}")

    async def _escalate(self, running: Running, signal: str) -> None:
        member = self._roster.members.get(running.attempt.node)
        if member is None:
            return
        for name, pause in ESCALATION[signal]:
            await self._until_sent(running, member, name)
            await asyncio.sleep(pause)
        while True:
            await self._until_sent(running, member, "KILL")
            await asyncio.sleep(1.0)

    async def _until_sent(self, running: Running, member: Member, name: str) -> None:
        """A run that has not begun is refused its folder; one on a silent node is asked until it answers."""
        while True:
            try:
                place = place_in(running.record.batch, running.run)
                if await member.engine.signal(place, name):
                    return
                if await member.engine.refuse(place):
                    if not running.record.batch:  # there it ends as its batch comes to it
                        running.refused = True
                        assert running.task is not None
                        running.task.cancel()
                    return
            except HostError as error:
                log.info("%s: cannot send %s to %s yet: %s", member.name, name, running.run, error.reason)
            await asyncio.sleep(0.2)

    # --- leaving

    async def close(self) -> None:
        """Runs go on; what has just ended is still cleaned up, as perhaps no master comes after this one."""
        if self._cleaning:
            await asyncio.wait(set(self._cleaning), timeout=LEAVE_SECONDS)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def lifecycle_signal(job: Job) -> str:
    """The signal by which a job was cancelled: the first word of who asked."""
    name = job.cancel_by.split(maxsplit=1)[0] if job.cancel_by else "TERM"
    return name if name in ESCALATION else "TERM"
