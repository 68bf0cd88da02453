"""The queue with a real SQLite file: jobs, attempts, accounts and migrations."""

from __future__ import annotations

import itertools
import sqlite3
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from random import Random
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from sshgrid.errors import NoSuchJob, StoreError, UsageError
from sshgrid.model import (
    Account,
    Attempt,
    AttemptRecord,
    Cancelled,
    Caps,
    Exited,
    GaveUp,
    HostLost,
    Job,
    JobId,
    Outcome,
    Phase,
    Program,
    RetryPolicy,
    Role,
    SourceFile,
    Step,
    Submission,
    Superseded,
    Sweep,
    SweepDone,
    Usage,
    UserKey,
    Verdict,
    job_text,
    task_id,
)
from sshgrid.policy import retry
from sshgrid.queue import database
from sshgrid.queue.store import Store

HELLO = Submission(Program("c", "hello.c", (SourceFile("hello.c", "a" * 64, 20),)), "hello.c")
AWKWARD = Submission(
    Program(
        "python",
        "p.py",
        (SourceFile("p.py", "b" * 64, 1, True), SourceFile("x/né\n", "c" * 64, 2)),
        args=(b"\xff\x00'\"", b"{}"),
        env=(("K", b"\xfe"),),
        stdin=SourceFile("-", "d" * 64, 3),
    ),
    "p.py 'a b'",
    priority=-3,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "queue.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store.open(path) as opened:
        yield opened


def ask(path: Path, sql: str, values: Mapping[str, object] = MappingProxyType({})) -> list[Any]:
    """Query the file without the store."""
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql, dict(values)).fetchall()


_keys = (f"key{number}" for number in itertools.count())


def add(store: Store, owner: str = "ana", now: float = 1.0, submission: Submission = HELLO) -> JobId:
    return store.add(submission, owner, next(_keys), now).id


def begin(store: Store, job_id: JobId, node: str = "n1") -> Attempt:
    attempt = store.attempts.begin(job_id, node, 2.0)
    assert attempt is not None
    return attempt


def settled(job: Job, outcome: Outcome, verdict: Verdict | None = None, now: float = 3.0) -> tuple[AttemptRecord, Job]:
    """The record and the job as retry.settle returns them: done with a verdict, queued again without."""
    record = msgspec.structs.replace(job.attempts[-1], outcome=outcome, ended=now)
    phase = Phase.DONE if verdict else Phase.QUEUED
    ended = now if verdict else None
    attempts = (*job.attempts[:-1], record)
    return record, msgspec.structs.replace(job, phase=phase, verdict=verdict, ended=ended, attempts=attempts)


def settle(store: Store, attempt: Attempt, outcome: Outcome, verdict: Verdict | None = None) -> bool:
    return store.attempts.settle(attempt, *settled(store.jobs.get(attempt.job), outcome, verdict))


def done(store: Store) -> JobId:
    job_id = add(store)
    assert settle(store, begin(store, job_id), Exited(0), Exited(0))
    return job_id


# --- the states of a job ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("submission", [HELLO, AWKWARD])
def test_an_accepted_job_is_read_back_unchanged_also_after_reopening(path: Path, submission: Submission) -> None:
    with Store.open(path) as store:
        job = store.add(submission, "ana", "k", 1.5)
        assert job == Job(JobId(1), "ana", submission, 1.5)
        assert store.jobs.get(job.id) == job
    with Store.open(path) as store:
        assert store.jobs.get(job.id) == job
        assert store.jobs.queued() == [job]


def test_the_same_key_gives_the_same_job_in_its_current_state(store: Store) -> None:
    job_id = store.add(HELLO, "ana", "k", 1.0).id
    settle(store, begin(store, job_id), Exited(3), Exited(3))
    again = store.add(HELLO, "ana", "k", 9.0)
    assert again == store.jobs.get(job_id)
    assert again.verdict == Exited(3)
    assert store.jobs.ids() == [job_id]


def test_A31_the_same_key_of_another_user_gives_another_job(store: Store) -> None:
    assert store.add(HELLO, "ana", "k", 1.0).id != store.add(HELLO, "ben", "k", 1.0).id


