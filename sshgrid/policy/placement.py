"""Which node takes a job next, why the others do not, and in which order waiting jobs get their turn.

Every answer is a function of the views, the submission and the dice passed in. Refuses to guess: a node whose load is
not known counts as full, and a node that may still turn out to be able is never declared unable.
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

COUNTDOWN = ", next try in "
NEAR = 0.1  # busy share: nodes this close to the best count as equally idle

# From hopeless to hopeful: a waiting job shows the most hopeful thing that is in its way.
PENDING_CODES = (
    *("BadConstraints", "NoToolchain", "NodeDown", "Backoff", "LoadTooHigh", "Resources", "UserLimit", "Priority"),
)


class NodeView(Struct, frozen=True):
    """All that placement may know about a node at one moment."""

    node: Node
    up: bool = False
    reason: str = ""  # why it is not up
    facts: Facts | None = None  # None = never probed
    toolchains: Mapping[str, Toolchain] = {}
    untested: frozenset[str] = frozenset()  # languages whose hello has not run yet
    sample: Sample | None = None
    slot_limit: int | None = None  # a node that lost several runs takes no more than this
    running: int = 0  # slots in use
    started_since_sample: int = 0
    ended_since_sample: int = 0
    next_try_seconds: float | None = None  # until the next dial, when it is not up
    gpus_in_use: frozenset[int] = frozenset()
    user_limit: str = ""  # why the user whose job it is may have no more runs there


PendingReason: TypeAlias = tuple[str, str]  # one of CODES, and a reason with its numbers
Requirements: TypeAlias = tuple[str, str, str, int | None, int, int]
Policy: TypeAlias = Callable[[Sequence[NodeView], Random, int], NodeView]


# --- how busy a node is -----------------------------------------------------------------------------------------------


def cores(view: NodeView) -> int:
    """How many cores it has; 1 as long as nobody knows."""
    return max(1, view.facts.cores) if view.facts else 1


def slots(view: NodeView) -> int:
    """How many runs it takes at once; fewer than usual while it has to prove itself."""
    return _all_slots(view) if view.slot_limit is None else min(view.slot_limit, _all_slots(view))


def _all_slots(view: NodeView) -> int:
    return view.node.slots if view.node.slots is not None else cores(view)


def busy_cores(view: NodeView) -> float | None:
    """Cores in use as far as can be told now; None = nobody knows.

    A sample is a second old, so what started or ended since is added: without it a burst of starts would all go to the
    node that looked idle. A load above the number of cores is a queue that CPU use, capped at the cores, cannot show.
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
    """Busy share of the node after weighing, lower is better; an unknown load is a full node, so at least 1.0."""
    capacity = cores(view) * view.node.weight
    busy = busy_cores(view)
    if busy is None:
        return max(1.0, (cores(view) + view.running) / capacity)
    return busy / capacity


# --- what rules a node out --------------------------------------------------------------------------------------------


def selected_nodes(views: Sequence[NodeView], submission: Submission) -> frozenset[str]:
    """Names of the nodes that ``--on`` allows. UsageError as selectors.nodes."""
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
    """The first thing that keeps `submission` off this node now; None = it may start.

    `allowed` is what wanted() said, as a selector means something only among all nodes. `languages` adds the names of
    the tools to the reason.
    """
    return (
        _absent(view)
        or _barred(view, submission, allowed, excluded)
        or _toolchain(view, submission, languages)
        or _full(view, submission)
        or _gpus(view, submission)
        or _loaded(view)
        or _memory(view, submission)
        or (("UserLimit", view.user_limit) if view.user_limit else None)
    )


def _absent(view: NodeView) -> PendingReason | None:
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


def _barred(
    view: NodeView, submission: Submission, allowed: Collection[str], excluded: Collection[str]
) -> PendingReason | None:
    if view.node.name not in allowed:
        return "BadConstraints", f"not in --on {submission.on}"
    if view.node.name in excluded:
        return "Backoff", "failed this job before, so others go first"
    return None


def _toolchain(view: NodeView, submission: Submission, languages: Sequence[Language] = ()) -> PendingReason | None:
    program = submission.program
    language, constraint = program.language, program.version
    if view.node.toolchains is not None and language not in view.node.toolchains:
        return "NoToolchain", f"the inventory does not list {language} for it"
    found = view.toolchains.get(language)
    if found is None:
        still = view.facts is None or language in view.untested
        return "NoToolchain", f"still testing {language}" if still else f"no {language}{_needs(language, languages)}"
    if constraint and not toolchains.satisfies(found.version, constraint):
        return "NoToolchain", f"{language} {found.version or 'of unknown version'}, wanted {constraint}"
    return None


def _needs(language: str, languages: Sequence[Language]) -> str:
    tools = [tool for row in languages if row.name == language for tool in toolchains.tools((row,))]
    return f" (looked for {', '.join(tools)})" if tools else ""


