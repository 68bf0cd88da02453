"""The text of `sshgrid info`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sshgrid.protocol.messages import JobLine
    from sshgrid.terminal.render import TextStyle


def info_text(style: TextStyle, job: JobLine) -> str:
    """The text that `info` prints for a job."""
    from sshgrid.model import job_text
    from sshgrid.notation.quantities import format_duration
    from sshgrid.terminal import render

    text = render.pairs(
        (
            ("job", job_text(job.id)),
            ("name", job.name),
            ("user", job.user),
            ("program", job.program),
            ("state", job.state + (f" ({job.phase})" if job.phase else "")),
            ("reason", job.reason),
            ("node", job.node),
            ("tasks", render.sweep_text(job.sweep) if job.sweep else ""),
            ("attempt", f"{job.attempt} of {job.attempts_allowed}" if job.attempt else ""),
            ("submitted", render.local_time(job.submitted)),
            ("started", render.local_time(job.started)),
            ("time", format_duration(job.seconds)),
            ("exit", "" if job.exit_status is None else f"{job.exit_status} ({render.exit_text(job)})"),
        ),
        style,
    )
    if job.attempts:
        header = ("ATTEMPT", "NODE", "OUTCOME", "TIME", "SENT", "COMPILED", "CPU", "MEMORY", "TOOLCHAIN", "ISOLATION")
        text += "\n" + render.table(header, (render.attempt_row(each) for each in job.attempts), style)
    if taken := [(each.node, each.why_compiled) for each in job.attempts if each.why_compiled]:
        text += "\n" + render.table(("NODE", "WHY COMPILED THERE"), taken, style)
    if job.why:
        text += "\n" + render.table(("NODE", "WHY NOT"), ((each.node, each.reason) for each in job.why), style)
    return text
