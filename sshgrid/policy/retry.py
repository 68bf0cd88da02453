"""What happens to a job when one of its attempts has ended: the job has ended, or it is queued for another attempt.

A failing program is a result. A failing host leads to retries on other nodes, a failing toolchain to one retry; these
two are counted separately. The outcome of an attempt that is not live changes nothing.
"""

from __future__ import annotations

from random import Random
from typing import assert_never

import msgspec

from sshgrid.model import (
    AttemptRecord,
    Cancelled,
    CompileFailed,
    Crashed,
    Exited,
    GaveUp,
    HostLost,
    Job,
    OnHostLoss,
    Outcome,
    OutOfMemory,
    OutputLimit,
    Phase,
    ProcessLimit,
    RetryPolicy,
    Step,
    Superseded,
    TimedOut,
    ToolchainBroken,
    Verdict,
)

POISON_NODES = 3  # when a job has lost this many nodes while running, the job is the likely cause
TOOLCHAIN_TRIES = 2


# --- settlement -------------------------------------------------------------------------------------------------------


def settle(
    job: Job,
    record: AttemptRecord,
    outcome: Outcome,
    policy: RetryPolicy,
    now: float,
    rng: Random,
    has_untried_node: bool = True,
) -> Job:
    """The job after an attempt with this outcome: ended, queued again, or unchanged when the attempt is not live.

    Of two parallel attempts the first result wins, and the other attempt is superseded. An attempt that ends without a
    result leaves the job to the other one, so that a speculative attempt never makes a job fail.
    `has_untried_node` is the result of placement.has_untried_node. If it is true, the first retry starts at once; if
    not, the retry waits for a backoff and may use all nodes again.
    """
    if _is_stale(job, record):
        return job
    job = _with_records(job, msgspec.structs.replace(record, outcome=outcome, ended=now))
    match outcome:
        case Exited() | TimedOut() | OutOfMemory() | OutputLimit() | ProcessLimit() | Cancelled():
            return with_verdict(_supersede(job, record.number, now), outcome, now)
        case CompileFailed() | Crashed() | HostLost() | ToolchainBroken() if job.live:
            return job
        case CompileFailed() | Crashed():
            return with_verdict(job, outcome, now)
        case HostLost() | ToolchainBroken() if job.cancel_requested:
            return with_verdict(job, Cancelled(job.cancel_by), now)
        case HostLost():
            return _after_host_loss(job, policy, now, rng, has_untried_node)
        case ToolchainBroken():
            return _after_broken_toolchain(job, policy, now, rng, has_untried_node)
        case _:
            assert_never(outcome)


def _is_stale(job: Job, record: AttemptRecord) -> bool:
    if job.phase is Phase.DONE:
        return True
    return bool(job.attempts) and record.number not in [live.number for live in job.live]


def _with_records(job: Job, *records: AttemptRecord) -> Job:
    newer = {record.number: record for record in (*job.attempts, *records)}
    return msgspec.structs.replace(job, attempts=tuple(newer[number] for number in sorted(newer)))


def _supersede(job: Job, winner: int, now: float) -> Job:
    """Mark all live attempts as superseded by `winner`."""
    ends = {"outcome": Superseded(winner), "ended": now}
    return _with_records(job, *(msgspec.structs.replace(record, **ends) for record in job.live))


def with_verdict(job: Job, verdict: Verdict, now: float) -> Job:
    """The job as ended. Call it directly only for a queued job: one that is cancelled, or that no node can run."""
    return msgspec.structs.replace(job, phase=Phase.DONE, verdict=verdict, ended=now, held="")


def _after_host_loss(job: Job, policy: RetryPolicy, now: float, rng: Random, has_untried_node: bool) -> Job:
    losses = _failures(job, HostLost)
    if job.submission.on_host_loss is OnHostLoss.FAIL:
        return with_verdict(job, GaveUp(f"{_failures_text(job)} (--on-host-loss fail)"), now)
    if job.submission.interactive:
        return with_verdict(job, GaveUp(f"{_failures_text(job)} (an interactive run is not retried)"), now)
    if len(losses) > _retries(job, policy):
        return with_verdict(job, GaveUp(_used_up_text(job)), now)
    job = _requeued(job, policy, now, rng, has_untried_node)
    # Hold the job only while retries are left: a job without retries has ended, and must not wait for a release.
    if (count := _nodes_lost_while_running(job)) >= POISON_NODES:
        return msgspec.structs.replace(job, held=f"lost {count} nodes while running: {_failures_text(job)}")
    return job


