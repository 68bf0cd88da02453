"""`sweep`, `progress`, `retry`: one program over many parameters, and what may be asked about it afterwards.

Thin: what `sweep` does is in sshgrid.client.sweep.run_sweep. Refuses nothing itself.
"""

from __future__ import annotations

from typing import Any

import click

from sshgrid.cli.base import (
    DURATION,
    SIZE,
    Verb,
    complete_jobs,
    complete_languages,
    complete_nodes,
    pass_session,
    session_of,
)
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
@click.option(
    "-p", "parameter", metavar="NAME=SPEC", multiple=True, help="Values of {NAME}: 1..100[:step], a,b,c or @FILE."
)
@click.option("--zip", is_flag=True, help="All parameters advance together, instead of each with each.")
@click.option(
    "--each-line",
    metavar="F",
    type=click.Path(),
    multiple=True,
    help="A value for each line of this file; - is standard input.",
)
@click.option(
    "--csv",
    metavar="F",
    type=click.Path(),
    multiple=True,
    help="A task for each row; the first line names the parameters.",
)
@click.option("-j", "--jobs", metavar="N", type=click.IntRange(1), help="So many tasks at the same time at most.")
@click.option("--bar", is_flag=True, help="Show a bar on stderr, also without a terminal.")
@click.option("--eta", is_flag=True, help="Show how long it may still take, also without a terminal.")
@click.option(
    "--joblog", metavar="F", type=click.Path(), default="", help="Write a line for each task, as GNU parallel does."
)
@click.option(
    "--results", metavar="DIR", type=click.Path(), default="", help="A folder for each task's output, and results.csv."
)
@click.option("--resume", is_flag=True, help="Leave out what --joblog or --results has recorded.")
@click.option("--resume-failed", is_flag=True, help="The same, but run again what has failed.")
@click.option("--retries", metavar="N", type=click.IntRange(0, 100), help="Further attempts after host failure.")
@click.option("--timeout", metavar="D", type=DURATION, help="End a task after this time.")
@click.option("--max-fails", metavar="N", type=click.IntRange(0), help="Bear so many failures; one more ends all.")
@click.option("--backup", is_flag=True, help="Run the last tasks twice where a node is slow; the first to end counts.")
@click.option("--halt", metavar="WHEN", default="", help="now or soon,fail=N or N%; also success= and done=.")
@click.option("--tag", is_flag=True, help="Begin each line of output with the task's values and a tab.")
@click.option("-k", "--keep-order", is_flag=True, help="Print by number instead of as the tasks end.")
@click.option("--dry-run", is_flag=True, help="Print each task's command line, and run nothing.")
@click.option("-d", "--detach", is_flag=True, help="Print the sweep's id and leave.")
@click.option("--on", metavar="SEL", default="", shell_complete=complete_nodes, help="Only on these nodes.")
@click.option(
    "--lang",
    metavar="NAME[>=V]",
    default="",
    shell_complete=complete_languages,
    help="The language, when the name does not say it.",
)
@click.option("--main", metavar="FILE", default="", help="Of a folder: the file that the program begins with.")
@click.option("--with", metavar="PATH", multiple=True, help="A file or folder that each finds in its current folder.")
@click.option("--fetch", metavar="GLOB", multiple=True, help="Bring these files of each task back.")
@click.option(
    "--into",
    metavar="DIR",
    type=click.Path(),
    default="",
    help="Where they go, in a folder for each task; or --results.",
)
@click.option("--env", metavar="K=V", multiple=True, help="Set in each task's environment; K alone: as it is here.")
@click.option(
    "--stdin",
    metavar="FILE|-|none",
    default="",
    help="Each task's standard input, its own one where the name has {NAME}; otherwise none.",
)
@click.option("--memory", metavar="SIZE", type=SIZE, help="What a task may use, as 512M or 4G.")
@click.option("--slots", metavar="N", type=click.IntRange(1), default=1, help="Slots that a task takes: its threads.")
@click.option("--gpu", metavar="N", type=click.IntRange(0), default=0, help="GPUs that a task has for itself.")
@click.option("--flags", metavar="TEXT", default="", help="For the compiler, as one word: '-O3 -Wall'.")
@click.option("--verify-build", is_flag=True, help="Take another node's build only after a hello of that node has run.")
@click.option("--priority", metavar="N", type=click.IntRange(-1000, 1000), default=0, help="Higher goes first.")
@click.option("--name", metavar="S", default="", help="What `ps` calls it.")
@click.option(
    "--on-host-loss",
    type=click.Choice(["relaunch", "wait", "fail", "fence"]),
    default="relaunch",
    help="When a task's host falls silent: start elsewhere, wait for it, give up, or never let two runs live.",
)
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
        found = connection.ask(ProgressOf(session.one_job(connection, job)), SweepProgress)
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
