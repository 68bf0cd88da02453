"""The queue compared with a simple model: any order of calls, one or two connections, reopened at any time."""

from __future__ import annotations

import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from sshgrid.errors import NoSuchJob, UsageError
from sshgrid.model import (
    Attempt,
    AttemptRecord,
    Cancelled,
    Exited,
    HostLost,
    Job,
    JobId,
    Phase,
    Program,
    SourceFile,
    Step,
    Submission,
    Superseded,
)
from sshgrid.queue.store import Store

change = msgspec.structs.replace
owners = st.sampled_from(["ana", "ben"])
nodes = st.sampled_from(["n1", "n2", "n3"])
times = st.integers(0, 9).map(float)
programs = st.builds(
    Program,
    language=st.sampled_from(["c", "java"]),
    entry=st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    files=st.just((SourceFile("a", "0" * 64, 1),)),
    args=st.tuples(st.binary(max_size=4)),
)
submissions = st.builds(Submission, program=programs, command=st.just("a"), priority=st.integers(-2, 2))


class StoreMachine(RuleBasedStateMachine):
    known = Bundle("known")
    started = Bundle("started")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "state" / "queue.db"
        self.store = Store.open(self.path)
        self.grid = self.store.grid
        self.jobs: dict[JobId, Job] = {}
        self.by_key: dict[tuple[str, str], JobId] = {}
        self.last = 0

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(target=known, submission=submissions, owner=owners, key=st.sampled_from("xyz"), now=times)
    def add(self, submission: Submission, owner: str, key: str, now: float) -> JobId:
        job = self.store.add(submission, owner, key, now)
        if (owner, key) not in self.by_key:
            self.last += 1
            self.by_key[owner, key] = JobId(self.last)
            self.jobs[JobId(self.last)] = Job(JobId(self.last), owner, submission, now)
        assert job == self.jobs[self.by_key[owner, key]]
        return job.id

    @rule(target=started, job_id=known, node=nodes, now=times)
    def begin(self, job_id: JobId, node: str, now: float) -> object:
        attempt = self.store.attempts.begin(job_id, node, now)
        job = self.jobs.get(job_id)
        if job is None or job.phase is not Phase.QUEUED or job.held or job.cancel_requested:
            assert attempt is None
            return multiple()
        record = AttemptRecord(len(job.attempts) + 1, node, now)
        assert attempt == Attempt(job_id, record.number, node)
        self.jobs[job_id] = change(job, phase=Phase.RUNNING, attempts=(*job.attempts, record))
        return attempt

    @rule(target=started, job_id=known, node=nodes, now=times)
    def begin_speculative(self, job_id: JobId, node: str, now: float) -> object:
        attempt = self.store.attempts.begin_speculative(job_id, node, now)
        job = self.jobs.get(job_id)
        if job is None or job.cancel_requested or [record.number for record in job.live] != [len(job.attempts)]:
            assert attempt is None
            return multiple()
        record = AttemptRecord(len(job.attempts) + 1, node, now, speculative=True)
        assert attempt == Attempt(job_id, record.number, node)
        self.jobs[job_id] = change(job, attempts=(*job.attempts, record))
        return attempt

    def current(self, attempt: Attempt) -> Job | None:
        """The job of a live attempt."""
        job = self.jobs.get(attempt.job)
        return job if job and attempt.number in [record.number for record in job.live] else None

    @staticmethod
    def with_record(job: Job, *records: AttemptRecord) -> Job:
        newer = {record.number: record for record in records}
        return change(job, attempts=tuple(newer.get(record.number, record) for record in job.attempts))

    @rule(attempt=started, step=st.sampled_from(Step), sent=st.integers(0, 5))
    def note(self, attempt: Attempt, step: Step, sent: int) -> None:
        job = self.current(attempt)
        record = AttemptRecord(
            attempt.number, attempt.node, 1.0, step, uploaded_bytes=sent, speculative=self.is_speculative(attempt)
        )
        assert self.store.attempts.note(attempt, record) == (job is not None)
        if job:
            self.jobs[job.id] = self.with_record(job, record)

    def is_speculative(self, attempt: Attempt) -> bool:
        job = self.jobs.get(attempt.job)
        return job is not None and job.attempts[attempt.number - 1].speculative

    @rule(attempt=started, now=times)
    def settle_one_of_two(self, attempt: Attempt, now: float) -> None:
        job = self.current(attempt)
        speculative = self.is_speculative(attempt)
        record = AttemptRecord(
            attempt.number, attempt.node, 1.0, outcome=HostLost("x"), ended=now, speculative=speculative
        )
        has_two = job is not None and len(job.live) == 2
        assert self.store.attempts.settle_one_of_two(attempt, record) == has_two
        if job and has_two:
            self.jobs[job.id] = self.with_record(job, record)

    @rule(attempt=started, over=st.booleans(), now=times, held=st.sampled_from(["", "poison"]), excluded=st.sets(nodes))
    def settle(self, attempt: Attempt, over: bool, now: float, held: str, excluded: set[str]) -> None:
        job = self.current(attempt)
        settled = job or Job(attempt.job, "?", Submission(Program("c", "a", ()), "a"), 0.0, Phase.RUNNING)
        outcome = Exited(1) if over else HostLost("x")
        speculative = self.is_speculative(attempt)
        record = AttemptRecord(attempt.number, attempt.node, 1.0, outcome=outcome, ended=now, speculative=speculative)
        others = [each for each in settled.live if each.number != attempt.number]
        ends = [change(each, outcome=Superseded(attempt.number), ended=now) for each in others]
        settled = self.with_record(settled, record, *ends)
        if over:
            after = change(settled, phase=Phase.DONE, verdict=Exited(1), ended=now, held="")
        else:
            again = {"phase": Phase.QUEUED, "not_before": now, "excluded": frozenset(excluded)}
            after = change(settled, **again, held=held or settled.held)
        assert self.store.attempts.settle(attempt, record, after) == (job is not None)
        if job:
            self.jobs[job.id] = after

    @rule(job_id=known, by=st.sampled_from(["INT", "TERM by ben"]))
    def cancel(self, job_id: JobId, by: str) -> None:
        self.mark(job_id, lambda: self.store.request_cancel(job_id, by), cancel_requested=True, cancel_by=by)

    @rule(job_id=known, why=st.sampled_from(["", "HeldByUser"]))
    def hold(self, job_id: JobId, why: str) -> None:
        self.mark(job_id, lambda: self.store.hold(job_id, why), held=why)

    def mark(self, job_id: JobId, ask: object, **marks: object) -> None:
        assert callable(ask)
        if job_id not in self.jobs:
            with pytest.raises(NoSuchJob):
                ask()
            return
        if self.jobs[job_id].phase is not Phase.DONE:
            self.jobs[job_id] = change(self.jobs[job_id], **marks)
        assert ask() == self.jobs[job_id]

    @rule(job_id=known, now=times)
    def finish(self, job_id: JobId, now: float) -> None:
        job = self.jobs.get(job_id)
        waits = job is not None and job.phase is Phase.QUEUED
        assert self.store.finish(job_id, Cancelled("INT"), now) == waits
        if job and waits:
            self.jobs[job_id] = change(job, phase=Phase.DONE, verdict=Cancelled("INT"), ended=now, held="")

    @rule(job_id=consumes(known))
    def remove(self, job_id: JobId) -> None:
        job = self.jobs.get(job_id)
        if job is None or job.phase is not Phase.DONE:
            with pytest.raises(NoSuchJob if job is None else UsageError):
                self.store.remove(job_id)
            return
        self.store.remove(job_id)
        del self.jobs[job_id]
        self.by_key = {key: known for key, known in self.by_key.items() if known != job_id}

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = Store.open(self.path)

    @rule()
    def reopen_before_closing(self) -> None:
        self.store, old = Store.open(self.path), self.store
        old.close()

    @rule(submission=submissions)
    def undo_a_transaction(self, submission: Submission) -> None:
        with pytest.raises(ZeroDivisionError):
            self.transaction_that_fails(submission)

    def transaction_that_fails(self, submission: Submission) -> None:
        with self.store.transaction():
            job = self.store.add(submission, "eve", "undone", 1.0)
            self.store.attempts.begin(self.store.jobs.get(job.id).id, "n1", 1.0)
            raise ZeroDivisionError

    @invariant()
    def store_and_model_are_equal(self) -> None:
        assert self.store.jobs.select() == [self.jobs[job_id] for job_id in sorted(self.jobs)]
        running = [job for _, job in sorted(self.jobs.items()) if job.phase is Phase.RUNNING]
        queued = [job for job in self.jobs.values() if job.phase is Phase.QUEUED]
        queued.sort(key=lambda job: (-job.submission.priority, job.submitted, job.id))
        assert (self.store.jobs.running(), self.store.jobs.queued()) == (running, queued)
        assert self.store.grid == self.grid


TestStoreAgainstAModel = StoreMachine.TestCase
TestStoreAgainstAModel.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
