"""The master: accepts jobs, claims a node for each, settles what came of the attempt, and lets people watch.

It decides nothing itself: placement, lifecycle and breaker are pure functions over what it knows. It refuses to tell
anybody of a result that is not on disk. A job's state is in the store first and in memory second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from random import Random

import msgspec

from sshgrid import lifecycle, placement, report, selectors, toolchains
from sshgrid.attempts import Attempts
from sshgrid.errors import NoNodeLeft, SshgridError, UnknownLanguage, UsageError
from sshgrid.model import (
    Cancelled,
    GaveUp,
    Inventory,
    Job,
    JobId,
    Language,
    Phase,
    Program,
    Submission,
)
from sshgrid.placement import NodeView
from sshgrid.roster import Roster
from sshgrid.spool import Spool
from sshgrid.store import Store
from sshgrid.watching import Board, tail, watch
from sshgrid.wire import (
    Cancel,
    Event,
    ExplainReply,
    JobLine,
    Jobs,
    Logs,
    NodeLine,
    NodeReason,
    Nodes,
    ToolchainLine,
    Watch,
)

log = logging.getLogger(__name__)

# While a node is still being dialled or tested it may turn out to be the better choice: for so long a new job waits.
DECIDE_SECONDS = 3.0
# An attached job gives up when every node that might run it has been down for so long.
NOBODY_UP_SECONDS = 5.0
LONGEST_STEP_SECONDS = 30.0


class Master:
    """One grid. Made by `open_master`; works while `run` runs."""

    def __init__(self, store: Store, spool: Spool, roster: Roster, inventory: Inventory, rng: Random) -> None:
        self.store = store
        self.spool = spool
        self.roster = roster
        self.inventory = inventory
        self.board = Board()
        self._rng = rng
        self._turn = 0
        self._wake = asyncio.Event()
        self._active: dict[JobId, Job] = {job.id: job for job in store.jobs(active_only=True)}
        self.attempts = Attempts(self)
        self._since = time.time()
        self._stopping = False

    # --- the loop

    async def run(self) -> None:
        """Place what waits, whenever something has changed; until cancelled."""
        self._forget_removed()
        await self.follow(self.inventory)
        for job in list(self._active.values()):
            if job.phase is Phase.RUNNING:
                self.attempts.resume(job)
        while True:
            self._wake.clear()
            pause = self._step(time.time())
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def _forget_removed(self) -> None:
        """Output of jobs that a killed master had removed only half."""
        for job_id in set(self.spool.jobs()) - set(self.store.ids()):
            self.spool.remove(job_id)

    def wake(self) -> None:
        self._wake.set()

    async def follow(self, inventory: Inventory) -> None:
        self.inventory = inventory
        await self.roster.follow(inventory.nodes, inventory.languages, inventory.retry)

    def _step(self, now: float) -> float:
        """Start what can be started; seconds until the next look that nothing else would cause."""
        if self._stopping:
            return LONGEST_STEP_SECONDS
        waiting = [job for job in self._active.values() if job.phase is Phase.QUEUED and not job.held]
        pause = min((job.not_before - now for job in waiting if job.not_before > now), default=LONGEST_STEP_SECONDS)
        due = [job for job in waiting if job.not_before <= now]
        views = self.roster.views(now)
        for job in placement.order(due, self._running_by_owner()):
            if self._finish_hopeless(job, views, now):
                continue
            if rest := self._undecided_seconds(job, now):
                pause = min(pause, rest)
                continue
            if self._start(job, views, now):
                views = self.roster.views(now)
            elif placement.all_down(views, job.submission):
                pause = min(pause, 1.0)
        return max(0.01, pause)

    def _running_by_owner(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for job in self._active.values():
            if job.phase is Phase.RUNNING:
                counts[job.owner] = counts.get(job.owner, 0) + 1
        return counts

    def _undecided_seconds(self, job: Job, now: float) -> float:
        """How long this job still waits for nodes that are being dialled or tested; 0 = it may choose."""
        language = job.submission.program.language
        self._want(language)
        rest = max(job.submitted, self._since) + DECIDE_SECONDS - now
        if rest <= 0 or job.attempts:
            return 0.0
        open_questions = any(
            member.undecided or (member.up and language in member.untested) for member in self.roster.members.values()
        )
        return max(0.05, rest) if open_questions else 0.0

    def _want(self, language: str) -> None:
        for member in self.roster.members.values():
            member.want(language)

    def _start(self, job: Job, views: Sequence[NodeView], now: float) -> bool:
        policy = placement.POLICIES[self.inventory.placement]
        view = placement.place(views, job.submission, job.excluded, policy, self._rng, self._turn)
        if view is None:
            self.board.tell(job.id)
            return False
        self._turn += 1
        attempt = self.store.begin(job.id, view.node.name, now)
        if attempt is None:
            self._active[job.id] = self.store.job(job.id)
            return False
        self._active[job.id] = job = self.store.job(job.id)
        self.attempts.begin(job, attempt)
        return True

    def _finish_hopeless(self, job: Job, views: Sequence[NodeView], now: float) -> bool:
        reason = self._hopeless(job, views, now)
        if reason is None:
            return False
        verdict = Cancelled(job.cancel_by) if job.cancel_requested else GaveUp(reason)
        self.store.finish(job.id, verdict, now)
        self._forget(job.id)
        return True

    def _hopeless(self, job: Job, views: Sequence[NodeView], now: float) -> str | None:
        if job.cancel_requested:
            return "cancelled"
        if impossible := placement.permanently_impossible(views, job.submission, self.inventory.languages):
            return impossible[1]
        since = max(job.submitted, self._since, job.attempts[-1].ended or 0.0 if job.attempts else 0.0)
        waited = now - since > (NOBODY_UP_SECONDS if not job.attempts else self.inventory.retry.patience_min_seconds)
        if waited and not job.submission.wait_for_nodes and placement.all_down(views, job.submission):
            return "no node is up: " + self._reasons(views, job.submission)
        return None

    def _reasons(self, views: Sequence[NodeView], submission: Submission) -> str:
        why = placement.explain(views, submission, (), self.inventory.languages)
        return "; ".join(f"{line.node}: {line.reason}" for line in why)

    # --- what attempts report back

    def current(self, job_id: JobId) -> Job:
        """The job as it stands. Raises NoSuchJob."""
        return self._active.get(job_id) or self.store.job(job_id)

    def keep(self, job: Job) -> None:
        """A newer state of an active job."""
        if job.phase is Phase.DONE:
            self._forget(job.id)
        else:
            self._active[job.id] = job
            self.board.tell(job.id)
        self.wake()

    def _forget(self, job_id: JobId) -> None:
        self._active.pop(job_id, None)
        self.board.tell(job_id)
        self.wake()

    def pause(self) -> None:
        """Start nothing more; what runs goes on."""
        self._stopping = True

    @property
    def busy(self) -> bool:
        return any(job.phase is Phase.RUNNING for job in self._active.values())

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits that could still run."""
        return not any(not job.held for job in self._active.values())

    # --- what people ask: the Grid

    async def submit(self, submission: Submission, key: str, owner: str = "") -> JobId:
        """Accept a job: durable on return. Raises UnknownLanguage, NoNodeLeft, UsageError."""
        submission = self._complete(submission)
        await self._refuse_impossible(submission)
        missing = self.spool.missing(_digests(submission))
        if missing:
            raise UsageError(f"{len(missing)} files of this job were not uploaded")
        job = self.store.add(submission, owner, key, time.time())
        if job.phase is not Phase.DONE:
            self._active.setdefault(job.id, job)
        self.wake()
        return job.id

    def _complete(self, submission: Submission) -> Submission:
        """A program whose language the client could not tell gets it from the inventory's table."""
        program = submission.program
        for file in program.files:
            toolchains.check_name(file.name)
        if program.language:
            known = {row.name for row in self.inventory.languages}
            if program.language not in known:
                raise UnknownLanguage(f"unknown language {program.language!r}", "sshgrid toolchains")
            return submission
        entry = next((file for file in program.files if file.name == program.entry), None)
        if entry is None:
            raise UsageError(f"{program.entry} is not among the files of the program")
        head = self.spool.read(entry.sha256)[:4096] if self.spool.has(entry.sha256) else b""
        row, version = toolchains.language_of(entry.name, head, entry.executable, self.inventory.languages, "")
        named = msgspec.structs.replace(program, language=row.name, version=program.version or version)
        return msgspec.structs.replace(submission, program=named)

    async def _refuse_impossible(self, submission: Submission) -> None:
        """Early no to what no node can ever run; waits a moment for nodes that have not been asked yet."""
        deadline = time.time() + DECIDE_SECONDS
        language = submission.program.language
        while True:
            views = self.roster.views(time.time())
            if impossible := placement.permanently_impossible(views, submission, self.inventory.languages):
                raise _refusal(*impossible)
            able = any(language in view.toolchains for view in views)
            open_questions = any(
                member.undecided or (member.up and language in member.untested)
                for member in self.roster.members.values()
            )
            if able or not open_questions or time.time() > deadline:
                return
            self._want(language)
            await self.board.changed(None, 0.25)

    def language(self, name: str) -> Language:
        row = next((row for row in self.inventory.languages if row.name == name), None)
        if row is None:
            raise UnknownLanguage(f"unknown language {name!r}", "sshgrid toolchains")
        return row

    @asynccontextmanager
    async def watch(self, request: Watch | Logs) -> AsyncIterator[AsyncIterator[tuple[Event, bytes]]]:
        """Events of one job. Raises NoSuchJob."""
        self.current(request.job)
        events = watch(self, request) if isinstance(request, Watch) else tail(self, request)
        try:
            yield events
        finally:
            await events.aclose()

    async def cancel(self, request: Cancel, by: str = "") -> int:
        """End jobs, or only send them a signal; how many were not over yet."""
        ending = request.signal in ("INT", "TERM", "KILL")
        count = 0
        for job_id in request.jobs:
            job = self.current(job_id)
            if job.phase is Phase.DONE:
                continue
            count += 1
            if ending:
                self._cancel(job, request.signal, by)
            else:
                await self.attempts.signal(job, request.signal)
        return count

    async def typed(self, job_id: JobId, piece: bytes) -> None:
        """Bytes for the standard input of an interactive run; b"" ends it."""
        await self.attempts.typed(self.current(job_id), piece)

    async def resized(self, job_id: JobId, columns: int, rows: int) -> None:
        """The window of an interactive run on a terminal has another size now."""
        await self.attempts.resized(self.current(job_id), columns, rows)

    def _cancel(self, job: Job, signal: str, by: str) -> None:
        words = f"{signal} by {by}" if by else signal
        job = self.store.request_cancel(job.id, words)
        if job.phase is Phase.QUEUED:
            self.store.finish(job.id, Cancelled(words), time.time())
            self._forget(job.id)
        elif job.phase is Phase.RUNNING:
            self.keep(job)
            self.attempts.end(job, signal)

    async def hold(self, jobs: Sequence[JobId], release: bool) -> int:
        for job_id in jobs:
            job = self.store.hold(job_id, "" if release else lifecycle.HELD_BY_USER)
            if job.phase is not Phase.DONE:
                self.keep(job)
        return len(jobs)

    async def remove(self, jobs: Sequence[JobId]) -> int:
        """Forget finished jobs and what they left here."""
        for job_id in jobs:
            self.store.remove(job_id)
            self.spool.remove(job_id)
        self.spool.sweep(self.store.blobs(), time.time())
        return len(jobs)

    async def jobs(self, query: Jobs) -> Sequence[JobLine]:
        ids = selectors.jobs(query.selector, self.store.ids()) if query.selector else None
        since = time.time() - query.since_seconds if query.since_seconds is not None else 0.0
        found = self.store.jobs(ids, active_only=query.active_only, owner=query.user, since=since)
        views = self.roster.views(time.time())
        lines = [self.line(self._active.get(job.id, job), views) for job in found]
        return [line for line in lines if not query.states or line.state in query.states]

    def line(self, job: Job, views: Sequence[NodeView] | None = None, explain: bool = False) -> JobLine:
        """One job as people see it; `explain` adds for a waiting job what rules each node out."""
        now = time.time()
        job = self.attempts.live(job)
        allowed = lifecycle.attempts_allowed(job, self.inventory.retry)
        pending, why = "", tuple[NodeReason, ...]()
        if job.phase is Phase.QUEUED:
            views = self.roster.views(now) if views is None else views
            pending = placement.pending_code(views, job.submission, job.excluded)
            if explain:
                why = placement.explain(views, job.submission, job.excluded, self.inventory.languages)
        return report.job_line(job, now, allowed, self._disconnected(job), pending, why)

    def _disconnected(self, job: Job) -> bool:
        if job.phase is not Phase.RUNNING or not job.attempts:
            return False
        member = self.roster.members.get(job.attempts[-1].node)
        return member is None or not member.up

    async def nodes(self, query: Nodes) -> Sequence[NodeLine]:
        now = time.time()
        members = self.roster.members
        chosen = [node.name for node in selectors.nodes(query.selector, [member.node for member in members.values()])]
        return [
            report.node_line(members[name].view(now), members[name].last_seen if members[name].facts else None)
            for name in chosen
        ]

    async def check_nodes(self, selector: str) -> Sequence[NodeLine]:
        """Dial now, wait for the answers, then what `nodes` says."""
        members = self.roster.members
        chosen = [members[node.name] for node in selectors.nodes(selector, [m.node for m in members.values()])]
        for member in chosen:
            member.dial_now()
        deadline = time.time() + max((member.node.connect_timeout_seconds + 20 for member in chosen), default=0)
        while any(not member.tried for member in chosen) and time.time() < deadline:
            await self.board.changed(None, 0.5)
        return await self.nodes(Nodes(selector))

    async def explain(self, submission: Submission) -> ExplainReply:
        submission = self._complete(submission)
        await self._refuse_impossible(submission)
        views = self.roster.views(time.time())
        policy = placement.POLICIES[self.inventory.placement]
        chosen = placement.place(views, submission, (), policy, self._rng, self._turn)
        able = placement.eligible(views, submission)
        return ExplainReply(
            chosen.node.name if chosen else "",
            tuple((view.node.name, placement.score(view)) for view in able),
            placement.explain(views, submission, (), self.inventory.languages),
        )

    async def toolchains(self, selector: str) -> tuple[ToolchainLine, ...]:
        members = self.roster.members
        chosen = [members[node.name] for node in selectors.nodes(selector, [m.node for m in members.values()])]
        return tuple(
            ToolchainLine(
                row.name,
                row.match,
                tuple((m.name, m.toolchains[row.name]) for m in chosen if row.name in m.toolchains),
                tuple(NodeReason(m.name, m.problems[row.name]) for m in chosen if row.name in m.problems),
            )
            for row in self.inventory.languages
        )

    def counts(self) -> dict[str, int]:
        """Jobs by state, without reading each."""
        found: dict[str, int] = {}
        for phase, verdict, number in self.store.tally():
            probe = Job(JobId(0), "", _NOTHING, 0.0, phase=phase, verdict=verdict)
            state = lifecycle.state(probe)
            found[state] = found.get(state, 0) + number
        return found

    # --- leaving

    async def close(self) -> None:
        """Runs on nodes go on; the next master finds them."""
        self._stopping = True
        await self.attempts.close()
        await self.roster.close()
        self.spool.close()
        self.store.close()


def _digests(submission: Submission) -> Collection[str]:
    program = submission.program
    files = (*program.files, program.stdin) if program.stdin else program.files
    return {file.sha256 for file in files}


def _refusal(code: str, message: str) -> SshgridError:
    if code == "NoToolchain":
        return UnknownLanguage(message, "sshgrid toolchains")
    return NoNodeLeft(message, "sshgrid nodes")


_NOTHING = Submission(Program("", "", ()), "")
