"""Retry and states: what the end of an attempt does to its job, and how jobs and nodes are reported."""

from __future__ import annotations

from random import Random
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.model import (
    AttemptRecord,
    Cancelled,
    CompileFailed,
    Crashed,
    Exited,
    Facts,
    GaveUp,
    HostLost,
    Job,
    JobId,
    Node,
    NodeState,
    OnHostLoss,
    Outcome,
    OutOfMemory,
    OutputLimit,
    Phase,
    ProcessLimit,
    Program,
    RetryPolicy,
    Sample,
    Step,
    Submission,
    Superseded,
    SweepDone,
    TimedOut,
    Toolchain,
    ToolchainBroken,
    Usage,
    Verdict,
)
from sshgrid.policy import retry, states
from sshgrid.policy.placement import NodeView
from sshgrid.policy.retry import settle
from sshgrid.policy.states import exit_status, signal_of
from sshgrid.protocol.messages import NodeReason
from sshgrid.reports import lines

POLICY = RetryPolicy()
Result = Exited | CompileFailed | TimedOut | OutOfMemory | OutputLimit | ProcessLimit | Cancelled | Crashed
RESULTS: tuple[Result, ...] = (
    Exited(0),
    Exited(3),
    CompileFailed(1),
    TimedOut(10.0),
    OutOfMemory(1 << 30),
    OutputLimit(1 << 20),
    ProcessLimit(64),
    Cancelled("INT"),
    Crashed("KeyError"),
)
LOST, BROKEN = HostLost("no answer for 10 s"), ToolchainBroken("javac: no space left")


def waiting(retries: int | None = None, **rest: object) -> Job:
    submission = Submission(Program("java", "P.java", ()), "P.java 1000", retries=retries)
    return msgspec.structs.replace(Job(JobId(7), "ana", submission, submitted=50.0), **rest)


def waiting_with(**fields: object) -> Job:
    job = waiting()
    return msgspec.structs.replace(job, submission=msgspec.structs.replace(job.submission, **fields))


def begin(job: Job, node: str, step: Step = Step.RUNNING, began: float = 90.0) -> Job:
    record = AttemptRecord(len(job.attempts) + 1, node, began, step)
    return msgspec.structs.replace(job, phase=Phase.RUNNING, attempts=(*job.attempts, record))


def after_attempts(job: Job, *happened: tuple[str, Outcome], step: Step = Step.RUNNING, untried: bool = True) -> Job:
    """The job after these attempts, one after the other, each (node, outcome), which ends at second 100."""
    for node, outcome in happened:
        job = begin(job, node, step)
        job = settle(job, job.attempts[-1], outcome, POLICY, 100.0, Random(1), untried)
    return job


def ended(verdict: Verdict | None) -> Job:
    return waiting(phase=Phase.DONE, verdict=verdict, ended=100.0)


# --- results ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", RESULTS, ids=repr)
def test_any_result_ends_the_job(result: Exited) -> None:
    job = after_attempts(waiting(), ("h1", result))
    assert (job.phase, job.verdict, job.ended) == (Phase.DONE, result, 100.0)
    assert (job.attempts[0].outcome, job.attempts[0].ended) == (result, 100.0)


def test_every_type_of_outcome_is_covered_by_these_tests() -> None:
    assert {type(outcome) for outcome in (*RESULTS, LOST, BROKEN)} == set(get_args(Outcome))


def test_a_program_that_fails_is_never_retried() -> None:
    assert after_attempts(waiting(retries=9), ("h1", Exited(139))).verdict == Exited(139)


# --- hosts ------------------------------------------------------------------------------------------------------------


def test_the_first_retry_after_a_lost_host_has_no_backoff_when_another_node_works() -> None:
    job = after_attempts(waiting(), ("h1", LOST))
    assert (job.phase, job.verdict, job.not_before) == (Phase.QUEUED, None, 100.0)
    assert job.excluded == {"h1"}
    assert job.attempts[0].outcome == LOST


