"""Jobs and nodes as lines of a table: what `ps`, `info` and `nodes` show, computed from a job or a view of a node.

The names of states and verdicts come from policy.states and policy.placement.
"""

from __future__ import annotations

from collections.abc import Iterable

from sshgrid.model import AttemptRecord, Exited, Job, NodeState, Phase
from sshgrid.policy import placement, states
from sshgrid.policy.placement import NodeView
from sshgrid.protocol.messages import AttemptLine, JobLine, NodeLine, NodeReason


def job_line(
    job: Job,
    now: float,
    allowed: int,
    disconnected: bool = False,
    pending: str = "",
    why: tuple[NodeReason, ...] = (),
) -> JobLine:
    """One job at `now`.

    `allowed`: the number of attempts that the job may have. `pending`: the code of the reason why it waits.
    """
    last = job.current
    shown = None if job.phase is Phase.QUEUED else last
    return JobLine(
        id=job.id,
        user=job.owner,
        program=job.submission.command,
        name=job.submission.name,
        state=states.state(job, disconnected),
        phase=last.step.value if last and job.phase is Phase.RUNNING else "",
        node=shown.node if shown else "",
        attempt=last.number if last else 0,
        attempts_allowed=allowed,
        submitted=job.submitted,
        started=shown.began if shown else None,
        seconds=_seconds(shown, now),
        exit_code=job.verdict.code if isinstance(job.verdict, Exited) else None,
        signal=states.ended_by_signal(job.verdict),
        reason=states.reason(job, now) or (pending if job.phase is Phase.QUEUED else ""),
        exit_status=states.exit_status(job),
        attempts=tuple(attempt_line(record) for record in job.attempts),
        why=why,
        fetch=job.submission.program.fetch,
        fetched=last.fetched if last else None,
    )


def _seconds(record: AttemptRecord | None, now: float) -> float:
    if record is None:
        return 0.0
    return max(0.0, (now if record.ended is None else record.ended) - record.began)


def attempt_line(record: AttemptRecord) -> AttemptLine:
    """An attempt as `info` shows it."""
    return AttemptLine(
        number=record.number,
        node=record.node,
        outcome=attempt_outcome(record),
        started=record.began,
        ended=record.ended,
        uploaded_bytes=record.uploaded_bytes,
        upload_left_bytes=0 if record.ended else record.upload_left_bytes,
        compiled=record.compiled,
        cpu_seconds=record.usage.cpu_seconds,
        peak_memory=record.usage.peak_memory_bytes,
        toolchain=record.toolchain,
        isolation=record.isolation,
        speculative=record.speculative,
        why_compiled=record.why_compiled,
    )


def attempt_outcome(record: AttemptRecord) -> str:
    """The kind of the outcome and its details: ``exited 3``, ``host-lost: no answer for 10 s``."""
    if record.outcome is None:
        return ""
    if isinstance(record.outcome, Exited):
        return f"exited {record.outcome.code}"
    kind, text = str(record.outcome.__struct_config__.tag), states.outcome_text(record.outcome)
    return text if text.startswith(kind) else f"{kind}: {text}"


def node_line(view: NodeView, last_seen: float | None = None, busy_minute: Iterable[float] = ()) -> NodeLine:
    """One node.

    `last_seen`: the time of its last answer; None: that of its last sample. `busy_minute`: the number of busy cores in
    each second.
    """
    sample, facts = view.sample, view.facts
    return NodeLine(
        name=view.node.name,
        state=node_state(view),
        reason=view.reason,
        cpu=_cpu(view),
        load=sample.load if sample else None,
        memory_free=sample.memory_free_bytes if sample else None,
        running=view.running,
        slots=placement.slots(view) if facts or view.node.slots is not None else None,
        toolchains=tuple(sorted(view.toolchains)),
        last_seen=last_seen if last_seen is not None else (sample.at if sample else None),
        next_try_seconds=view.next_try_seconds,
        cores=facts.cores if facts else None,
        tags=tuple(sorted(view.node.tags)),
        isolation=facts.isolation if facts else "",
        cpu_minute=tuple(round(100 * _share(view, busy)) for busy in busy_minute) if facts else (),
    )


def node_state(view: NodeView) -> NodeState:
    """DRAINING and DRAINED, which a user has decided, go before DOWN, and that before how busy the node is."""
    if view.node.drained:
        return NodeState.DRAINING if view.running else NodeState.DRAINED
    if not view.up:
        return NodeState.DOWN if view.reason or view.facts else NodeState.UNKNOWN
    if view.running >= placement.slots(view):
        return NodeState.ALLOCATED
    return NodeState.MIXED if view.running else NodeState.IDLE


def _cpu(view: NodeView) -> float | None:
    if view.sample is None or view.sample.busy_cores is None or view.facts is None:
        return None
    return _share(view, view.sample.busy_cores)


def _share(view: NodeView, busy_cores: float) -> float:
    return min(1.0, busy_cores / placement.cores(view))
