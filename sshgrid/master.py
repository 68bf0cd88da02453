"""The master: accepts jobs, claims a node for each, settles what came of the attempt, and lets people watch.

It wires the parts together and answers everything that may be asked; it decides nothing itself. Placing is the
scheduler's work, running that of attempts, and both ask pure functions. A job's state is in the store first, in memory
second.
"""

from __future__ import annotations

import functools
import logging
import signal as signals
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from random import Random

import msgspec

from sshgrid.errors import NoNodeLeft, SshgridError, UnknownLanguage, UsageError
from sshgrid.model import Cancelled, Inventory, Job, JobId, Phase, Program, Submission
from sshgrid.node import fanout
from sshgrid.node.managed_node import ManagedNode
from sshgrid.nodes import NodePool
from sshgrid.notation import selectors
from sshgrid.policy import placement, quota, retry, states
from sshgrid.policy.placement import NodeView
from sshgrid.protocol.messages import (
    Cancel,
    Event,
    Execute,
    ExecuteReply,
    ExplainReply,
    JobLine,
    Jobs,
    Logs,
    NodeFindings,
    NodeLine,
    NodeReason,
    Nodes,
    ToolchainLine,
    Watch,
)
from sshgrid.protocol.sweep_messages import WatchSweep
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.queue.store import Store
from sshgrid.reports.lines import job_line, node_line
from sshgrid.reports.sweep_report import SweepReport
from sshgrid.reports.watch import tail, watch
from sshgrid.scheduler import admission
from sshgrid.scheduler.active_sweeps import ActiveSweeps
from sshgrid.scheduler.admission import inputs_of
from sshgrid.scheduler.attempts import Attempts
from sshgrid.scheduler.scheduler import DECIDE_SECONDS, Scheduler
from sshgrid.spool.local_files import LocalFiles
from sshgrid.sweeps.checks import is_success
from sshgrid.users.accounts import People

log = logging.getLogger(__name__)

# Names that every node's `kill` knows: no numbers, no real-time signals.
SIGNALS = frozenset(name.removeprefix("SIG") for name in signals.Signals.__members__ if not name.startswith("SIGRT"))
MAX_WINDOW = 65535  # as the terminal's own 16 bits


class _Moment:
    """The nodes at one moment, and what that means for waiting jobs: thousands alike are one question."""

    def __init__(
        self,
        views: Callable[[], Sequence[NodeView]],
        is_full: Callable[[str], bool],
        seen_by: Callable[[Sequence[NodeView], str], Sequence[NodeView]],
    ) -> None:
        views = functools.cache(views)  # only for a job that waits: most do not
        self.views = functools.cache(lambda owner: seen_by(views(), owner))
        self._is_full = functools.cache(is_full)
        self._codes: dict[object, str] = {}

    def pending_code(self, job: Job) -> str:
        if self._is_full(job.owner):
            return "UserLimit"
        views = self.views(job.owner)
        key = id(views), placement.needs(job.submission), job.excluded
        if key not in self._codes:
            self._codes[key] = placement.pending_code(views, job.submission, job.excluded)
        return self._codes[key]


