"""What the end of an attempt means for its job, and the words and numbers by which a job's fate is told.

A failing program is a result, a failing host is a reason to go elsewhere, a failing toolchain is tried on one other
node: three classes with budgets of their own. Refuses news of an attempt that is not live.
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

POISON_NODES = 3  # so many different nodes lost while it ran: the job is the likelier cause
TOOLCHAIN_TRIES = 2


# --- deciding ---------------------------------------------------------------------------------------------------------


def settle(
    job: Job,
    record: AttemptRecord,
    outcome: Outcome,
    policy: RetryPolicy,
    now: float,
    rng: Random,
    others: bool = True,
) -> Job:
    """The job after this attempt ended so: done, or queued for the next attempt. Unchanged = stale news.

    Of two attempts side by side the first result wins, and the other is superseded. One that ends without a result says
    nothing about the other, which goes on: a backup must not make anything worse.
    `others`: is there a working node that has not failed this job (placement.others)? Then the next attempt may start
    at once; if not, it waits a backoff and all nodes are its candidates again.
    """
    if _stale(job, record):
        return job
    job = _remember(job, msgspec.structs.replace(record, outcome=outcome, ended=now))
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
            return _after_host_loss(job, policy, now, rng, others)
        case ToolchainBroken():
            return _after_broken_toolchain(job, policy, now, rng, others)
        case _:
            assert_never(outcome)


def _stale(job: Job, record: AttemptRecord) -> bool:
    if job.phase is Phase.DONE:
        return True
    return bool(job.attempts) and record.number not in [live.number for live in job.live]


def _remember(job: Job, *records: AttemptRecord) -> Job:
    newer = {record.number: record for record in (*job.attempts, *records)}
    return msgspec.structs.replace(job, attempts=tuple(newer[number] for number in sorted(newer)))


def _supersede(job: Job, winner: int, now: float) -> Job:
    """Whatever else is live is not any more."""
    ends = {"outcome": Superseded(winner), "ended": now}
    return _remember(job, *(msgspec.structs.replace(record, **ends) for record in job.live))


def with_verdict(job: Job, verdict: Verdict, now: float) -> Job:
    """The job with its verdict; called by name only for one that waits (cancelled in the queue, nothing can run it)."""
    return msgspec.structs.replace(job, phase=Phase.DONE, verdict=verdict, ended=now, held="")


def _after_host_loss(job: Job, policy: RetryPolicy, now: float, rng: Random, others: bool) -> Job:
    losses = _failures(job, HostLost)
    if job.submission.on_host_loss is OnHostLoss.FAIL:
        return with_verdict(job, GaveUp(f"{_met(job)} (--on-host-loss fail)"), now)
    if job.submission.interactive:
        return with_verdict(job, GaveUp(f"{_met(job)} (an interactive run is not retried)"), now)
    if len(losses) > _retries(job, policy):
        return with_verdict(job, GaveUp(_retries_used_up(job)), now)
    job = _again(job, policy, now, rng, others)
    # Only here, with retries left: whoever waits for a job without any is owed its end, not a pause.
    if (count := _nodes_lost_while_running(job)) >= POISON_NODES:
        return msgspec.structs.replace(job, held=f"lost {count} nodes while running: {_met(job)}")
    return job


def _after_broken_toolchain(job: Job, policy: RetryPolicy, now: float, rng: Random, others: bool) -> Job:
    if job.submission.interactive or len(_failures(job, ToolchainBroken)) >= TOOLCHAIN_TRIES:
        return with_verdict(job, GaveUp(f"the {job.submission.program.language} toolchain failed: {_met(job)}"), now)
    return _again(job, policy, now, rng, others)


def _again(job: Job, policy: RetryPolicy, now: float, rng: Random, others: bool) -> Job:
    """Queued once more. The first failure moves on at once, so one dead host slows nobody."""
    failures = len(_failures(job, HostLost, ToolchainBroken))
    free = failures == 1 and others
    return msgspec.structs.replace(
        job,
        phase=Phase.QUEUED,
        excluded=job.excluded | _last_nodes(job) if others else frozenset(),
        not_before=now if free else now + backoff(policy, failures, rng),
    )


def _last_nodes(job: Job) -> set[str]:
    """Where the last try was: on two nodes when it had a backup."""
    return {record.node for record in job.attempts[-1 - job.attempts[-1].speculative :]}


def backoff(policy: RetryPolicy, failures: int, rng: Random) -> float:
    """Seconds before the next try: exponential with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    doubling = 2.0 ** min(max(failures, 1) - 1, 60)
    return rng.uniform(0.0, min(policy.backoff_max_seconds, policy.backoff_seconds * doubling))


def patience(policy: RetryPolicy, elapsed_seconds: float) -> float:
    """How long a silent host is waited for: as long as the work at stake took, within the policy's bounds."""
    return min(max(elapsed_seconds, policy.patience_min_seconds), policy.patience_max_seconds)


def attempts_allowed(job: Job, policy: RetryPolicy) -> int:
    """The 3 of "attempt 2 of 3". A broken toolchain has a budget of its own, so a try it took does not count here.

    Nor does a backup: with the attempt beside it it is one try.
    """
    if job.submission.interactive or job.submission.on_host_loss is OnHostLoss.FAIL:
        return 1
    extra = sum(record.speculative for record in job.attempts if record.number > job.forgiven)
    return job.forgiven + 1 + _retries(job, policy) + len(_failures(job, ToolchainBroken)) + extra


def _retries(job: Job, policy: RetryPolicy) -> int:
    return policy.retries if job.submission.retries is None else job.submission.retries


def _failures(job: Job, *kinds: type[HostLost] | type[ToolchainBroken]) -> list[AttemptRecord]:
    tries = (record for record in job.attempts if record.number > job.forgiven and not record.speculative)
    return [record for record in tries if isinstance(record.outcome, kinds)]


def _nodes_lost_while_running(job: Job) -> int:
    return len({record.node for record in _failures(job, HostLost) if record.step is Step.RUNNING})


def _retries_used_up(job: Job) -> str:
    tries = len(job.attempts)
    text = f"{tries} attempts failed: {_met(job)}" if tries > 1 else f"the only attempt failed: {_met(job)}"
    if _nodes_lost_while_running(job) >= POISON_NODES:
        text += "; so many nodes lost while it ran may be this program's doing"
    return text


def _met(job: Job) -> str:
    """What each failed attempt met, for the person who reads the reason."""
    return "; ".join(
        f"attempt {record.number} on {record.node}: {record.outcome.reason}"
        for record in job.attempts
        if isinstance(record.outcome, HostLost | ToolchainBroken)
    )


# --- telling ----------------------------------------------------------------------------------------------------------