def _full(view: NodeView, submission: Submission) -> PendingReason | None:
    limit, need = slots(view), submission.slots
    if need > _all_slots(view) and (view.facts or view.node.slots is not None):
        return "BadConstraints", f"{need} slots wanted, it has {_all_slots(view)}"
    if view.running + need > limit:
        return "Resources", f"{view.running} of {limit} slots busy" + (f", {need} wanted" if need > 1 else "")
    return None


def gpus(view: NodeView) -> int:
    """How many GPUs it has."""
    return view.node.gpus if view.node.gpus is not None else view.facts.gpus if view.facts else 0


def free_gpus(view: NodeView) -> list[int]:
    """The numbers of those that no run has."""
    return [number for number in range(gpus(view)) if number not in view.gpus_in_use]


def _gpus(view: NodeView, submission: Submission) -> PendingReason | None:
    need, there = submission.gpus, gpus(view)
    if need > there and (view.facts or view.node.gpus is not None):
        return "BadConstraints", f"{need} GPUs wanted, it has {there or 'none'}"
    if need and need > len(free_gpus(view)):
        return "Resources", f"{len(view.gpus_in_use)} of {there} GPUs busy, {need} wanted"
    return None


def _loaded(view: NodeView) -> PendingReason | None:
    limit = view.node.max_load
    if limit is None:
        return None
    busy = busy_cores(view)
    if busy is None:
        return ("LoadTooHigh", f"load not known yet, so 100 % > {_percent(limit)}") if limit < 1.0 else None
    share = busy / cores(view)
    return ("LoadTooHigh", f"{_percent(share)} > {_percent(limit)}") if share > limit else None


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _memory(view: NodeView, submission: Submission) -> PendingReason | None:
    need = submission.program.limits.memory_bytes
    if need is None:
        return None
    if view.facts and need > view.facts.memory_bytes:
        return "BadConstraints", f"{format_size(need)} of memory wanted, it has {format_size(view.facts.memory_bytes)}"
    if view.sample and need > view.sample.memory_free_bytes:
        return "Resources", f"{format_size(need)} of memory wanted, {format_size(view.sample.memory_free_bytes)} free"
    return None


# --- choosing ---------------------------------------------------------------------------------------------------------


def least_loaded(candidates: Sequence[NodeView], rng: Random, turn: int) -> NodeView:
    """Any of those about as idle as the idlest: many choosing the very same best node is how herds form."""
    scores = [score(view) for view in candidates]
    best = min(scores)
    return rng.choice([view for view, busy in zip(candidates, scores, strict=True) if busy <= best + NEAR])


def round_robin(candidates: Sequence[NodeView], rng: Random, turn: int) -> NodeView:
    """One after the other by name, whatever their load."""
    return sorted(candidates, key=lambda view: view.node.name)[turn % len(candidates)]


def pack(candidates: Sequence[NodeView], rng: Random, turn: int) -> NodeView:
    """The fullest that still has a slot free, so that whole nodes stay empty."""
    return min(candidates, key=lambda view: (-view.running / slots(view), view.node.name))


POLICIES: Mapping[str, Policy] = {"least-loaded": least_loaded, "round-robin": round_robin, "pack": pack}


def requirements(submission: Submission) -> Requirements:
    """All of a submission that this module looks at, as a key.

    Within one round nodes only fill up, so when no node took a job, none will take the next one with the same needs:
    10,000 waiting tasks of a sweep are one question, not 10,000.
    """
    program = submission.program
    memory = program.limits.memory_bytes
    return submission.on, program.language, program.version, memory, submission.slots, submission.gpus


def eligible(views: Sequence[NodeView], submission: Submission, excluded: Collection[str] = ()) -> list[NodeView]:
    """The nodes that may start it now.

    A node that failed this job is not banned, it is the last resort: it counts again when no other node is in a state
    to take the job sooner or later. Otherwise a grid of one node could never retry.
    """
    allowed = _wanted_or_none(views, submission)
    if excluded and not has_untried_node(views, submission, excluded):
        excluded = ()
    return [view for view in views if pending_reason(view, submission, allowed, excluded) is None]


def eligible_after_release(
    views: Sequence[NodeView], submission: Submission, excluded: Collection[str] = ()
) -> frozenset[str]:
    """The nodes where it could begin when one of their slots were free."""
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
    turn: int,
) -> NodeView | None:
    """The node to start it on now; None = it has to wait."""
    candidates = eligible(views, submission, excluded)
    return policy(candidates, rng, turn) if candidates else None