@pytest.mark.parametrize(
    ("submission", "owner", "key"),
    [
        (HELLO, "ana", ""),
        (HELLO, "ana", "k" * 201),
        (HELLO, "\ud800", "k"),
        (msgspec.structs.replace(HELLO, priority=2**63), "ana", "k"),
        (msgspec.structs.replace(HELLO, command="\udcff"), "ana", "k"),
    ],
)
def test_a_submission_that_cannot_be_stored_is_a_usage_error(
    store: Store, submission: Submission, owner: str, key: str
) -> None:
    with pytest.raises(UsageError):
        store.add(submission, owner, key, 1.0)
    assert store.jobs.ids() == []


def test_begin_claims_a_queued_job_once(store: Store) -> None:
    job_id = add(store)
    assert store.attempts.begin(job_id, "n1", 2.0) == Attempt(job_id, 1, "n1")
    assert store.attempts.begin(job_id, "n2", 2.0) is None
    job = store.jobs.get(job_id)
    assert (job.phase, job.attempts) == (Phase.RUNNING, (AttemptRecord(1, "n1", 2.0),))
    assert store.jobs.queued() == []
    assert store.jobs.running() == [job]


def test_begin_of_an_unknown_job_is_none(store: Store) -> None:
    assert store.attempts.begin(JobId(7), "n1", 1.0) is None


def test_settle_writes_the_attempt_and_the_job(store: Store, path: Path) -> None:
    job_id = add(store)
    attempt = begin(store, job_id)
    record = AttemptRecord(1, "n1", 2.0, Step.FETCHING, Exited(4), 3.0, 20, True, "c 12.2", "pidns", Usage(2.1, 2.9))
    after = msgspec.structs.replace(
        store.jobs.get(job_id), phase=Phase.DONE, verdict=Exited(4), ended=3.0, attempts=(record,)
    )
    assert store.attempts.settle(attempt, record, after)
    assert store.jobs.get(job_id) == after
    with Store.open(path) as another:
        assert another.jobs.get(job_id) == after


def test_a_requeued_job_keeps_its_excluded_nodes_backoff_and_hold(store: Store) -> None:
    job_id = add(store)
    attempt = begin(store, job_id)
    record, job = settled(store.jobs.get(job_id), HostLost("reset"))
    job = msgspec.structs.replace(job, excluded=frozenset({"n1", "n0"}), not_before=8.5, held="poison")
    assert store.attempts.settle(attempt, record, job)
    assert store.jobs.get(job_id) == job
    assert store.jobs.queued() == [job]


def test_the_result_of_an_older_attempt_changes_nothing(store: Store) -> None:
    job_id = add(store)
    first = begin(store, job_id, "n1")
    late = settled(store.jobs.get(job_id), Exited(0), Exited(0))
    settle(store, first, HostLost("silent"))
    begin(store, job_id, "n2")
    before = store.jobs.get(job_id)
    assert not store.attempts.settle(first, *late)
    assert store.jobs.get(job_id) == before


def test_a_result_settles_the_job_once(store: Store, path: Path) -> None:
    job_id = add(store)
    attempt = begin(store, job_id)
    result = settled(store.jobs.get(job_id), Exited(0), Exited(0))
    assert [store.attempts.settle(attempt, *result) for _ in range(3)] == [True, False, False]
    with Store.open(path) as another:
        assert another.jobs.get(job_id) == store.jobs.get(job_id)


def test_the_result_of_an_attempt_that_never_began_is_dropped(store: Store) -> None:
    job_id = add(store)
    attempt = begin(store, job_id)
    record, job = settled(store.jobs.get(job_id), Exited(0), Exited(0))
    ahead = Attempt(job_id, 2, "n1")
    assert not store.attempts.settle(ahead, msgspec.structs.replace(record, number=2), job)
    assert store.attempts.settle(attempt, record, job)


def test_progress_is_written_only_for_a_live_attempt(store: Store) -> None:
    job_id = add(store)
    first = begin(store, job_id, "n1")
    note = AttemptRecord(1, "n1", 2.0, Step.COMPILING, uploaded_bytes=20)
    assert store.attempts.note(first, note)
    assert store.jobs.get(job_id).attempts == (note,)
    settle(store, first, HostLost("silent"))
    assert not store.attempts.note(first, note)
    begin(store, job_id, "n2")
    assert not store.attempts.note(first, note)


# --- two live attempts ------------------------------------------------------------------------------------------------


def pair(store: Store) -> tuple[Attempt, Attempt]:
    """An attempt and a speculative attempt, both live."""
    job_id = add(store)
    first = begin(store, job_id, "n1")
    second = store.attempts.begin_speculative(job_id, "n2", 2.5)
    assert second == Attempt(job_id, 2, "n2")
    return first, second


