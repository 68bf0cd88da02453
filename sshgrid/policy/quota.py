"""What one user may have at once or ask for: the numbers, and what becomes of a submission under them.

Pure. A limit that was not asked for becomes the cap. Refuses more than the cap with the number and the limit; only a
job that may not run yet just waits.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sshgrid.errors import OverLimit
from sshgrid.model import Caps, Group, Limits, Submission
from sshgrid.notation.quantities import format_duration
from sshgrid.policy.placement import NodeView

DEFAULT_CAPS = Caps(queued=1000, running=None, wall_seconds=3600.0, output_bytes=64 << 20, upload_bytes=100 << 20)


def apply_caps(submission: Submission, caps: Caps, waiting: int) -> Submission:
    """The submission with limits that keep to `caps`. OverLimit when it asks for more, or too many wait already."""
    if caps.queued is not None and waiting >= caps.queued:
        raise OverLimit(f"{waiting} of your jobs are waiting, and no more than {caps.queued} may", "sshgrid ps")
    program, sweep = submission.program, submission.sweep
    if caps.queued is not None and sweep and waiting + sweep.tasks > caps.queued:
        raise OverLimit(f"a sweep of {sweep.tasks} tasks: no more than {caps.queued} of your jobs may wait at once")
    files = (*program.uploads, *(sweep.uploads if sweep else ()))
    check_upload(sum(file.size for file in files), caps)
    limits = _within(program.limits, caps)
    if program.fetch and caps.upload_bytes is not None:
        # What comes back is kept in the master's spool, as what was brought: one cap for both.
        limits = msgspec.structs.replace(
            limits, fetch_bytes=min(caps.upload_bytes, limits.fetch_bytes or caps.upload_bytes)
        )
    if limits == program.limits:
        return submission
    return msgspec.structs.replace(submission, program=msgspec.structs.replace(program, limits=limits))


def check_upload(size: int, caps: Caps) -> None:
    """OverLimit when so many bytes are more than a user may bring at once."""
    limit = caps.upload_bytes
    if limit is not None and size > limit:
        raise OverLimit(f"an upload of {size:,} bytes, and no more than {limit:,} may be sent")


def _within(limits: Limits, caps: Caps) -> Limits:
    wall, output = limits.wall_seconds, limits.output_bytes
    if caps.wall_seconds is not None and wall is not None and wall > caps.wall_seconds:
        asked, limit = format_duration(wall), format_duration(caps.wall_seconds)
        raise OverLimit(f"a time limit of {asked}, and a run may take no more than {limit}", f"--time-limit {limit}")
    if caps.output_bytes is not None and output is not None and output > caps.output_bytes:
        raise OverLimit(f"an output of {output:,} bytes, and a run may print no more than {caps.output_bytes:,}")
    return msgspec.structs.replace(
        limits,
        wall_seconds=caps.wall_seconds if wall is None else wall,
        output_bytes=caps.output_bytes if output is None else output,
    )


def running_limit_reached(running: int, caps: Caps) -> bool:
    """Whether a user with so many running jobs may start no other one now."""
    return caps.running is not None and running >= caps.running


def apply_group_limits(views: Sequence[NodeView], groups: Sequence[Group], in_use: Sequence[str]) -> Sequence[NodeView]:
    """The nodes as a user finds them who has runs on those `in_use` (a name a run): closed where a group is used up."""
    closed: dict[str, str] = {}
    for group in groups:
        limit = group.max_jobs_per_user
        count = sum(node in group.nodes for node in in_use)
        if limit is not None and count >= limit:
            why = f"{count} of this user's jobs run in {group.name}, and no more than {limit} may"
            closed |= dict.fromkeys(group.nodes, why)
    if not closed:
        return views
    return [msgspec.structs.replace(view, user_limit=closed.get(view.node.name, "")) for view in views]