class Master:
    """One grid: its parts wired together, and everything that may be asked of it."""

    def __init__(
        self, store: Store, pool: NodePool, active_jobs: ActiveJobs, inventory: Inventory, rng: Random
    ) -> None:
        self.store = store
        self.spool = pool.shared.spool
        self.pool = pool
        self.active_jobs = active_jobs
        self.attempts = Attempts(active_jobs, pool)
        self.people = People(active_jobs, lambda job, by: self._cancel(job, "TERM", by))
        self.sweeps = ActiveSweeps(active_jobs, pool.shared.spool, lambda task: self._cancel(task, "TERM", "its sweep"))
        self.sweep_report = SweepReport(
            active_jobs, pool.shared.spool, self.sweeps, self.attempts.running, self._disconnected
        )
        self.scheduler = Scheduler(
            active_jobs, pool, self.attempts, self.sweeps, inventory.placement, rng, self.people.caps
        )
        self.inventory = inventory
        self._rng = rng
        self.local_files = LocalFiles(pool.shared.spool)

    async def run(self) -> None:
        """Take up what an earlier master left, then place what waits; until cancelled."""
        self._forget_removed()
        self.sweeps.take_up()
        await self.follow(self.inventory)
        self.attempts.resume(self.active_jobs.in_phase(Phase.RUNNING))
        await self.scheduler.run()

    def _forget_removed(self) -> None:
        """Output of jobs that a killed master had removed only half, and what a restored queue knows nothing of."""
        for job_id in set(self.spool.outputs.jobs()) - set(self.store.jobs.ids()):
            self.spool.outputs.remove(job_id)
        for job in (*self.active_jobs.in_phase(Phase.QUEUED), *self.active_jobs.in_phase(Phase.RUNNING)):
            self.spool.outputs.remove_after(job.id, job.attempts[-1].number if job.attempts else 0)

    async def follow(self, inventory: Inventory) -> None:
        """From now on these are the nodes."""
        self.inventory = inventory
        self.scheduler.policy = inventory.placement
        self.scheduler.groups = [group for group in inventory.groups if group.max_jobs_per_user is not None]
        await self.pool.follow(inventory.nodes, inventory.languages, inventory.retry)

    async def let_go(self) -> None:
        """Nodes that were removed from the inventory while they had work leave once that has ended."""
        names = {node.name for node in self.inventory.nodes}
        if any(managed.name not in names and not managed.running for managed in self.pool.nodes.values()):
            await self.follow(self.inventory)

    def pause(self) -> None:
        """Start nothing more; what runs goes on."""
        self.scheduler.paused = True

    # --- what people ask: the Grid

    async def submit(self, submission: Submission, key: str, owner: str = "") -> JobId:
        """Accept a job: durable on return. Raises UnknownLanguage, NoNodeLeft, UsageError, OverLimit."""
        if before := self.store.jobs.of_key(owner, key):
            return before.id  # accepted is accepted, whatever the grid looks like now
        submission = self._bounded(submission, owner)
        submission = admission.complete(submission, self.inventory.languages, self.spool)
        await self._refuse_impossible(submission)
        job = self.store.add(submission, owner, key, time.time())
        if submission.sweep:
            self.sweeps.add(job)
        self.active_jobs.keep(job)
        return job.id

    def _bounded(self, submission: Submission, owner: str) -> Submission:
        caps = self.people.caps(owner)
        waiting = 0 if caps.queued is None else self.active_jobs.count(owner, Phase.QUEUED) + self.sweeps.unbegun(owner)
        return quota.bounded(submission, caps, waiting)

    def _is_full(self, owner: str) -> bool:
        """Whether this user may start no more now."""
        caps = self.people.caps(owner)
        return caps.running is not None and quota.must_wait(self.active_jobs.count(owner, Phase.RUNNING), caps)

    def _moment(self) -> _Moment:
        return _Moment(self.pool.views, self._is_full, self.scheduler.seen_by)

    async def _refuse_impossible(self, submission: Submission) -> None:
        """Early no to what no node can ever run; waits a moment for nodes that have not been asked yet."""
        deadline = time.monotonic() + DECIDE_SECONDS
        language = submission.program.language
        while True:
            views = self.pool.views()
            if impossible := placement.permanently_impossible(views, submission, self.inventory.languages):
                raise _refusal(*impossible)
            able = any(language in view.toolchains for view in views)
            if able or not self.pool.undecided(language) or time.monotonic() > deadline:
                return
            self.pool.want(language)
            await self.active_jobs.notifications.changed(None, 0.25)

    @asynccontextmanager
    async def watch(self, request: Watch | WatchSweep | Logs) -> AsyncIterator[AsyncIterator[tuple[Event, bytes]]]:
        """Events of one job. Raises NoSuchJob."""
        self.active_jobs.current(request.job)
        if isinstance(request, WatchSweep):
            events = self.sweep_report.watch(request, self.line)
        elif isinstance(request, Watch):
            events = watch(self.active_jobs, self.spool, self.line, request)
        else:
            events = tail(self.active_jobs, self.spool, self.line, request)
        try:
            yield events
        finally:
            await events.aclose()

    async def cancel(self, request: Cancel, by: str = "") -> int:
        """End jobs, or only send them a signal; how many were not over yet. Raises NoSuchJob, UsageError, HostError."""
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

    async def typed(self, job_id: JobId, piece: bytes) -> None:
        """Bytes for the standard input of an interactive run; b"" ends it. Other runs hear nothing of them."""
        await self.attempts.keyboards.put_input(self.active_jobs.current(job_id), piece)

    async def resized(self, job_id: JobId, columns: int, rows: int) -> None:
        """The window of an interactive run on a terminal has another size now."""
        if not (0 <= columns <= MAX_WINDOW and 0 <= rows <= MAX_WINDOW):
            raise UsageError(f"no window has {columns} columns and {rows} rows")
        await self.attempts.keyboards.put_window_size(self.active_jobs.current(job_id), columns, rows)

    def _cancel(self, job: Job, signal: str, by: str) -> None:
        words = f"{signal} by {by}" if by else signal
        job = self.store.request_cancel(job.id, words)
        if job.submission.sweep and job.phase is Phase.QUEUED:
            self.active_jobs.keep(job)
            self.sweeps.changed(job, lambda task: self._cancel(task, signal, by))
        elif job.phase is Phase.QUEUED:
            self.store.finish(job.id, Cancelled(words), time.time())
            self.attempts.keyboards.remove(job.id)
            self.active_jobs.reread(job.id)
        elif job.phase is Phase.RUNNING:
            self.active_jobs.keep(job)
            self.attempts.termination.end(job, signal)

    async def hold(self, jobs: Sequence[JobId], release: bool) -> int:
        """Keep waiting jobs from starting, or let them go; how many of these wait."""
        waiting = [job_id for job_id in jobs if self.active_jobs.current(job_id).phase is Phase.QUEUED]
        for job_id in waiting:
            job = self.store.hold(job_id, "" if release else states.HELD_BY_USER)
            self.active_jobs.keep(job)
            self.sweeps.changed(job)
        return len(waiting)

    async def retry(self, jobs: Sequence[JobId], failed: bool) -> int:
        """Queue what is over once more: with `failed` only what did not succeed. How many jobs or tasks."""
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
            raise UsageError(f"sweep {job.id} is not over", f"sshgrid wait {job.id}")
        fates = self.store.jobs.task_fates(job.id)
        again = [task for task, phase, verdict in fates if phase is Phase.DONE and not (failed and is_success(verdict))]
        unbegun = self.sweep_report.progress(job).left
        if not again and not unbegun:
            return 0
        self.active_jobs.retry([*again, job.id])
        self.sweeps.add(self.store.jobs.get(job.id))
        for task in again:
            self.active_jobs.reread(task)
        self.active_jobs.reread(job.id)
        return len(again) + unbegun

    async def remove(self, jobs: Sequence[JobId]) -> int:
        """Forget finished jobs and what they left here."""
        for job_id in jobs:
            self.active_jobs.remove(job_id)
            self.spool.outputs.remove(job_id)
            self.active_jobs.notifications.forget(job_id)
        inputs = inputs_of(self.store.jobs.input_lists(), self.spool)
        self.spool.blobs.evict(self.store.jobs.blobs() | inputs, time.time())
        return len(jobs)

    async def jobs(self, query: Jobs, seen_by: str = "") -> Sequence[JobLine]:
        """What `query` asks for; of nobody else's jobs than those of `seen_by`, unless that is ""."""
        if not seen_by and query.limit and query == Jobs(active_only=True, limit=query.limit):
            found = (
                self.active_jobs.active()
            )  # asked every other second by whoever looks on: the store need not be read
        else:
            found = self._stored_jobs(query, seen_by)
        if query.limit:
            found = sorted(found, key=lambda job: (_RANK[job.phase], job.id))[: query.limit]
        moment = self._moment()
        lines = [self._line(job, moment) for job in found]
        return [line for line in lines if not query.states or line.state in query.states]

    def _stored_jobs(self, query: Jobs, seen_by: str) -> list[Job]:
        ids = selectors.jobs(query.selector, self.store.jobs.ids(seen_by)) if query.selector else None
        if seen_by and query.user not in ("", seen_by):
            return []
        since = time.time() - query.since_seconds if query.since_seconds is not None else 0.0
        return self.store.jobs.select(ids, active_only=query.active_only, owner=seen_by or query.user, since=since)

    def line(self, job: Job, explain: bool = False) -> JobLine:
        """One job as people see it; `explain` adds for a waiting job what rules each node out."""
        return self._line(job, self._moment(), explain)

    def _line(self, job: Job, moment: _Moment, explain: bool = False) -> JobLine:
        now = time.time()
        job = self.attempts.running.with_live_records(job)
        if job.submission.sweep:
            return self._sweep_line(job, now, moment)
        allowed = retry.attempts_allowed(job, self.inventory.retry)
        pending, why = "", tuple[NodeReason, ...]()
        if job.phase is Phase.QUEUED:
            pending = moment.pending_code(job)
            if explain:
                why = placement.explain(moment.views(job.owner), job.submission, job.excluded, self.inventory.languages)
        return job_line(job, now, allowed, self._disconnected(job), pending, why)

    def _sweep_line(self, job: Job, now: float, moment: _Moment) -> JobLine:
        """A sweep runs while it is not over and some task of it has begun."""
        progress = self.sweep_report.progress(job)
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
        return bool(job.live) and not any(self._is_up(record.node) for record in job.live)

    def _is_up(self, node: str) -> bool:
        managed = self.pool.nodes.get(node)
        return managed is not None and managed.up

    async def nodes(self, query: Nodes) -> Sequence[NodeLine]:
        managed_nodes = self.pool.nodes
        chosen = [
            node.name
            for node in selectors.nodes(query.selector, [managed.config for managed in managed_nodes.values()])
        ]
        return [self._node_line(managed_nodes[name], query.history) for name in chosen]

    def _node_line(self, node: ManagedNode, history: bool) -> NodeLine:
        seen = node.last_seen if node.facts else None
        return node_line(node.view(), seen, node.busy_minute if history else ())

    async def check_nodes(self, selector: str) -> Sequence[NodeLine]:
        """Dial now, wait for the answers, then what `nodes` says."""
        managed_nodes = self.pool.nodes
        chosen = [
            managed_nodes[node.name] for node in selectors.nodes(selector, [m.config for m in managed_nodes.values()])
        ]
        for managed in chosen:
            managed.dial_now()
        deadline = time.monotonic() + max(
            (managed.config.connect_timeout_seconds + 20 for managed in chosen), default=0
        )
        while any(not managed.tried for managed in chosen) and time.monotonic() < deadline:
            await self.active_jobs.notifications.changed(None, 0.5)
        return await self.nodes(Nodes(selector))

    async def execute(self, request: Execute) -> ExecuteReply:
        """A command on all of these nodes at once; those that are down are dialled first."""
        fanout.refuse_unfit(request)
        return await fanout.execute(await self._dialled(request.selector), request)

    async def diagnose(self, selector: str) -> tuple[NodeFindings, ...]:
        """What silently breaks people on these nodes; one that is down says why."""
        return await fanout.diagnose(await self._dialled(selector))

    async def _dialled(self, selector: str) -> list[ManagedNode]:
        names = [line.name for line in await self.check_nodes(selector)]
        return [self.pool.nodes[name] for name in names if name in self.pool.nodes]

    async def explain(self, submission: Submission) -> ExplainReply:
        submission = admission.complete(submission, self.inventory.languages, self.spool)
        await self._refuse_impossible(submission)
        views = self.pool.views()
        policy = placement.POLICIES[self.inventory.placement]
        chosen = placement.place(views, submission, (), policy, self._rng, self.scheduler.turn)
        able = placement.eligible(views, submission)
        return ExplainReply(
            chosen.node.name if chosen else "",
            tuple((view.node.name, placement.score(view)) for view in able),
            placement.explain(views, submission, (), self.inventory.languages),
        )

    async def toolchains(self, selector: str) -> tuple[ToolchainLine, ...]:
        managed_nodes = self.pool.nodes
        chosen = [
            managed_nodes[node.name] for node in selectors.nodes(selector, [m.config for m in managed_nodes.values()])
        ]
        return tuple(
            ToolchainLine(
                row.name,
                row.match,
                tuple((m.name, m.toolchains[row.name]) for m in chosen if row.name in m.toolchains),
                tuple(NodeReason(m.name, m.problems[row.name]) for m in chosen if row.name in m.problems),
            )
            for row in self.inventory.languages
        )

    def counts(self, owner: str = "") -> dict[str, int]:
        """Jobs by state, of one owner or of all, without reading each."""
        found: dict[str, int] = {}
        for phase, verdict, number in self.store.jobs.tally(owner):
            probe = Job(JobId(0), "", _NOTHING, 0.0, phase=phase, verdict=verdict)
            state = states.state(probe)
            found[state] = found.get(state, 0) + number
        return found

    # --- leaving

    async def close(self) -> None:
        """Runs on nodes go on; the next master finds them."""
        await self.local_files.close()
        await self.attempts.close()
        await self.pool.close()
        self.people.close()
        self.spool.close()
        self.store.close()


def _refusal(code: str, message: str) -> SshgridError:
    if code == "NoToolchain":
        return UnknownLanguage(message, "sshgrid toolchains")
    return NoNodeLeft(message, "sshgrid nodes")


_RANK = {Phase.RUNNING: 0, Phase.QUEUED: 1, Phase.DONE: 2}
_NOTHING = Submission(Program("", "", ()), "")