def end(store: Store, attempt: Attempt, outcome: Outcome) -> bool:
    """Settle the attempt as policy.retry.settle decides."""
    job = store.jobs.get(attempt.job)
    record = next(record for record in job.attempts if record.number == attempt.number)
    after = retry.settle(job, record, outcome, RetryPolicy(), 9.0, Random(1))
    ended = msgspec.structs.replace(record, outcome=outcome, ended=9.0)
    return (
        store.attempts.settle_one_of_two(attempt, ended)
        if after.phase is Phase.RUNNING
        else store.attempts.settle(attempt, ended, after)
    )


@pytest.mark.parametrize("winner", [0, 1])
def test_of_two_live_attempts_the_first_result_settles_the_job_and_the_other_is_superseded(
    store: Store, path: Path, winner: int
) -> None:
    attempts = pair(store)
    wins, loses = attempts[winner], attempts[1 - winner]
    assert end(store, wins, Exited(winner))
    assert not end(store, loses, Exited(7))
    assert not store.attempts.note(loses, AttemptRecord(loses.number, loses.node, 2.0))
    with Store.open(path) as another:
        job = another.jobs.get(wins.job)
        assert (job.phase, job.verdict) == (Phase.DONE, Exited(winner))
    outcomes = {record.number: record.outcome for record in job.attempts}
    assert outcomes == {wins.number: Exited(winner), loses.number: Superseded(wins.number)}
    assert job.current is not None
    assert (job.current.number, job.live) == (wins.number, ())


@pytest.mark.parametrize("lost", [0, 1])
def test_after_one_of_two_attempts_is_lost_the_job_runs_with_the_other(store: Store, lost: int) -> None:
    attempts = pair(store)
    assert end(store, attempts[lost], HostLost("silent"))
    job = store.jobs.get(attempts[0].job)
    assert (job.phase, [record.number for record in job.live]) == (Phase.RUNNING, [attempts[1 - lost].number])
    assert not end(store, attempts[lost], Exited(7))
    assert store.jobs.get(job.id) == job
    assert end(store, attempts[1 - lost], Exited(0))
    assert store.jobs.get(job.id).verdict == Exited(0)


def test_a_job_whose_two_attempts_are_lost_is_queued_for_the_third(store: Store) -> None:
    first, second = pair(store)
    assert [end(store, attempt, HostLost("silent")) for attempt in (first, second)] == [True, True]
    job = store.jobs.get(first.job)
    assert (job.phase, job.excluded) == (Phase.QUEUED, frozenset({"n1", "n2"}))
    assert begin(store, first.job, "n3").number == 3
    assert not end(store, second, Exited(0))
    assert [record.number for record in store.jobs.get(first.job).live] == [3]


def test_a_speculative_attempt_begins_only_beside_one_running_attempt(store: Store) -> None:
    waits, cancelled = add(store), add(store)
    begin(store, cancelled)
    store.request_cancel(cancelled, "TERM")
    first, second = pair(store)
    assert [store.attempts.begin_speculative(job, "n3", 3.0) for job in (waits, cancelled, first.job, JobId(99))] == [
        None
    ] * 4
    end(store, second, HostLost("silent"))
    assert (
        store.attempts.begin_speculative(first.job, "n3", 3.0) is None
    )  # its number would not follow that of the live attempt
    end(store, first, Exited(0))
    assert store.attempts.begin_speculative(first.job, "n3", 3.0) is None


def test_settle_one_of_two_fails_for_the_only_live_attempt(store: Store) -> None:
    attempt = begin(store, add(store))
    record = AttemptRecord(1, "n1", 2.0, outcome=HostLost("silent"), ended=3.0)
    assert not store.attempts.settle_one_of_two(attempt, record)
    assert store.jobs.get(attempt.job).live
    with pytest.raises(ValueError, match="no outcome"):
        store.attempts.settle_one_of_two(attempt, AttemptRecord(1, "n1", 2.0))


def test_superseded_lists_the_superseded_attempts_of_a_sweep(store: Store) -> None:
    sweep = add(store)
    for number in (1, 2):
        task = Job(task_id(sweep, number), "ana", HELLO, 1.0)
        store.attempts.begin_tasks([task], AttemptRecord(1, "n1", 2.0, batch="b"))
    speculative = store.attempts.begin_speculative(task_id(sweep, 2), "n2", 3.0)
    assert speculative
    end(store, speculative, Exited(0))
    ((job_id, record),) = store.jobs.superseded(sweep)
    assert (job_id, record.number, record.batch) == (task_id(sweep, 2), 1, "b")
    assert store.jobs.superseded(JobId(sweep + 1)) == []