def test_the_second_retry_after_lost_hosts_has_a_backoff() -> None:
    job = after_attempts(waiting(retries=9), ("h1", LOST), ("h2", LOST), step=Step.UPLOADING)
    assert 100.0 < job.not_before <= 104.0
    assert job.excluded == {"h1", "h2"}


def test_a_job_without_another_node_waits_a_backoff_and_may_use_all_nodes_again() -> None:
    job = after_attempts(waiting(), ("h1", LOST), untried=False)
    assert job.phase is Phase.QUEUED
    assert job.excluded == frozenset()
    assert 100.0 < job.not_before <= 102.0


def test_when_the_retries_are_used_up_the_reason_lists_every_failure() -> None:
    met = [("h1", HostLost("no answer for 10 s")), ("h2", HostLost("disk full")), ("h3", HostLost("rebooted"))]
    job = after_attempts(waiting(), *met, step=Step.UPLOADING)
    assert job.phase is Phase.DONE
    assert job.verdict == GaveUp(
        "3 attempts failed: attempt 1 on h1: no answer for 10 s; attempt 2 on h2: disk full; attempt 3 on h3: rebooted"
    )
    assert exit_status(job) == 125


def test_the_reason_of_a_job_without_retries_has_its_only_failure() -> None:
    job = after_attempts(waiting(retries=0), ("h1", LOST))
    assert job.verdict == GaveUp("the only attempt failed: attempt 1 on h1: no answer for 10 s")


@pytest.mark.parametrize(("retries", "attempts"), [(0, 1), (1, 2), (None, 3), (4, 5)])
def test_retries_are_the_further_attempts_after_the_first(retries: int | None, attempts: int) -> None:
    job = waiting(retries)
    assert retry.attempts_allowed(job, POLICY) == attempts
    while job.phase is not Phase.DONE:
        job = after_attempts(job, ("h1", LOST))
    assert len(job.attempts) == attempts


def test_F38_a_job_that_lost_three_different_nodes_while_running_is_held_instead_of_retried() -> None:
    job = after_attempts(waiting(retries=9), ("h1", LOST), ("h2", LOST))
    assert job.held == ""
    job = after_attempts(job, ("h3", LOST))
    assert (job.phase, job.verdict) == (Phase.QUEUED, None)
    assert job.held.startswith("lost 3 nodes while running: attempt 1 on h1: no answer")
    assert states.reason(job) == job.held


def test_F38_a_job_without_retries_left_ends_and_its_reason_suspects_the_program() -> None:
    job = after_attempts(waiting(), ("h1", LOST), ("h2", LOST), ("h3", LOST))
    assert isinstance(job.verdict, GaveUp)
    assert job.verdict.reason.endswith("; the program may be the cause, as 3 nodes were lost while it ran")
    assert job.held == ""


def test_F38_losses_of_one_node_or_before_the_program_ran_do_not_hold_a_job() -> None:
    assert after_attempts(waiting(retries=9), ("h1", LOST), ("h2", LOST), ("h1", LOST)).held == ""
    assert after_attempts(waiting(retries=9), *((f"h{n}", LOST) for n in range(5)), step=Step.UPLOADING).held == ""


def test_with_on_host_loss_fail_the_first_lost_host_ends_the_job() -> None:
    job = after_attempts(waiting_with(on_host_loss=OnHostLoss.FAIL), ("h1", LOST))
    assert job.verdict == GaveUp("attempt 1 on h1: no answer for 10 s (--on-host-loss fail)")
    assert retry.attempts_allowed(job, POLICY) == 1


@pytest.mark.parametrize("choice", [OnHostLoss.RELAUNCH, OnHostLoss.WAIT, OnHostLoss.FENCE])
def test_with_any_other_on_host_loss_a_lost_run_is_queued_again(choice: OnHostLoss) -> None:
    assert after_attempts(waiting_with(on_host_loss=choice), ("h1", LOST)).phase is Phase.QUEUED


