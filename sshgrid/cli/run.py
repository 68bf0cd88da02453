"""`run`, `attach`, `wait`: follow a job and exit with its status. `logs`: print stored output and exit with 0.

stdout and stderr carry the program's output. The exit status is the one that the master read from the record of
the run.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from sshgrid.cli.base import DURATION, JOBS_EPILOG, RUN_EPILOG, Verb, pass_session, run_options, session_of
from sshgrid.cli.complete import complete_jobs
from sshgrid.client import run_job
from sshgrid.client.session import PIPE_CLOSED, Session
from sshgrid.errors import SshgridError

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.model import JobId
    from sshgrid.protocol.messages import JobLine

TIMED_OUT = 124


class _RunVerb(Verb):
    """Options before FILE belong to sshgrid, everything after it to the program, including `--help`."""

    allow_interspersed_args = False

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        return ["[OPTIONS] FILE|- [ARGS]..."]


@click.command(cls=_RunVerb, epilog=RUN_EPILOG)
@click.argument("file", type=click.Path())
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@run_options("run")
@click.pass_context
def run(ctx: click.Context, /, file: str, args: tuple[str, ...], **options: Any) -> int:
    """Run FILE (a source file, an executable, a folder with a Makefile, or - for standard input) with ARGS.

    Prints the output of the program and exits with its exit code.
    """
    return run_job.run(session_of(ctx), file, args, options)


# --- attach, logs, wait ----------------------------------------------------------------------------------------------


@click.command(cls=Verb)
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@click.option("--into", metavar="DIR", default="", help="Folder for the files that `run --fetch` requested.")
@pass_session
def attach(session: Session, job: str, into: str) -> int:
    """Print the output of a job from its start until the job ends. Ctrl-C leaves the job running."""
    from sshgrid.client.follow import JobFollower, read_from_master

    def look_up(connection: Connection) -> tuple[JobId, bool]:
        found = session.one_job(connection, job)
        return found, run_job.is_sweep(connection, found)

    connection, (found, is_sweep) = read_from_master(session.connect, look_up)
    if is_sweep:
        from sshgrid.client.sweep import run_sweep

        return run_sweep.attach(session, connection, found)
    screen = run_job.make_screen(session)
    follower = JobFollower(connection, found, screen, session.connect, interrupt_cancels=False)
    return run_job.until_ended(session, follower, screen, found, into)


@click.command(cls=Verb)
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@click.option("-f", "--follow", is_flag=True, help="Continue until the job has ended.")
@click.option("--tail", metavar="N", type=click.IntRange(0), help="Print only the last N lines.")
@click.option("--stdout", "only", flag_value="stdout", help="Print only stdout.")
@click.option("--stderr", "only", flag_value="stderr", help="Print only stderr and compiler messages.")
@click.option(
    "--attempt",
    metavar="N",
    type=click.IntRange(1),
    default=None,
    help="Print the output of attempt N (default: the newest).",
)
@pass_session
def logs(session: Session, job: str, follow: bool, tail: int | None, only: str | None, attempt: int | None) -> int:
    """Print the stored output of a job, stdout to stdout and stderr to stderr."""
    from sshgrid.client.follow import ReconnectingReader
    from sshgrid.protocol.messages import Logs

    streams = {"stdout": ("stdout",), "stderr": ("compile", "stderr")}.get(only or "", ("compile", "stdout", "stderr"))
    with ReconnectingReader(session.connect(), session.connect) as reader:
        found = session.one_job(reader.connection, job)
        request = Logs(found, attempt or 0, follow, tail, streams)
        try:
            line = reader.logs(request, run_job.make_screen(session))
            if session.json:
                run_job.make_screen(session).ended(line, interrupted=False)
        except BrokenPipeError:
            return PIPE_CLOSED
    return 0


@click.command(cls=Verb, epilog=JOBS_EPILOG)
@click.argument("selector", metavar="SEL", shell_complete=complete_jobs)
@click.option("--timeout", metavar="D", type=DURATION, help="Stop waiting after this time (exit status 124).")
@pass_session
def wait(session: Session, selector: str, timeout: float | None) -> int:
    """Wait until jobs have ended.

    Exits with the status of a single job; for several jobs with 0 if all of theirs are 0, else with 1.
    """
    from sshgrid.client.follow import ReconnectingReader, exit_status
    from sshgrid.notation.quantities import format_duration
    from sshgrid.terminal import render

    deadline = None if timeout is None else time.monotonic() + timeout
    with ReconnectingReader(session.connect(), session.connect) as reader:
        jobs = session.jobs(reader.connection, selector)
        ended: list[JobLine] = []
        for job in jobs:
            line = reader.ended(job, deadline)
            if line is None:
                assert timeout is not None
                raise _StillRunning(f"job {job} has not ended after {format_duration(timeout)}", f"sshgrid info {job}")
            ended.append(line)
    if session.json:
        session.show(lambda: {"schema": 1, "jobs": [render.job_object(line) for line in ended]}, str)
    if len(ended) == 1:
        return exit_status(ended[0])
    return int(any(exit_status(line) for line in ended))


class _StillRunning(SshgridError):
    code = "timeout"
    exit_status = TIMED_OUT