def test_a_record_or_job_that_does_not_match_is_a_value_error_and_changes_nothing(store: Store) -> None:
    one, two = add(store), add(store)
    attempt = begin(store, one)
    record, job = settled(store.jobs.get(one), Exited(0), Exited(0))
    begin(store, two)
    for wrong_record, wrong_job in [
        (msgspec.structs.replace(record, number=2), job),
        (msgspec.structs.replace(record, outcome=None), job),
        (record, store.jobs.get(two)),
        (record, store.jobs.get(one)),
    ]:
        with pytest.raises(ValueError, match=r"attempt"):
            store.attempts.settle(attempt, wrong_record, wrong_job)
    assert len(store.jobs.running()) == 2


def test_finish_ends_a_queued_job_but_not_a_running_one(store: Store) -> None:
    waits, runs = add(store), add(store)
    begin(store, runs)
    assert store.finish(waits, GaveUp("no node"), 5.0)
    assert not store.finish(waits, Cancelled(), 6.0)
    assert not store.finish(runs, Cancelled(), 6.0)
    job = store.jobs.get(waits)
    assert (job.phase, job.verdict, job.ended) == (Phase.DONE, GaveUp("no node"), 5.0)


def test_a_queued_job_with_a_requested_cancel_never_begins(store: Store) -> None:
    job_id = add(store)
    job = store.request_cancel(job_id, "INT")
    assert (job.phase, job.cancel_requested, job.cancel_by) == (Phase.QUEUED, True, "INT")
    assert store.attempts.begin(job_id, "n1", 1.0) is None
    assert store.finish(job_id, Cancelled("INT"), 2.0)


def test_a_cancel_and_a_hold_before_settle_stay_after_it(store: Store) -> None:
    job_id = add(store)
    attempt = begin(store, job_id)
    result = settled(store.jobs.get(job_id), HostLost("silent"))
    store.request_cancel(job_id, "TERM")
    store.hold(job_id, "wait")
    assert store.attempts.settle(attempt, *result)
    job = store.jobs.get(job_id)
    assert (job.phase, job.cancel_requested, job.held) == (Phase.QUEUED, True, "wait")


def test_cancel_and_hold_do_not_change_a_finished_job(store: Store) -> None:
    job_id = done(store)
    before = store.jobs.get(job_id)
    assert store.request_cancel(job_id, "TERM") == store.hold(job_id, "why") == before


def test_a_held_job_begins_only_after_its_release(store: Store) -> None:
    job_id = add(store)
    assert store.hold(job_id, "HeldByUser").held == "HeldByUser"
    assert store.attempts.begin(job_id, "n1", 1.0) is None
    assert store.hold(job_id, "").held == ""
    assert store.attempts.begin(job_id, "n1", 1.0)


def test_only_finished_jobs_are_removed_and_their_ids_are_not_used_again(store: Store, path: Path) -> None:
    finished, waits = done(store), add(store)
    with pytest.raises(UsageError, match=r"job 2 is queued"):
        store.remove(waits)
    store.finish(waits, Cancelled(), 1.0)
    store.remove(finished)
    store.remove(waits)
    assert store.jobs.ids() == []
    counts = [ask(path, f"SELECT count(*) FROM {table}") for table in ("job", "submission", "attempt")]
    assert counts == [[(0,)]] * 3
    assert add(store) == 3


@pytest.mark.parametrize("job_id", [0, -1, 99, 2**63, 2**70])
def test_an_unknown_id_raises_no_such_job(store: Store, job_id: int) -> None:
    add(store)
    for ask in (
        store.jobs.get,
        store.remove,
        lambda unknown: store.hold(unknown, "x"),
        lambda unknown: store.request_cancel(unknown, "x"),
    ):
        with pytest.raises(NoSuchJob, match=f"no such job: {job_text(JobId(job_id))}$"):
            ask(JobId(job_id))
    assert store.jobs.select([JobId(job_id)]) == []