@pytest.mark.parametrize("failure", [LOST, BROKEN], ids=repr)
def test_an_interactive_run_is_never_retried(failure: Outcome) -> None:
    job = after_attempts(waiting_with(interactive=True), ("h1", failure))
    assert isinstance(job.verdict, GaveUp)


@pytest.mark.parametrize("failure", [LOST, BROKEN], ids=repr)
def test_a_cancelled_job_whose_host_fails_is_cancelled_and_not_retried(failure: Outcome) -> None:
    job = after_attempts(waiting(cancel_requested=True, cancel_by="INT"), ("h1", failure))
    assert job.verdict == Cancelled("INT")
    assert exit_status(job) == 130


# --- toolchains -------------------------------------------------------------------------------------------------------


def test_a_broken_toolchain_is_retried_at_once_on_another_node() -> None:
    job = after_attempts(waiting(retries=0), ("h1", BROKEN))
    assert (job.phase, job.excluded, job.not_before) == (Phase.QUEUED, frozenset({"h1"}), 100.0)
    assert retry.attempts_allowed(job, POLICY) == 2


def test_a_toolchain_that_is_broken_on_two_nodes_ends_the_job() -> None:
    job = after_attempts(waiting(retries=9), ("h1", BROKEN), ("h2", BROKEN))
    assert isinstance(job.verdict, GaveUp)
    assert job.verdict.reason.startswith("the java toolchain failed: attempt 1 on h1: javac: no space left; attempt 2")
    assert exit_status(job) == 125


def test_retries_after_lost_hosts_and_broken_toolchains_are_counted_separately() -> None:
    job = after_attempts(waiting(), ("h1", BROKEN), ("h2", LOST), ("h3", LOST), step=Step.COMPILING)
    assert job.phase is Phase.QUEUED
    assert retry.attempts_allowed(job, POLICY) == 4
    assert after_attempts(job, ("h4", Exited(0))).verdict == Exited(0)


# --- two parallel attempts --------------------------------------------------------------------------------------------

NO_RESULTS: tuple[Outcome, ...] = (LOST, BROKEN, CompileFailed(1), Crashed("KeyError"))


def parallel_attempts(retries: int | None = None) -> Job:
    """Attempt 1 on h1, and a speculative attempt on h2."""
    job = begin(waiting(retries), "h1")
    speculative = AttemptRecord(2, "h2", 95.0, Step.RUNNING, speculative=True)
    return msgspec.structs.replace(job, attempts=(*job.attempts, speculative))


def end(job: Job, number: int, outcome: Outcome, policy: RetryPolicy = POLICY) -> Job:
    return settle(job, job.attempts[number - 1], outcome, policy, 100.0, Random(1))


@pytest.mark.parametrize("winner", [1, 2])
@pytest.mark.parametrize("result", [result for result in RESULTS if result not in NO_RESULTS], ids=repr)
def test_the_first_result_of_two_attempts_is_that_of_the_job(result: Exited, winner: int) -> None:
    job = end(parallel_attempts(), winner, result)
    loser = job.attempts[2 - winner]
    assert (job.verdict, loser.outcome, loser.ended) == (result, Superseded(winner), 100.0)
    assert job.current == job.attempts[winner - 1]
    assert end(job, 3 - winner, Exited(9)) is job


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("outcome", NO_RESULTS, ids=repr)
def test_an_attempt_without_a_result_leaves_the_job_to_the_parallel_one(outcome: Outcome, first: int) -> None:
    job = end(parallel_attempts(), first, outcome)
    other = job.attempts[2 - first]
    assert (job.phase, job.live, job.current) == (Phase.RUNNING, (other,), other)
    assert job.attempts[first - 1].outcome == outcome
    done = end(job, 3 - first, Exited(3))
    assert (done.verdict, done.current) == (Exited(3), done.attempts[2 - first])
    assert end(job, first, Exited(9)) is job


