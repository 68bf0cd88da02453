"""The limits of a user: caps, applied to a submission, and limits of groups, applied to the views of the nodes.

A limit that the submission leaves open becomes the cap; a limit above the cap is an OverLimit error. A job above the
cap of running jobs waits in the queue.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sshgrid.errors import OverLimit
from sshgrid.model import Caps, Group, Limits, Submission
from sshgrid.notation.quantities import format_duration
from sshgrid.policy.placement import NodeView

DEFAULT_CAPS = Caps(queued=1000, running=None, wall_seconds=3600.0, output_bytes=64 << 20, upload_bytes=100 << 20)


def apply_caps(submission: Submission, caps: Caps, queued: int) -> Submission:
    """The submission with the caps as its limits. Raises OverLimit for a larger limit, or with too many queued jobs."""
    if caps.queued is not None and queued >= caps.queued:
        raise OverLimit(f"your limit of queued jobs is {caps.queued}, and you have {queued}", "sshgrid ps")
    program, sweep = submission.program, submission.sweep
    if caps.queued is not None and sweep and queued + sweep.tasks > caps.queued:
        raise OverLimit(
            f"your limit of queued jobs is {caps.queued}; you have {queued}, and the sweep has {sweep.tasks} tasks"
        )
    files = (*program.uploads, *(sweep.uploads if sweep else ()))
    check_upload(sum(file.size for file in files), caps)
    limits = _capped(program.limits, caps)
    if program.fetch and caps.upload_bytes is not None:
        # The spool of the master holds fetched files and uploads alike, so one cap limits both.
        limits = msgspec.structs.replace(
            limits, fetch_bytes=min(caps.upload_bytes, limits.fetch_bytes or caps.upload_bytes)
        )
    if limits == program.limits:
        return submission
    return msgspec.structs.replace(submission, program=msgspec.structs.replace(program, limits=limits))


def check_upload(size: int, caps: Caps) -> None:
    """Raise OverLimit when an upload of `size` bytes is above the cap."""
    limit = caps.upload_bytes
    if limit is not None and size > limit:
        raise OverLimit(f"the upload has {size:,} bytes, and your limit is {limit:,}")


def _capped(limits: Limits, caps: Caps) -> Limits:
    wall, output = limits.wall_seconds, limits.output_bytes
    if caps.wall_seconds is not None and wall is not None and wall > caps.wall_seconds:
        requested, limit = format_duration(wall), format_duration(caps.wall_seconds)
        raise OverLimit(f"a time limit of {requested} is above your limit of {limit}", f"--time-limit {limit}")
    if caps.output_bytes is not None and output is not None and output > caps.output_bytes:
        raise OverLimit(f"an output limit of {output:,} bytes is above your limit of {caps.output_bytes:,}")
    return msgspec.structs.replace(
        limits,
        wall_seconds=caps.wall_seconds if wall is None else wall,
        output_bytes=caps.output_bytes if output is None else output,
    )


def running_limit_reached(running: int, caps: Caps) -> bool:
    """Whether a user with `running` running jobs can start no further one."""
    return caps.running is not None and running >= caps.running


def apply_group_limits(views: Sequence[NodeView], groups: Sequence[Group], in_use: Sequence[str]) -> Sequence[NodeView]:
    """The views for one user: the nodes of a group whose limit the user has reached get a `user_limit`.

    `in_use` has the name of a node for each slot of this user.
    """
    full: dict[str, str] = {}
    for group in groups:
        limit = group.max_jobs_per_user
        count = sum(node in group.nodes for node in in_use)
        if limit is not None and count >= limit:
            reason = f"the user runs {count} of at most {limit} jobs in group {group.name}"
            full |= dict.fromkeys(group.nodes, reason)
    if not full:
        return views
    return [msgspec.structs.replace(view, user_limit=full.get(view.node.name, "")) for view in views]