def test_the_result_of_a_removed_job_is_dropped(store: Store) -> None:
    job_id = add(store)
    attempt = begin(store, job_id)
    result = settled(store.jobs.get(job_id), Exited(0), Exited(0))
    store.attempts.settle(attempt, *result)
    store.remove(job_id)
    assert not store.attempts.settle(attempt, *result)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_select_filters_by_id_owner_end_and_activity(store: Store) -> None:
    old, waits, bens = done(store), add(store), add(store, "ben")
    runs = add(store)
    begin(store, runs)
    everything: list[tuple[dict[str, object], list[JobId]]] = [
        ({}, [old, waits, bens, runs]),
        ({"active_only": True}, [waits, bens, runs]),
        ({"active_only": True, "owner": "ben"}, [bens]),
        ({"owner": "ana"}, [old, waits, runs]),
        ({"since": 3.0}, [old, waits, bens, runs]),
        ({"since": 3.1}, [waits, bens, runs]),
    ]
    for filters, expected in everything:
        assert [job.id for job in store.jobs.select(**filters)] == expected  # type: ignore[arg-type]
        chosen = [job.id for job in store.jobs.select([runs, old, bens], **filters)]  # type: ignore[arg-type]
        assert chosen == [job_id for job_id in expected if job_id in (runs, old, bens)]
    assert (store.jobs.ids(), store.jobs.ids("ben"), store.jobs.select([])) == ([old, waits, bens, runs], [bens], [])


def test_queued_jobs_are_sorted_by_priority_and_then_by_age(store: Store) -> None:
    urgent = msgspec.structs.replace(HELLO, priority=5)
    ids = [add(store, now=2.0), add(store, now=1.0), add(store, now=9.0, submission=urgent), add(store, now=1.0)]
    assert [job.id for job in store.jobs.queued()] == [ids[2], ids[1], ids[3], ids[0]]


def test_the_tally_counts_phases_and_verdicts(store: Store) -> None:
    done(store), done(store), add(store), begin(store, add(store))
    expected = {(Phase.DONE, Exited(0)): 2, (Phase.QUEUED, None): 1, (Phase.RUNNING, None): 1}
    assert {(phase, verdict): count for phase, verdict, count in store.jobs.tally()} == expected


def test_blobs_include_the_files_of_finished_jobs(store: Store) -> None:
    hello = done(store)
    add(store, submission=AWKWARD)
    assert store.jobs.blobs() == {"a" * 64, "b" * 64, "c" * 64, "d" * 64}
    store.remove(hello)
    assert store.jobs.blobs() == {"b" * 64, "c" * 64, "d" * 64}


def test_blobs_include_data_and_packs(store: Store) -> None:
    files = tuple(SourceFile(letter, letter * 64, 1) for letter in "ef")
    program = msgspec.structs.replace(HELLO.program, data=files[:1], packs=files[1:])
    store.add(msgspec.structs.replace(HELLO, program=program), "ann", "k", 1.0)
    assert store.jobs.blobs() == store.jobs.blobs("ann") == {letter * 64 for letter in "aef"}
    assert store.jobs.blobs("bob") == set()


def test_blobs_include_the_lists_of_a_sweep_and_input_lists_names_those_with_inputs(store: Store) -> None:
    table, inputs = SourceFile("table", "e" * 64, 1), SourceFile("inputs", "f" * 64, 1)
    for key, plan in (("k1", Sweep(table, 1)), ("k2", Sweep(table, 1, inputs=inputs))):
        store.add(msgspec.structs.replace(HELLO, sweep=plan), "ann", key, 1.0)
    assert store.jobs.blobs() == store.jobs.blobs("ann") == {letter * 64 for letter in "aef"}
    assert store.jobs.input_lists() == {"f" * 64}


def _read_one_and_fail(store: Store) -> None:
    store.jobs.get(add(store, submission=AWKWARD))
    raise ZeroDivisionError


def test_a_transaction_that_raises_is_undone_completely(store: Store, path: Path) -> None:
    with store.transaction():
        first = add(store)
        with pytest.raises(NoSuchJob):
            store.hold(JobId(99), "x")
    with pytest.raises(ZeroDivisionError), store.transaction():
        _read_one_and_fail(store)
    assert store.jobs.ids() == [first]
    assert store.jobs.get(add(store)).submission == HELLO  # the id of the undone job is used again
    with Store.open(path) as another:
        assert another.jobs.select() == store.jobs.select()