@pytest.mark.parametrize("first", [1, 2])
def test_two_parallel_attempts_that_are_both_lost_count_as_one(first: int) -> None:
    job = end(end(parallel_attempts(retries=1), first, LOST), 3 - first, LOST)
    assert (job.phase, job.excluded, job.not_before) == (Phase.QUEUED, frozenset({"h1", "h2"}), 100.0)
    assert retry.attempts_allowed(job, POLICY) == 3
    assert isinstance(after_attempts(job, ("h3", LOST)).verdict, GaveUp)
    assert isinstance(end(end(parallel_attempts(retries=0), first, LOST), 3 - first, LOST).verdict, GaveUp)


@pytest.mark.parametrize("first", [1, 2])
def test_a_program_that_neither_of_two_attempts_compiles_is_a_compile_error(first: int) -> None:
    job = end(end(parallel_attempts(), first, CompileFailed(1)), 3 - first, CompileFailed(2))
    assert job.verdict == CompileFailed(2)
    assert job.current == job.attempts[2 - first]


@given(st.lists(st.tuples(st.sampled_from([1, 2]), st.sampled_from([*RESULTS, LOST, BROKEN])), min_size=2))
def test_two_parallel_attempts_give_at_most_one_verdict_in_any_order(
    ends: list[tuple[int, Outcome]],
) -> None:
    job = parallel_attempts(retries=0)
    verdicts = []
    for number, outcome in ends:
        job = end(job, number, outcome)
        verdicts.append(job.verdict)
        assert (job.phase is Phase.RUNNING) == bool(job.live)
        assert [record.number for record in job.attempts] == [1, 2]
    assert len({repr(verdict) for verdict in verdicts if verdict is not None}) <= 1
    if isinstance(job.verdict, Exited):
        assert job.current is not None
        assert job.current.outcome == job.verdict


def test_a_superseded_attempt_names_the_other_attempt() -> None:
    assert lines.attempt_outcome(end(parallel_attempts(), 2, Exited(0)).attempts[0]) == "superseded by attempt 2"


# --- outcomes of attempts that are not live ---------------------------------------------------------------------------


@pytest.mark.parametrize("outcome", [*RESULTS, LOST, BROKEN], ids=repr)
def test_F4_the_outcome_of_an_older_attempt_changes_nothing(outcome: Outcome) -> None:
    job = begin(after_attempts(waiting(), ("h1", LOST)), "h2")
    assert settle(job, job.attempts[0], outcome, POLICY, 200.0, Random(1)) is job


@pytest.mark.parametrize("outcome", [*RESULTS, LOST, BROKEN], ids=repr)
def test_a_second_outcome_of_an_attempt_changes_nothing(outcome: Outcome) -> None:
    for job in (after_attempts(waiting(), ("h1", LOST)), after_attempts(waiting(), ("h1", Exited(0)))):
        assert settle(job, job.attempts[0], outcome, POLICY, 200.0, Random(1)) is job


def test_an_attempt_that_the_job_does_not_hold_yet_is_added() -> None:
    job = settle(waiting(), AttemptRecord(1, "h1", 90.0), Exited(0), POLICY, 100.0, Random(1))
    assert [record.outcome for record in job.attempts] == [Exited(0)]