def has_untried_node(views: Sequence[NodeView], submission: Submission, excluded: Collection[str]) -> bool:
    """Is there a working node, busy or not, that has not failed this job yet?"""
    allowed = _wanted_or_none(views, submission)
    return any(
        _absent(view) is None and view.node.name not in excluded and not _unable(view, submission, allowed)
        for view in views
    )


def _wanted_or_none(views: Sequence[NodeView], submission: Submission) -> frozenset[str]:
    """As wanted(); nothing when the selector no longer names a node, which a changed inventory can bring about."""
    try:
        return selected_nodes(views, submission)
    except UsageError:
        return frozenset()


# --- saying why -------------------------------------------------------------------------------------------------------


def explain(
    views: Sequence[NodeView],
    submission: Submission,
    excluded: Collection[str] = (),
    languages: Sequence[Language] = (),
) -> tuple[NodeReason, ...]:
    """For each node that is ruled out, what rules it out: ``Resources: 2 of 2 slots busy``."""
    found = _obstacles(views, submission, excluded, languages)
    return tuple(NodeReason(name, f"{code}: {text}") for name, (code, text) in found.items())


def pending_code(views: Sequence[NodeView], submission: Submission, excluded: Collection[str] = ()) -> str:
    """One word for `ps`: what is in the way on the most hopeful node; Priority when others merely come first."""
    found = _obstacles(views, submission, excluded)
    if len(found) < len(views):
        return "Priority"
    return max((code for code, _ in found.values()), key=PENDING_CODES.index, default="BadConstraints")


def _obstacles(
    views: Sequence[NodeView],
    submission: Submission,
    excluded: Collection[str],
    languages: Sequence[Language] = (),
) -> dict[str, PendingReason]:
    allowed = _wanted_or_none(views, submission)
    if excluded and not has_untried_node(views, submission, excluded):
        excluded = ()
    found = ((view.node.name, pending_reason(view, submission, allowed, excluded, languages)) for view in views)
    return {name: reason for name, reason in found if reason is not None}


def permanently_impossible(
    views: Sequence[NodeView], submission: Submission, languages: Sequence[Language] = ()
) -> PendingReason | None:
    """(code, message) when nothing in the grid could ever run it; None while any node might, or is not known yet.

    The code says how the submitter is told: NoToolchain is UnknownLanguage (exit 127), the others NoNodeLeft (125).
    """
    try:
        allowed = selected_nodes(views, submission)
    except UsageError as error:
        return "BadConstraints", error.message
    views = [view for view in views if view.node.name in allowed]
    reasons = [_unable(view, submission, allowed) for view in views]
    if not reasons:
        return "BadConstraints", f"--on {submission.on} matches no node" if submission.on else "the grid has no nodes"
    known = [reason for reason in reasons if reason is not None]
    if len(known) < len(reasons):
        return None
    code, text = max(known, key=lambda reason: reason[0] == "BadConstraints")
    where = f"no node of --on {submission.on}" if submission.on else "no node"
    if code == "NoToolchain":
        return code, f"{where} has a toolchain for {_language(submission, languages)}{_found(views, submission)}"
    return code, f"{where} is large enough: {text}"


def _language(submission: Submission, languages: Sequence[Language]) -> str:
    program = submission.program
    return f"{program.language}{program.version}{_needs(program.language, languages)}"


def _found(views: Sequence[NodeView], submission: Submission) -> str:
    language = submission.program.language
    versions = {view.toolchains[language].version for view in views if language in view.toolchains}
    return f"; found {', '.join(sorted(versions - {''}))}" if any(versions) else ""


def _unable(view: NodeView, submission: Submission, allowed: Collection[str]) -> PendingReason | None:
    """What will still rule this node out when it is up, idle and resumed; None = nothing that is known."""
    if view.node.name not in allowed:
        return "BadConstraints", f"not in --on {submission.on}"
    missing = _toolchain(view, submission)
    if missing and not _may_appear(view, submission.program.language):
        return missing
    large = (_full(view, submission), _gpus(view, submission), _memory(view, submission))
    return next((found for found in large if found and found[0] == "BadConstraints"), None)


def _may_appear(view: NodeView, language: str) -> bool:
    """A missing toolchain of a node that was not asked yet may turn out to be there."""
    if view.node.toolchains is not None and language not in view.node.toolchains:
        return False
    return view.facts is None or language in view.untested


def all_down(views: Sequence[NodeView], submission: Submission) -> bool:
    """True when every node that might run it is down: who waits at a terminal should not wait for ever.

    Drained nodes give no hope, as only a person brings them back; when nothing but drained nodes is left the answer is
    False, as that person chose to let jobs wait.
    """
    allowed = _wanted_or_none(views, submission)
    hopeful = [view for view in views if not view.node.drained and not _unable(view, submission, allowed)]
    return bool(hopeful) and not any(view.up for view in hopeful)


# --- whose turn it is -------------------------------------------------------------------------------------------------