def test_a_change_by_another_connection_is_visible(store: Store, path: Path) -> None:
    with Store.open(path) as another:
        job_id = add(another)
        assert store.attempts.begin(job_id, "n1", 1.0)
        assert another.attempts.begin(job_id, "n1", 1.0) is None
        assert another.jobs.running() == store.jobs.running()


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_connection_is_durable_and_the_file_has_its_identity(store: Store) -> None:
    connection = store._file.connection
    pragmas = ("journal_mode", "synchronous", "foreign_keys", "application_id", "user_version")
    found = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in pragmas]
    assert found == ["wal", 2, 1, database.APPLICATION_ID, database.VERSION]


def test_the_name_of_the_grid_stays_the_same(path: Path) -> None:
    with Store.open(path) as store:
        name = store.grid
    with Store.open(path) as store:
        assert store.grid == name
    assert len(name) == 8
    int(name, 16)


def test_a_store_used_from_another_thread_raises(store: Store) -> None:
    caught: list[BaseException] = []

    def use() -> None:
        try:
            store.jobs.ids()
        except sqlite3.ProgrammingError as error:
            caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(caught) == 1


def test_a_backup_is_complete_and_private_and_never_overwrites_a_file(store: Store, tmp_path: Path) -> None:
    finished = done(store)
    copy = tmp_path / "copy.db"
    store.backup(copy)
    add(store)
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir() if "copy" in entry.name] == ["copy.db"]
    with Store.open(copy) as restored:
        assert restored.jobs.select() == [store.jobs.get(finished)]
        assert restored.grid == store.grid
    before = copy.read_bytes()
    with pytest.raises(UsageError, match=r"copy\.db: already exists"):
        store.backup(copy)
    assert copy.read_bytes() == before


def test_a_backup_into_a_missing_folder_is_a_store_error(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"No such file"):
        store.backup(tmp_path / "none" / "copy.db")


# --- a file of an earlier version -------------------------------------------------------------------------------------