@given(
    met=st.lists(
        st.tuples(
            st.sampled_from(["h1", "h2", "h3", "h4"]), st.sampled_from([LOST, BROKEN, *RESULTS]), st.sampled_from(Step)
        ),
        max_size=30,
    ),
    retries=st.none() | st.integers(0, 6),
    untried=st.booleans(),
    seed=st.integers(),
)
def test_a_job_ends_only_with_a_result_or_when_its_retries_are_used_up(
    met: list[tuple[str, Outcome, Step]], retries: int | None, untried: bool, seed: int
) -> None:
    job = waiting(retries)
    for node, outcome, step in met:
        before = job = begin(msgspec.structs.replace(job, held=""), node, step)
        job = settle(job, job.attempts[-1], outcome, POLICY, 100.0, Random(seed), untried)
        assert job.attempts[-1].outcome == outcome
        assert job.attempts[:-1] == before.attempts[:-1]
        assert len(job.attempts) <= 1 + (2 if retries is None else retries) + 2
        if job.phase is Phase.DONE:
            assert isinstance(job.verdict, GaveUp) or job.verdict == outcome
            assert job.ended == 100.0
            return
        assert job.phase is Phase.QUEUED
        assert job.verdict is None
        assert isinstance(outcome, HostLost | ToolchainBroken)
        assert 100.0 <= job.not_before <= 160.0


# --- waiting ----------------------------------------------------------------------------------------------------------


@given(failures=st.integers(-1, 5000), seed=st.integers())
def test_a_backoff_is_between_zero_and_its_doubling_limit(failures: int, seed: int) -> None:
    ceiling = min(60.0, 2.0 * 2.0 ** min(max(failures, 1) - 1, 60))
    assert 0.0 <= retry.backoff(POLICY, failures, Random(seed)) <= ceiling


def test_the_limit_of_a_backoff_doubles_up_to_a_minute() -> None:
    class BothEnds(Random):
        def uniform(self, a: float, b: float) -> float:
            return b + a / 1000  # a number that depends on both ends

    assert [retry.backoff(POLICY, failures, BothEnds()) for failures in (1, 2, 5, 6, 7)] == [2.0, 4.0, 32.0, 60.0, 60.0]


def test_backoffs_are_spread_over_the_whole_range() -> None:
    pauses = [retry.backoff(POLICY, 6, Random(seed)) for seed in range(500)]
    assert min(pauses) < 6.0
    assert max(pauses) > 54.0


@pytest.mark.parametrize(("elapsed", "expected"), [(0.0, 10.0), (10.0, 10.0), (75.0, 75.0), (10_800.0, 600.0)])
def test_patience_is_the_elapsed_time_within_the_bounds(elapsed: float, expected: float) -> None:
    assert retry.patience(POLICY, elapsed) == expected


# --- reports of jobs --------------------------------------------------------------------------------------------------

VERDICTS: list[tuple[Verdict, str, int, int | None, int | None, str]] = [
    # verdict, state, exit status, exit code, signal, reason
    (Exited(0), "COMPLETED", 0, 0, None, ""),
    (Exited(3), "FAILED", 3, 3, None, "exit code 3"),
    (Exited(255), "FAILED", 255, 255, None, "exit code 255"),  # A42: the program's own, not ssh's
    (Exited(137), "FAILED", 137, 137, 9, "signal 9"),
    (CompileFailed(1), "COMPILE_ERROR", 126, None, None, "compilation failed (exit code 1)"),
    (TimedOut(90.0), "TIMEOUT", 124, None, None, "time limit of 1m30s"),
    (OutOfMemory(1 << 29), "OUT_OF_MEMORY", 137, None, 9, "memory limit of 512M"),
    (OutOfMemory(0), "OUT_OF_MEMORY", 137, None, 9, "out of memory"),
    (OutputLimit(1 << 20), "FAILED", 153, None, 25, "output limit of 1M"),
    (ProcessLimit(64), "FAILED", 137, None, 9, "limit of 64 processes"),
    (Cancelled("INT"), "CANCELLED", 130, None, 2, "cancelled (INT)"),
    (Cancelled("KILL by eve"), "CANCELLED", 137, None, 9, "cancelled (KILL by eve)"),
    (Cancelled("SIGTERM"), "CANCELLED", 143, None, 15, "cancelled (SIGTERM)"),
    (Cancelled("eve"), "CANCELLED", 143, None, 15, "cancelled (eve)"),
    (Cancelled(), "CANCELLED", 143, None, 15, "cancelled"),
    (GaveUp("no node left"), "NODE_FAIL", 125, None, None, "no node left"),
    (GaveUp("no node has it", no_toolchain=True), "NODE_FAIL", 127, None, None, "no node has it"),
    (SweepDone(3, 0), "COMPLETED", 0, None, None, ""),
    (SweepDone(200, 3), "FAILED", 3, None, None, "3 of 200 tasks failed"),
    (SweepDone(200, 150, 7), "FAILED", 101, None, None, "150 of 200 tasks failed, 7 not started"),
    (Crashed("KeyError"), "FAILED", 125, None, None, "a bug in sshgrid: KeyError"),
]


