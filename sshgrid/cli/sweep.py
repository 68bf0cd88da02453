"""`sweep`, `progress`, `retry`: one program over many parameters.

The work of `sweep` is in sshgrid.client.sweep.run_sweep.
"""

from __future__ import annotations

from typing import Any

import click

from sshgrid.cli.base import JOBS_EPILOG, RUN_EPILOG, Verb, pass_session, run_options, session_of
from sshgrid.cli.complete import complete_jobs
from sshgrid.client.session import Session


class _SweepVerb(Verb):
    """Known options are taken anywhere before `:::` or `--`; everything else belongs to the program."""

    ignore_unknown_options = True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = next((at for at, arg in enumerate(args) if arg.startswith(":::")), len(args))
        rest = super().parse_args(ctx, args[:at])
        if not ctx.resilient_parsing:
            ctx.params["args"] += tuple(args[at:])
        return rest

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS] FILE|- [ARGS]... [::: VALUES...]..."]


@click.command(cls=_SweepVerb, epilog=RUN_EPILOG)
@click.argument("file", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@run_options("sweep")
@click.pass_context
def sweep(ctx: click.Context, /, file: str, args: tuple[str, ...], **options: Any) -> int:
    """Run FILE once for each combination of parameters, on all nodes that can run it.

    Options may also follow FILE; after a -- everything belongs to the program.

    ARGS may contain {NAME}, {}, {1}, {#}, {.}, {/}; without any of them the values are appended. The output of a task
    is printed once the task has ended. Exits with the number of failed tasks, 101 for more than 100.
    """
    from sshgrid.client.sweep import run_sweep

    return run_sweep.sweep(session_of(ctx), file, args, options)


@click.command(cls=Verb)
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@pass_session
def progress(session: Session, job: str) -> int:
    """Show the progress of a sweep."""
    from sshgrid.protocol.sweep_messages import ProgressOf, SweepProgress
    from sshgrid.terminal import bar, render

    with session.connect() as connection:
        found = connection.request(ProgressOf(session.one_job(connection, job)), SweepProgress)
    session.show(lambda: render.progress_object(found), lambda: f"sweep {found.job}: {bar.text(found)}\n")
    return 0


@click.command(cls=Verb, epilog=JOBS_EPILOG)
@click.argument("selector", metavar="SEL", shell_complete=complete_jobs)
@click.option("--failed", is_flag=True, help="Run only failed jobs or tasks again.")
@pass_session
def retry(session: Session, selector: str, failed: bool) -> int:
    """Run ended jobs, or tasks of a sweep, again."""
    from sshgrid.cli.query import change
    from sshgrid.protocol.sweep_messages import Retry

    one = "is not a failed job or a sweep with failed tasks" if failed else "has not ended"
    several = "no job has failed" if failed else "no job has ended"
    return change(session, selector, lambda jobs: Retry(jobs, failed), one, several)
