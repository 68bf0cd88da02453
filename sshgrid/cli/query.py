"""`ps`, `info`, `kill`, `rm`, `hold`, `release`, `nodes`, `toolchains`, `version`: one request to the master each.

Results go to stdout as a table, or as one JSON value with --json. A command that changes nothing exits with 1, such as
`kill` of an ended job.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from sshgrid.cli.base import DURATION, JOBS_EPILOG, Verb, pass_session
from sshgrid.cli.complete import complete_jobs, complete_nodes, complete_users
from sshgrid.client.session import Session
from sshgrid.errors import SshgridError, UsageError
from sshgrid.terminal.info import info_text

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.model import JobId
    from sshgrid.protocol.messages import NodeLine, Request, ToolchainLine

WATCH_SECONDS = 1.0  # between two prints of --watch
_CLEAR_SCREEN = "\x1b[H\x1b[2J"


class NothingDone(SshgridError):
    """The request changed nothing: it is already done, or not possible in this state."""

    code = "nothing-done"
    exit_status = 1


# --- ps and nodes ----------------------------------------------------------------------------------------------------


@click.command(cls=Verb)
@click.option("-a", "--all", "everything", is_flag=True, help="Include ended jobs.")
@click.option("--user", metavar="U", default="", shell_complete=complete_users, help="Only jobs of this user.")
@click.option("--state", metavar="S", default="", help="Only jobs in these states: RUNNING,FAILED ...")
@click.option("--since", metavar="D", type=DURATION, help="Only jobs submitted within this time, including ended ones.")
@click.option("--watch", is_flag=True, help="Print again every second.")
@click.option("--no-header", is_flag=True, help="Print no header.")
@pass_session
def ps(
    session: Session, everything: bool, user: str, state: str, since: float | None, watch: bool, no_header: bool
) -> int:
    """List jobs that wait or run, the oldest first."""
    from sshgrid.protocol.messages import Jobs, JobsReply
    from sshgrid.terminal import render

    states = tuple(each.strip().upper() for each in state.split(",") if each.strip())
    unknown = [each for each in states if each not in render.STATE_COLOURS and each != "PENDING"]
    if unknown:
        raise UsageError(f"--state: no such state: {unknown[0]}", "--state PENDING,RUNNING,FAILED")
    query = Jobs("", user, states, since, active_only=not (everything or states or since is not None))

    def show(connection: Connection) -> None:
        jobs = connection.request(query, JobsReply).jobs
        session.show(
            lambda: {"schema": 1, "jobs": [render.job_object(job, full=False) for job in jobs]},
            lambda: render.table(
                render.JOB_HEADER,
                map(render.job_row, jobs),
                session.out,
                right=render.JOB_RIGHT,
                with_header=not no_header,
            ),
        )

    return _print_or_watch(session, show, watch=watch)


@click.command(cls=Verb)
@click.option("--watch", is_flag=True, help="Print again every second.")
@click.option("--sort", type=click.Choice(["cpu", "load", "name"]), help="Sort by load, the busiest first, or by name.")
@pass_session
def nodes(session: Session, watch: bool, sort: str | None) -> int:
    """List nodes, their load and their toolchains."""
    from sshgrid.protocol.messages import Nodes, NodesReply

    def show(connection: Connection) -> None:
        show_nodes(session, sorted_nodes(connection.request(Nodes(), NodesReply).nodes, sort))

    return _print_or_watch(session, show, watch=watch)


def sorted_nodes(lines: tuple[NodeLine, ...], sort: str | None) -> list[NodeLine]:
    """The nodes, sorted; without `sort` in the order of the inventory. Unknown values come last."""
    if sort == "name":
        return sorted(lines, key=lambda line: line.name)
    if sort is None:
        return list(lines)

    def busy(line: NodeLine) -> float:
        value = line.cpu if sort == "cpu" else line.load
        return -1.0 if value is None else value

    return sorted(lines, key=busy, reverse=True)


def show_nodes(session: Session, lines: list[NodeLine]) -> None:
    """Print nodes as a table or JSON."""
    from sshgrid.terminal import render

    session.show(
        lambda: {"schema": 1, "nodes": [render.node_object(line) for line in lines]},
        lambda: render.table(render.NODE_HEADER, map(render.node_row, lines), session.out, right=render.NODE_RIGHT),
    )


def _print_or_watch(session: Session, show: Callable[[Connection], None], *, watch: bool) -> int:
    """Print once, or again every WATCH_SECONDS until the user interrupts."""
    from sshgrid.terminal.render import write_out

    with session.connect() as connection:
        while True:
            if watch and session.out.terminal and not session.json:
                write_out(_CLEAR_SCREEN)
            show(connection)
            if not watch:
                return 0
            time.sleep(WATCH_SECONDS)


# --- info ------------------------------------------------------------------------------------------------------------


@click.command(cls=Verb)
@click.argument("job", metavar="ID", shell_complete=complete_jobs)
@pass_session
def info(session: Session, job: str) -> int:
    """Show the attempts, times and resources of a job, and why it waits: the reason for each node."""
    from sshgrid.errors import NoSuchJob
    from sshgrid.protocol.messages import Info, JobsReply
    from sshgrid.terminal import render

    with session.connect() as connection:
        found = connection.request(Info(session.one_job(connection, job)), JobsReply).jobs
    if not found:
        raise NoSuchJob(f"no such job: {job}", "sshgrid ps -a")
    session.show(lambda: render.job_object(found[0]), lambda: info_text(session.out, found[0]))
    return 0


# --- what changes jobs -----------------------------------------------------------------------------------------------


@click.command(cls=Verb, epilog=JOBS_EPILOG)
@click.argument("selector", metavar="SEL", shell_complete=complete_jobs)
@click.option(
    "--signal",
    "signal_name",
    metavar="S",
    default="TERM",
    help="Signal to send (default: TERM); INT, TERM and KILL cancel the job, other signals do not.",
)
@pass_session
def kill(session: Session, selector: str, signal_name: str) -> int:
    """Cancel waiting or running jobs: send TERM, and KILL after 5 s.

    `--signal INT` sends INT, TERM after 5 s, and KILL after 10 s.
    """
    from sshgrid.protocol.messages import Cancel

    name = parse_signal(signal_name)
    return change(session, selector, lambda jobs: Cancel(jobs, name), "has already ended", "all jobs have ended")


def parse_signal(text: str) -> str:
    """The name of a signal: TERM for TERM, SIGTERM, term and 15. Raises UsageError."""
    if text.isdigit() and int(text) in {int(each) for each in signal.Signals}:
        return signal.Signals(int(text)).name.removeprefix("SIG")
    name = text.upper().removeprefix("SIG")
    if f"SIG{name}" not in signal.Signals.__members__:
        raise UsageError(f"--signal: no such signal: {text}", "--signal KILL")
    return name


@click.command(cls=Verb, epilog=JOBS_EPILOG)
@click.argument("selector", metavar="SEL", shell_complete=complete_jobs)
@pass_session
def rm(session: Session, selector: str) -> int:
    """Remove ended jobs and their output."""
    from sshgrid.protocol.messages import Remove

    return change(session, selector, Remove, "has not ended", "no job has ended")


@click.command(cls=Verb, epilog=JOBS_EPILOG)
@click.argument("selector", metavar="SEL", shell_complete=complete_jobs)
@pass_session
def hold(session: Session, selector: str) -> int:
    """Keep waiting jobs from starting until they are released."""
    from sshgrid.protocol.messages import Hold

    return change(session, selector, Hold, "is not waiting", "no job waits")


@click.command(cls=Verb, epilog=JOBS_EPILOG)
@click.argument("selector", metavar="SEL", shell_complete=complete_jobs)
@pass_session
def release(session: Session, selector: str) -> int:
    """Release held jobs, so that they can start."""
    from sshgrid.protocol.messages import Hold

    return change(session, selector, lambda jobs: Hold(jobs, release=True), "is not held", "no job is held")


def change(
    session: Session, selector: str, request: Callable[[tuple[JobId, ...]], Request], one_unchanged: str, unchanged: str
) -> int:
    """Send a request that changes the selected jobs. NothingDone when it changed none of them.

    The message says about one job `one_unchanged`, and about several `unchanged`.
    """
    from sshgrid.protocol.messages import Done

    with session.connect() as connection:
        selected = session.jobs(connection, selector)
        count = connection.request(request(selected), Done).count if selected else 0
    if not count:
        if len(selected) == 1:
            raise NothingDone(f"job {selected[0]} {one_unchanged}", f"sshgrid info {selected[0]}")
        raise NothingDone(unchanged if selector == "all" else f"{selector}: {unchanged}", "sshgrid ps -a")
    if session.json:
        session.show(lambda: {"schema": 1, "count": count, "jobs": list(selected)}, str)
    return 0


# --- toolchains and version ------------------------------------------------------------------------------------------


@click.command(cls=Verb)
@click.option("--on", metavar="SEL", default="", shell_complete=complete_nodes, help="Only on these nodes.")
@pass_session
def toolchains(session: Session, on: str) -> int:
    """List languages, their files, and the version that each node has."""
    from sshgrid.protocol.messages import Toolchains, ToolchainsReply
    from sshgrid.terminal import render

    with session.connect() as connection:
        lines = connection.request(Toolchains(on), ToolchainsReply).languages
    session.show(
        lambda: {"schema": 1, "toolchains": [_toolchain_object(line) for line in lines]},
        lambda: render.table(("LANGUAGE", "FILES", "NODES"), map(_toolchain_row, lines), session.out),
    )
    return 0


def _toolchain_row(line: ToolchainLine) -> tuple[str, str, str]:
    by_version: dict[str, list[str]] = {}
    for node, toolchain in line.nodes:
        by_version.setdefault(toolchain.version, []).append(node)
    have = [f"{version}: {','.join(names)}".removeprefix(": ") for version, names in by_version.items()]
    have += [f"{each.node}: {each.reason}" for each in line.problems]
    return line.language, " ".join(line.match), "; ".join(have) or "-"


def _toolchain_object(line: ToolchainLine) -> dict[str, object]:
    from sshgrid.terminal.render import why_objects

    found = [{"node": node, "version": each.version, "commands": dict(each.commands)} for node, each in line.nodes]
    return {
        "schema": 1,
        "language": line.language,
        "match": list(line.match),
        "nodes": found,
        "problems": why_objects(line.problems),
    }


@click.command(cls=Verb)
@pass_session
def version(session: Session) -> int:
    """Print the version."""
    import platform

    from sshgrid.protocol.messages import PROTOCOL
    from sshgrid.version import VERSION

    session.show(
        lambda: {"schema": 1, "version": VERSION, "protocol": PROTOCOL, "python": platform.python_version()},
        lambda: f"sshgrid {VERSION}\n",
    )
    return 0