@pytest.mark.parametrize(("verdict", "state", "status", "code", "signal", "reason"), VERDICTS, ids=repr)
def test_each_verdict_has_its_state_exit_status_and_reason(
    verdict: Verdict, state: str, status: int, code: int | None, signal: int | None, reason: str
) -> None:
    line = lines.job_line(ended(verdict), 100.0, allowed=3)
    assert (line.state, line.exit_status, line.exit_code, line.signal) == (state, status, code, signal)
    assert line.reason == reason


def test_every_type_of_verdict_is_in_the_table() -> None:
    assert {type(row[0]) for row in VERDICTS} == set(get_args(Verdict))


@pytest.mark.parametrize(
    ("code", "signal"), [(0, None), (1, None), (128, None), (129, 1), (137, 9), (143, 15), (159, 31), (160, None)]
)
def test_A42_an_exit_code_of_128_plus_n_is_signal_n(code: int, signal: int | None) -> None:
    assert signal_of(code) == signal


def test_a_job_that_is_not_done_has_no_exit_status() -> None:
    for job in (waiting(), begin(waiting(), "h1")):
        assert exit_status(job) is None


def test_a_waiting_job_has_a_reason_and_a_backoff_precedes_the_pending_code() -> None:
    job, why = waiting(not_before=110.0), (NodeReason("h1", "Resources: 2 of 2 slots busy"),)
    assert lines.job_line(job, 100.0, 3, pending="Resources").reason == "Backoff"
    line = lines.job_line(job, 110.0, 3, pending="Resources", why=why)
    assert (line.state, line.reason, line.why) == ("PENDING", "Resources", why)
    assert (line.node, line.attempt, line.started, line.seconds) == ("", 0, None, 0.0)


def test_a_held_job_has_the_reason_of_its_hold() -> None:
    assert lines.job_line(waiting(held=states.HELD_BY_USER), 100.0, 3, pending="Resources").reason == "HeldByUser"


def test_a_running_job_shows_its_step_node_and_attempt() -> None:
    job = begin(after_attempts(waiting(), ("h1", LOST)), "h2", Step.COMPILING, began=120.0)
    line = lines.job_line(job, 125.5, retry.attempts_allowed(job, POLICY))
    assert (line.state, line.phase, line.node) == ("RUNNING", "compiling", "h2")
    assert (line.attempt, line.attempts_allowed, line.started, line.seconds) == (2, 3, 120.0, 5.5)
    assert lines.job_line(job, 125.5, 3, disconnected=True).state == "DISCONNECTED"


def test_a_job_between_two_attempts_has_no_node_and_lists_the_lost_attempt() -> None:
    line = lines.job_line(after_attempts(waiting(), ("h1", LOST)), 100.0, 3)
    assert (line.state, line.phase, line.node, line.attempt) == ("PENDING", "", "", 1)
    assert [(each.node, each.outcome) for each in line.attempts] == [("h1", "host-lost: no answer for 10 s")]


def test_a_clock_that_was_set_back_gives_no_negative_seconds() -> None:
    assert lines.job_line(begin(waiting(), "h1", began=120.0), 90.0, 3).seconds == 0.0