def _after_broken_toolchain(job: Job, policy: RetryPolicy, now: float, rng: Random, has_untried_node: bool) -> Job:
    if job.submission.interactive or len(_failures(job, ToolchainBroken)) >= TOOLCHAIN_TRIES:
        return with_verdict(
            job, GaveUp(f"the {job.submission.program.language} toolchain failed: {_failures_text(job)}"), now
        )
    return _requeued(job, policy, now, rng, has_untried_node)


def _requeued(job: Job, policy: RetryPolicy, now: float, rng: Random, has_untried_node: bool) -> Job:
    """The job in the queue again. The first retry needs no backoff when another node can run it."""
    failures = len(_failures(job, HostLost, ToolchainBroken))
    at_once = failures == 1 and has_untried_node
    return msgspec.structs.replace(
        job,
        phase=Phase.QUEUED,
        excluded=job.excluded | _last_nodes(job) if has_untried_node else frozenset(),
        not_before=now if at_once else now + backoff(policy, failures, rng),
    )


def _last_nodes(job: Job) -> set[str]:
    """The node of the last attempt, and that of the attempt beside it when it is speculative."""
    return {record.node for record in job.attempts[-1 - job.attempts[-1].speculative :]}


def backoff(policy: RetryPolicy, failures: int, rng: Random) -> float:
    """Seconds before the next try: exponential with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    doubling = 2.0 ** min(max(failures, 1) - 1, 60)
    return rng.uniform(0.0, min(policy.backoff_max_seconds, policy.backoff_seconds * doubling))


def patience(policy: RetryPolicy, elapsed_seconds: float) -> float:
    """Seconds to wait for a silent host: the time that the lost work took so far, within the policy's bounds."""
    return min(max(elapsed_seconds, policy.patience_min_seconds), policy.patience_max_seconds)


def attempts_allowed(job: Job, policy: RetryPolicy) -> int:
    """The 3 of "attempt 2 of 3": the retries plus the attempts that do not count as retries.

    These are attempts before a requested retry, those that ended with a broken toolchain, and speculative ones.
    """
    if job.submission.interactive or job.submission.on_host_loss is OnHostLoss.FAIL:
        return 1
    extra = sum(record.speculative for record in job.attempts if record.number > job.forgiven)
    return job.forgiven + 1 + _retries(job, policy) + len(_failures(job, ToolchainBroken)) + extra


def _retries(job: Job, policy: RetryPolicy) -> int:
    return policy.retries if job.submission.retries is None else job.submission.retries


def _failures(job: Job, *kinds: type[HostLost] | type[ToolchainBroken]) -> list[AttemptRecord]:
    counted = (record for record in job.attempts if record.number > job.forgiven and not record.speculative)
    return [record for record in counted if isinstance(record.outcome, kinds)]


def _nodes_lost_while_running(job: Job) -> int:
    return len({record.node for record in _failures(job, HostLost) if record.step is Step.RUNNING})


def _used_up_text(job: Job) -> str:
    count = len(job.attempts)
    text = (
        f"{count} attempts failed: {_failures_text(job)}"
        if count > 1
        else f"the only attempt failed: {_failures_text(job)}"
    )
    if _nodes_lost_while_running(job) >= POISON_NODES:
        text += f"; the program may be the cause, as {_nodes_lost_while_running(job)} nodes were lost while it ran"
    return text


def _failures_text(job: Job) -> str:
    """The reason of each failed attempt."""
    return "; ".join(
        f"attempt {record.number} on {record.node}: {record.outcome.reason}"
        for record in job.attempts
        if isinstance(record.outcome, HostLost | ToolchainBroken)
    )