def version_1(path: Path) -> None:
    """Create a queue of version 1 with a running, a queued and a finished job."""
    path.parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        path.chmod(0o600)
        connection.execute("PRAGMA journal_mode = WAL")
        for statement in database.statements(database.SQL["schema_1"]):
            connection.execute(statement)
        connection.execute(database.SQL["set_meta"], {"name": "grid", "value": "0123abcd"})
        connection.execute(f"PRAGMA application_id = {database.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        body = msgspec.json.encode(HELLO).decode()
        for number, phase in enumerate(("running", "queued", "done"), 1):
            connection.execute(
                "INSERT INTO job (owner, submit_key, priority, submitted, phase, last_attempt, verdict, ended)"
                " VALUES ('ann', ?, 0, 1.5, ?, 1, ?, ?)",
                (f"k{number}", phase, '{"type":"exited","code":3}' if phase == "done" else None, 2.5),
            )
            connection.execute(database.SQL["add_submission"], {"id": number, "body": body})
            record = msgspec.json.encode(AttemptRecord(1, "n1", 1.0)).decode()
            connection.execute("INSERT INTO attempt (job, number, record) VALUES (?, 1, ?)", (number, record))


def test_a_queue_of_version_1_is_migrated_with_all_jobs(path: Path) -> None:
    version_1(path)
    with Store.open(path) as store:
        assert store.grid == "0123abcd"
        assert [(job.phase, job.submission, len(job.attempts)) for job in store.jobs.select()] == [
            (phase, HELLO, 1) for phase in (Phase.RUNNING, Phase.QUEUED, Phase.DONE)
        ]
        assert store.jobs.get(JobId(3)).verdict == Exited(3)
        assert store.users.all() == []
        store.users.put(ANN)
        assert store.attempts.begin(JobId(2), "n1", 2.0) == Attempt(JobId(2), 2, "n1")
        assert settle(store, Attempt(JobId(1), 1, "n1"), Exited(0), Exited(0))
    with Store.open(path) as store:
        assert store.users.all() == [ANN]


ANN = Account(
    "ann",
    Role.ADMIN,
    1.5,
    True,
    "$argon2id$x",
    (UserKey("SHA256:a", "k a"), UserKey("SHA256:b", "k b")),
    Caps(1, 2, 0.5),
)


def test_an_account_is_stored_replaced_and_removed_with_its_keys(store: Store) -> None:
    store.users.put(ANN)
    changed = Account("ann", Role.USER, 1.5, keys=(UserKey("SHA256:b", "k b"),))
    store.users.put(changed)
    store.users.put(Account("bob", Role.USER, 2.0))
    assert store.users.all() == [changed, Account("bob", Role.USER, 2.0)]
    store.users.remove("ann")
    store.users.remove("unknown")
    assert [user.name for user in store.users.all()] == ["bob"]
    assert store._file.connection.execute("SELECT count(*) FROM user_key").fetchone()[0] == 0


def test_blobs_of_an_owner_are_those_of_the_owners_jobs(store: Store) -> None:
    store.add(AWKWARD, "ann", "k", 1.0)
    store.add(HELLO, "bob", "k", 1.0)
    assert store.jobs.blobs("ann") == {letter * 64 for letter in "bcd"}
    assert store.jobs.blobs("bob") == {"a" * 64}
    assert store.jobs.blobs("eve") == set()


# --- tasks of sweeps --------------------------------------------------------------------------------------------------


def begin_task(store: Store, sweep: JobId, number: int = 1) -> tuple[Job, Attempt]:
    task = Job(task_id(sweep, number), "ana", HELLO, 1.0)
    return task, store.attempts.begin_tasks([task], AttemptRecord(1, "n1", 2.0, batch="b1"))[0]


def test_undo_begin_removes_a_task_that_did_not_start_and_it_may_begin_again(store: Store, path: Path) -> None:
    sweep = add(store)
    task, attempt = begin_task(store, sweep)
    assert store.attempts.undo_begin(task.id)
    assert not store.attempts.undo_begin(task.id)
    assert list(store.jobs.tasks(sweep)) == []
    assert not settle_task(store, attempt, task)
    assert ask(path, "SELECT (SELECT count(*) FROM attempt) + (SELECT count(*) FROM submission)") == [(1,)]
    again, second = begin_task(store, sweep)
    assert settle_task(store, second, again)
    assert [found.verdict for found in store.jobs.tasks(sweep)] == [Exited(0)]


def test_undo_begin_fails_for_a_task_that_has_ended_or_has_two_attempts(store: Store) -> None:
    sweep = add(store)
    ended, attempt = begin_task(store, sweep, 1)
    assert settle_task(store, attempt, ended)
    twice, first = begin_task(store, sweep, 2)
    assert settle_task(store, first, twice, phase=Phase.QUEUED)
    assert store.attempts.begin(twice.id, "n2", 4.0)
    assert not store.attempts.undo_begin(ended.id)
    assert not store.attempts.undo_begin(twice.id)
    assert not store.attempts.undo_begin(sweep)
    assert {found.id for found in store.jobs.tasks(sweep)} == {ended.id, twice.id}


def settle_task(store: Store, attempt: Attempt, task: Job, phase: Phase = Phase.DONE) -> bool:
    record = AttemptRecord(1, "n1", 2.0, outcome=Exited(0), ended=3.0)
    verdict = Exited(0) if phase is Phase.DONE else None
    settled = msgspec.structs.replace(task, phase=phase, attempts=(record,), verdict=verdict, ended=3.0)
    return store.attempts.settle(attempt, record, settled)


def test_a_queue_of_version_4_is_migrated_and_usable(path: Path) -> None:
    """The file was written by the commit before version 5. It has jobs in each state, a sweep and an account."""
    path.parent.mkdir(mode=0o700)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        path.chmod(0o600)
        connection.executescript((Path(__file__).parent / "data" / "queue-version-4.sql").read_text())
    with Store.open(path) as store:
        queued, running, done, held, sweep = store.jobs.select()
        assert (queued.phase, running.phase, held.held) == (Phase.QUEUED, Phase.RUNNING, "HeldByUser")
        assert (done.verdict, sweep.verdict) == (Exited(3), SweepDone(2, 0, 1))
        (task,) = store.jobs.tasks(sweep.id)
        assert [(record.speculative, record.outcome) for record in task.attempts] == [
            (False, Superseded(2)),
            (True, Exited(0)),
        ]
        assert [(user.name, user.caps.running, len(user.keys)) for user in store.users.all()] == [("ann", 3, 1)]
        (live,) = running.live
        result = settled(running, Exited(0), Exited(0))
        assert store.attempts.settle(Attempt(running.id, live.number, live.node), *result)
        assert store.attempts.begin(queued.id, "h1", 2.0) == Attempt(queued.id, 1, "h1")
        assert add(store) == JobId(sweep.id + 1)