def test_a_done_job_keeps_the_seconds_of_its_last_attempt() -> None:
    line = lines.job_line(after_attempts(waiting(), ("h1", Exited(3))), 9_999.0, 3)
    assert (line.node, line.seconds, line.phase) == ("h1", 10.0, "")


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (None, ""),
        (Exited(0), "exited 0"),
        (Exited(137), "exited 137"),
        (TimedOut(10.0), "timed-out: time limit of 10s"),
        (BROKEN, "toolchain-broken: javac: no space left"),
    ],
)
def test_an_attempt_line_has_the_outcome_and_the_usage(outcome: Outcome | None, text: str) -> None:
    usage = Usage(1.0, 2.0, cpu_seconds=0.5, peak_memory_bytes=4096)
    line = lines.attempt_line(AttemptRecord(2, "h2", 90.0, outcome=outcome, ended=95.0, compiled=True, usage=usage))
    assert (line.number, line.node, line.outcome) == (2, "h2", text)
    assert (line.started, line.ended, line.cpu_seconds, line.peak_memory) == (90.0, 95.0, 0.5, 4096)


# --- nodes ------------------------------------------------------------------------------------------------------------


def node(running: int = 0, drained: bool = False, **rest: object) -> NodeView:
    facts = Facts("Linux", "x86_64", "musl", 4, 8 << 30, "boot", 1000, "/var/tmp/g", "pidns")
    java = Toolchain("java", "17.0.15", {}, "f")
    seen = NodeView(
        Node("h1", drained=drained, tags=frozenset({"lab", "fast"})),
        up=True,
        facts=facts,
        toolchains={"java": java, "c": java},
        sample=Sample(100.0, 1.0, 1.0, 0.7, 1 << 30),
        running=running,
    )
    return msgspec.structs.replace(seen, **rest)


@pytest.mark.parametrize(
    ("seen", "state"),
    [
        (node(), NodeState.IDLE),
        (node(1), NodeState.MIXED),
        (node(4), NodeState.ALLOCATED),
        (node(1, drained=True), NodeState.DRAINING),
        (node(0, drained=True), NodeState.DRAINED),
        (node(0, drained=True, up=False, reason="off"), NodeState.DRAINED),
        (node(0, up=False, reason="no answer"), NodeState.DOWN),
        (node(2, up=False), NodeState.DOWN),
        (NodeView(Node("h1"), reason="refused"), NodeState.DOWN),
        (NodeView(Node("h1")), NodeState.UNKNOWN),
    ],
)
def test_each_node_has_one_state(seen: NodeView, state: NodeState) -> None:
    assert lines.node_line(seen).state is state


def test_a_node_line_holds_the_values_of_the_last_sample() -> None:
    line = lines.node_line(node(1))
    assert (line.cpu, line.load, line.memory_free, line.last_seen) == (0.25, 0.7, 1 << 30, 100.0)
    assert (line.running, line.slots, line.cores, line.isolation) == (1, 4, 4, "pidns")
    assert (line.toolchains, line.tags) == (("c", "java"), ("fast", "lab"))
    assert lines.node_line(node(), last_seen=107.0).last_seen == 107.0


def test_the_busy_share_is_at_most_one() -> None:
    """A sample that was taken late holds more than one second of CPU time per second."""
    assert lines.node_line(node(sample=Sample(100.0, 1.0, 4.2, 5.0, 0))).cpu == 1.0
    assert lines.node_line(node(sample=Sample(100.0, 1.0, None, 5.0, 0))).cpu is None


def test_the_line_of_a_node_that_never_answered_has_no_values() -> None:
    line = lines.node_line(NodeView(Node("h1"), reason="refused", next_try_seconds=4.0))
    assert (line.cpu, line.load, line.memory_free, line.slots, line.cores, line.last_seen) == (None,) * 6
    assert (line.reason, line.next_try_seconds) == ("refused", 4.0)
