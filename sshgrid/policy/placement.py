"""Placement: on which node a job starts, and why it cannot start on the other nodes.

Every function depends only on its arguments: the views of the nodes, the submission and the random generator. A node
whose load is not known counts as fully loaded. A node that was not probed yet counts as one that may run the job later.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import TypeAlias

import msgspec

from sshgrid import toolchains
from sshgrid.errors import UsageError
from sshgrid.model import Facts, Language, Node, Sample, Struct, Submission, Toolchain
from sshgrid.notation import selectors
from sshgrid.notation.quantities import format_duration, format_size
from sshgrid.protocol.messages import NodeReason

COUNTDOWN = ", next try in "  # followed by the time until the next dial, at the end of a reason
NEAR_BEST = 0.1  # nodes whose score is this close to the best count as equally idle

# From permanent to temporary. `ps` shows the most temporary code of all nodes.
PENDING_CODES = (
    *("BadConstraints", "NoToolchain", "NodeDown", "Backoff", "LoadTooHigh", "Resources", "UserLimit", "Priority"),
)


class NodeView(Struct, frozen=True):
    """What placement knows about a node at one moment."""

    node: Node
    up: bool = False
    reason: str = ""  # why it is not up
    facts: Facts | None = None  # None = not probed yet
    toolchains: Mapping[str, Toolchain] = {}
    untested: frozenset[str] = frozenset()  # languages whose smoke test has not run yet
    sample: Sample | None = None
    slot_limit: int | None = None  # the most slots in use, after the node lost several runs; None = no limit
    running: int = 0  # slots in use
    started_since_sample: int = 0
    ended_since_sample: int = 0
    next_try_seconds: float | None = None  # until the next dial, when it is not up
    gpus_in_use: frozenset[int] = frozenset()
    user_limit: str = ""  # why the owner of the job may start no more runs here; "" = no limit reached


PendingReason: TypeAlias = tuple[str, str]  # one of PENDING_CODES, and a text with the numbers
Requirements: TypeAlias = tuple[str, str, str, int | None, int, int]
Policy: TypeAlias = Callable[[Sequence[NodeView], Random, int], NodeView]


# --- how busy a node is -----------------------------------------------------------------------------------------------


def cores(view: NodeView) -> int:
    """The number of cores of the node; 1 while it is not known."""
    return max(1, view.facts.cores) if view.facts else 1


def slots(view: NodeView) -> int:
    """The number of slots that may be in use, with `slot_limit` applied."""
    return _all_slots(view) if view.slot_limit is None else min(view.slot_limit, _all_slots(view))


def _all_slots(view: NodeView) -> int:
    return view.node.slots if view.node.slots is not None else cores(view)


def busy_cores(view: NodeView) -> float | None:
    """An estimate of the cores in use now; None = not known.

    A sample may be a second old, so each run that started since adds one core, and each that ended removes one:
    otherwise a burst of starts would all go to the node that was idle. CPU use cannot exceed the number of cores; when
    the load does, the load counts.
    """
    if view.sample is None:
        return None
    busy, load = view.sample.busy_cores, view.sample.load
    if busy is None:
        busy = load
    elif load > cores(view):
        busy = max(busy, load)
    return max(0.0, busy + view.started_since_sample - view.ended_since_sample)


def score(view: NodeView) -> float:
    """The busy share of the node, divided by its weight: lower is better. At least 1.0 while the load is not known."""
    capacity = cores(view) * view.node.weight
    busy = busy_cores(view)
    if busy is None:
        return max(1.0, (cores(view) + view.running) / capacity)
    return busy / capacity


# --- reasons not to start on a node -----------------------------------------------------------------------------------


def selected_nodes(views: Sequence[NodeView], submission: Submission) -> frozenset[str]:
    """The names of the nodes that ``--on`` selects. Raises UsageError as selectors.nodes does."""
    if not submission.on:
        return frozenset(view.node.name for view in views)
    return frozenset(node.name for node in selectors.nodes(submission.on, [view.node for view in views]))


def pending_reason(
    view: NodeView,
    submission: Submission,
    allowed: Collection[str],
    excluded: Collection[str] = (),
    languages: Sequence[Language] = (),
) -> PendingReason | None:
    """The first reason why `submission` cannot start on this node now; None = it can start.

    `allowed` is the result of selected_nodes(), which needs all nodes. With `languages` the reason names the tools of
    a missing toolchain.
    """
    return (
        _down_reason(view)
        or _constraint_reason(view, submission, allowed, excluded)
        or _toolchain_reason(view, submission, languages)
        or _slot_reason(view, submission)
        or _gpu_reason(view, submission)
        or _load_reason(view)
        or _memory_reason(view, submission)
        or (("UserLimit", view.user_limit) if view.user_limit else None)
    )


def _down_reason(view: NodeView) -> PendingReason | None:
    if view.node.drained:
        text = f"draining, {_runs(view.running)} left" if view.running else "drained"
        return "NodeDown", text
    if view.up:
        return None
    text = view.reason or "not contacted yet"
    if view.next_try_seconds is not None:
        text += f"{COUNTDOWN}{format_duration(max(0.0, view.next_try_seconds))}"
    return "NodeDown", text


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _constraint_reason(
    view: NodeView, submission: Submission, allowed: Collection[str], excluded: Collection[str]
) -> PendingReason | None:
    if view.node.name not in allowed:
        return "BadConstraints", f"not in --on {submission.on}"
    if view.node.name in excluded:
        return "Backoff", "an earlier attempt failed here; other nodes are tried first"
    return None


def _toolchain_reason(
    view: NodeView, submission: Submission, languages: Sequence[Language] = ()
) -> PendingReason | None:
    program = submission.program
    language, constraint = program.language, program.version
    if view.node.toolchains is not None and language not in view.node.toolchains:
        return "NoToolchain", f"the inventory does not list {language} for this node"
    found = view.toolchains.get(language)
    if found is None:
        untested = view.facts is None or language in view.untested
        return (
            "NoToolchain",
            f"still testing {language}" if untested else f"no {language}{_tools_text(language, languages)}",
        )
    if constraint and not toolchains.satisfies(found.version, constraint):
        return "NoToolchain", f"{language} {found.version or 'of unknown version'}, {constraint} required"
    return None


def _tools_text(language: str, languages: Sequence[Language]) -> str:
    tools = [tool for row in languages if row.name == language for tool in toolchains.tools((row,))]
    return f" (looked for {', '.join(tools)})" if tools else ""


def _slot_reason(view: NodeView, submission: Submission) -> PendingReason | None:
    limit, need = slots(view), submission.slots
    if need > _all_slots(view) and (view.facts or view.node.slots is not None):
        return "BadConstraints", f"{need} slots needed, the node has {_all_slots(view)}"
    if view.running + need > limit:
        return "Resources", f"{view.running} of {limit} slots busy" + (f", {need} needed" if need > 1 else "")
    return None


def gpus(view: NodeView) -> int:
    """The number of GPUs of the node; 0 while it is not known."""
    return view.node.gpus if view.node.gpus is not None else view.facts.gpus if view.facts else 0


def free_gpus(view: NodeView) -> list[int]:
    """The numbers of the GPUs that no run uses."""
    return [number for number in range(gpus(view)) if number not in view.gpus_in_use]


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _gpu_reason(view: NodeView, submission: Submission) -> PendingReason | None:
    need, present = submission.gpus, gpus(view)
    if need > present and (view.facts or view.node.gpus is not None):
        return "BadConstraints", f"{_gpus(need)} needed, the node has {present or 'none'}"
    if need and need > len(free_gpus(view)):
        return "Resources", f"{len(view.gpus_in_use)} of {present} GPUs busy, {need} needed"
    return None


def _load_reason(view: NodeView) -> PendingReason | None:
    limit = view.node.max_load
    if limit is None:
        return None
    busy = busy_cores(view)
    if busy is None:
        return ("LoadTooHigh", f"load not known yet, counts as 100 % > {_percent(limit)}") if limit < 1.0 else None
    share = busy / cores(view)
    return ("LoadTooHigh", f"{_percent(share)} > {_percent(limit)}") if share > limit else None


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _memory_reason(view: NodeView, submission: Submission) -> PendingReason | None:
    need = submission.program.limits.memory_bytes
    if need is None:
        return None
    if view.facts and need > view.facts.memory_bytes:
        return (
            "BadConstraints",
            f"{format_size(need)} of memory needed, the node has {format_size(view.facts.memory_bytes)}",
        )
    if view.sample and need > view.sample.memory_free_bytes:
        return "Resources", f"{format_size(need)} of memory needed, {format_size(view.sample.memory_free_bytes)} free"
    return None


# --- the choice of a node ---------------------------------------------------------------------------------------------


def least_loaded(candidates: Sequence[NodeView], rng: Random, starts: int) -> NodeView:
    """A random one of the nodes whose score is close to the best, so that many starts spread over them."""
    scores = [score(view) for view in candidates]
    best = min(scores)
    return rng.choice([view for view, busy in zip(candidates, scores, strict=True) if busy <= best + NEAR_BEST])


def round_robin(candidates: Sequence[NodeView], rng: Random, starts: int) -> NodeView:
    """One node after the other, by name, regardless of load."""
    return sorted(candidates, key=lambda view: view.node.name)[starts % len(candidates)]


def pack(candidates: Sequence[NodeView], rng: Random, starts: int) -> NodeView:
    """The node with the largest share of slots in use, so that other nodes stay empty."""
    return min(candidates, key=lambda view: (-view.running / slots(view), view.node.name))


POLICIES: Mapping[str, Policy] = {"least-loaded": least_loaded, "round-robin": round_robin, "pack": pack}


def requirements(submission: Submission) -> Requirements:
    """The parts of a submission that placement depends on, as a key.

    Within one scheduling step nodes only fill up. When no node can take a job, none can take the next one with the same
    requirements: 10,000 waiting tasks of a sweep need one decision, not 10,000.
    """
    program = submission.program
    memory = program.limits.memory_bytes
    return submission.on, program.language, program.version, memory, submission.slots, submission.gpus


def eligible(views: Sequence[NodeView], submission: Submission, excluded: Collection[str] = ()) -> list[NodeView]:
    """The nodes on which the submission can start now.

    A node in `excluded`, which failed this job, is eligible again when no other working node could ever run the job.
    Otherwise a grid of one node could never retry.
    """
    allowed = _selected_or_none(views, submission)
    if excluded and not has_untried_node(views, submission, excluded):
        excluded = ()
    return [view for view in views if pending_reason(view, submission, allowed, excluded) is None]


def eligible_after_release(
    views: Sequence[NodeView], submission: Submission, excluded: Collection[str] = ()
) -> frozenset[str]:
    """The names of the nodes on which the submission could start if one more slot were free there."""
    freed = [
        msgspec.structs.replace(view, running=view.running - 1, ended_since_sample=view.ended_since_sample + 1)
        for view in views
    ]
    return frozenset(view.node.name for view in eligible(freed, submission, excluded))


def place(
    views: Sequence[NodeView],
    submission: Submission,
    excluded: Collection[str],
    policy: Policy,
    rng: Random,
    starts: int,
) -> NodeView | None:
    """The node on which the submission starts now; None = it must wait. `starts` counts all starts so far."""
    candidates = eligible(views, submission, excluded)
    return policy(candidates, rng, starts) if candidates else None


def has_untried_node(views: Sequence[NodeView], submission: Submission, excluded: Collection[str]) -> bool:
    """Whether a working node, busy or not, could run the submission and is not in `excluded`."""
    allowed = _selected_or_none(views, submission)
    return any(
        _down_reason(view) is None
        and view.node.name not in excluded
        and not _permanent_reason(view, submission, allowed)
        for view in views
    )


def _selected_or_none(views: Sequence[NodeView], submission: Submission) -> frozenset[str]:
    """As selected_nodes(), but empty when the selector names no node, as it may after a change of the inventory."""
    try:
        return selected_nodes(views, submission)
    except UsageError:
        return frozenset()


# --- the texts --------------------------------------------------------------------------------------------------------


def explain(
    views: Sequence[NodeView],
    submission: Submission,
    excluded: Collection[str] = (),
    languages: Sequence[Language] = (),
) -> tuple[NodeReason, ...]:
    """The reason of each node on which the submission cannot start now: ``Resources: 2 of 2 slots busy``."""
    found = _pending_reasons(views, submission, excluded, languages)
    return tuple(NodeReason(name, f"{code}: {text}") for name, (code, text) in found.items())


def pending_code(views: Sequence[NodeView], submission: Submission, excluded: Collection[str] = ()) -> str:
    """The code that `ps` shows: the most temporary of all reasons; Priority when some node could start it now."""
    found = _pending_reasons(views, submission, excluded)
    if len(found) < len(views):
        return "Priority"
    return max((code for code, _ in found.values()), key=PENDING_CODES.index, default="BadConstraints")


def _pending_reasons(
    views: Sequence[NodeView],
    submission: Submission,
    excluded: Collection[str],
    languages: Sequence[Language] = (),
) -> dict[str, PendingReason]:
    allowed = _selected_or_none(views, submission)
    if excluded and not has_untried_node(views, submission, excluded):
        excluded = ()
    found = ((view.node.name, pending_reason(view, submission, allowed, excluded, languages)) for view in views)
    return {name: reason for name, reason in found if reason is not None}


def permanently_impossible(
    views: Sequence[NodeView], submission: Submission, languages: Sequence[Language] = ()
) -> PendingReason | None:
    """Code and message when no node can ever run the submission; None when some node can, or may.

    The code decides the error of the submission: UnknownLanguage (exit 127) for NoToolchain, else NoNodeLeft (125).
    """
    try:
        allowed = selected_nodes(views, submission)
    except UsageError as error:
        return "BadConstraints", error.message
    views = [view for view in views if view.node.name in allowed]
    reasons = [_permanent_reason(view, submission, allowed) for view in views]
    if not reasons:
        return (
            "BadConstraints",
            f"--on {submission.on} matches no node" if submission.on else "the inventory has no nodes",
        )
    known = [reason for reason in reasons if reason is not None]
    if len(known) < len(reasons):
        return None
    code, text = max(known, key=lambda reason: reason[0] == "BadConstraints")
    where = f"no node of --on {submission.on}" if submission.on else "no node"
    if code == "NoToolchain":
        wanted = _language_text(submission, languages)
        return code, f"{where} has a working toolchain for {wanted}{_versions_text(views, submission)}"
    return code, f"{where} is large enough: {text}"


def _language_text(submission: Submission, languages: Sequence[Language]) -> str:
    program = submission.program
    return f"{program.language}{program.version}{_tools_text(program.language, languages)}"


def _versions_text(views: Sequence[NodeView], submission: Submission) -> str:
    language = submission.program.language
    versions = {view.toolchains[language].version for view in views if language in view.toolchains}
    return f"; found {', '.join(sorted(versions - {''}))}" if any(versions) else ""


def _permanent_reason(view: NodeView, submission: Submission, allowed: Collection[str]) -> PendingReason | None:
    """The reason that remains when the node is up, idle and resumed; None = there is none, as far as is known."""
    if view.node.name not in allowed:
        return "BadConstraints", f"not in --on {submission.on}"
    missing = _toolchain_reason(view, submission)
    if missing and not _may_be_found_later(view, submission.program.language):
        return missing
    large = (_slot_reason(view, submission), _gpu_reason(view, submission), _memory_reason(view, submission))
    return next((found for found in large if found and found[0] == "BadConstraints"), None)


def _may_be_found_later(view: NodeView, language: str) -> bool:
    """Whether the missing toolchain may still be found: the node was not probed yet, or not tested."""
    if view.node.toolchains is not None and language not in view.node.toolchains:
        return False
    return view.facts is None or language in view.untested


def all_down(views: Sequence[NodeView], submission: Submission) -> bool:
    """Whether all nodes that could run the submission are down, so that a waiting user gets an error.

    Drained nodes do not count, because only a user resumes them. False when there are only drained nodes: the user who
    drained them has chosen to let jobs wait.
    """
    allowed = _selected_or_none(views, submission)
    candidates = [view for view in views if not view.node.drained and not _permanent_reason(view, submission, allowed)]
    return bool(candidates) and not any(view.up for view in candidates)
