"""`sweep`, `progress`, `retry`: one program over many parameters, and what may be asked about it afterwards.

Thin: what `sweep` does is in sshgrid.client.sweep.run_sweep. Refuses nothing itself.
"""

from __future__ import annotations

from typing import Any

import click

from sshgrid.cli.base import Verb, pass_session, session_of
from sshgrid.cli.completion import complete_jobs
from sshgrid.cli.options import run_options
from sshgrid.client.session import Session


class _SweepVerb(Verb):
    """Options that we know are ours wherever they stand before `:::` or `--`; all else belongs to the program."""

    ignore_unknown_options = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = next((at for at, word in enumerate(args) if word.startswith(":::")), len(args))
        rest = super().parse_args(ctx, args[:at])
        if not ctx.resilient_parsing:
            ctx.params["args"] += tuple(args[at:])
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS] FILE|- [ARGS]... [::: VALUES...]..."]


@click.command(cls=_SweepVerb)
@click.argument("file", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@run_options("sweep")
@click.pass_context
def sweep(ctx: click.Context, /, file: str, args: tuple[str, ...], **wanted: Any) -> int:
    """Run FILE once for each combination of parameters, on all able nodes.

    Options of ours may also stand behind FILE; after a -- everything is the program's.

    ARGS may hold {NAME}, {}, {1}, {#}, {.}, {/}; without any, the values are appended. What a task prints comes out
    when it has ended. Exits with the number of tasks that failed, 101 for more than 100.
    """
    from sshgrid.client.sweep import run_sweep

    return run_sweep.sweep(session_of(ctx), file, args, wanted)


@click.command(cls=Verb)
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@pass_session
def progress(session: Session, job: str) -> int:
    """Say how far a sweep has come."""
    from sshgrid.protocol.sweep_messages import ProgressOf, SweepProgress
    from sshgrid.terminal import bar, render

    with session.connect() as connection:
        found = connection.request(ProgressOf(session.one_job(connection, job)), SweepProgress)
    session.show(lambda: render.progress_object(found), lambda: f"sweep {found.job}: {bar.text(found)}\n")
    return 0


@click.command(cls=Verb)
@click.argument("selector", metavar="SEL", shell_complete=complete_jobs)
@click.option("--failed", is_flag=True, help="Only what did not succeed.")
@pass_session
def retry(session: Session, selector: str, failed: bool) -> int:
    """Run jobs that are done once more; of a sweep its tasks."""
    from sshgrid.cli.query import change
    from sshgrid.protocol.sweep_messages import Retry

    when_nothing = "has no task that failed, or is no failed job" if failed else "is not done"
    return change(session, selector, lambda jobs: Retry(jobs, failed), when_nothing)
