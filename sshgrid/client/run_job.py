"""Run one job: read its files, submit it, follow it, and return the exit status of the command.

stdout and stderr carry the program's output only. The exit status is the one that the master read from the record of
the run. Does not import click, so that `run` starts quickly; modules that only follow the job are imported while the
master works.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from sshgrid.client.session import INTERRUPTED, PIPE_CLOSED, Session
from sshgrid.client.submit import RunRequest, submit
from sshgrid.errors import SshgridError

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.client.follow import JobFollower
    from sshgrid.client.program import Source
    from sshgrid.model import JobId, Submission
    from sshgrid.protocol.messages import JobLine
    from sshgrid.terminal.screen import Screen


def run(session: Session, file: str, args: Sequence[str], options: Mapping[str, Any]) -> int:
    """Run the command `run` and return its exit status; `options` has a value for each option."""
    request = RunRequest(file, args, options)
    program_files, stdin, data = request.read(session)
    submission = request.submission(program_files, stdin, data)
    sources = [*program_files.sources, *([stdin] if stdin else []), *(data.sources if data else ())]
    if options["dry_run"]:
        return _print_placement(session, submission, sources)
    if options["detach"]:
        return submit_detached(session, submission, sources)
    into = str(options["into"]) or "."
    return _submit_and_follow(session, submission, sources, show_node=bool(options["show_node"]), into=into)


def submit_detached(session: Session, submission: Submission, sources: Sequence[Source]) -> int:
    """Submit the job, print its ID and return."""
    connection, job = submit(session, submission, sources)
    connection.close()
    session.show(lambda: {"schema": 1, "id": job}, lambda: f"{job}\n")
    return 0


def _submit_and_follow(
    session: Session, submission: Submission, sources: Sequence[Source], *, show_node: bool, into: str
) -> int:
    terminal_input = None
    if submission.interactive:
        from sshgrid.client.interactive import TerminalInput

        terminal_input = TerminalInput(terminal=submission.terminal)
    with postponed_interrupts() as interrupts:
        connection, job = submit(session, submission, sources)
    from sshgrid.client.follow import JobFollower, Keyboard

    keyboard = terminal_input or Keyboard()
    screen = make_screen(session, show_node=show_node, quiet=submission.terminal)
    screen.accepted(job)
    follower = JobFollower(
        connection, job, screen, session.connect, on_disconnect=submission.on_disconnect, keyboard=keyboard
    )
    follower.interrupts = len(interrupts)
    keyboard.leave = follower.leave
    with keyboard.raw():
        return until_ended(session, follower, screen, job, into)


@contextmanager
def postponed_interrupts() -> Iterator[list[int]]:
    """While a job is being submitted, keep a first Ctrl-C for the job; a second one interrupts the command."""
    seen: list[int] = []

    def on_interrupt(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


def make_screen(session: Session, *, show_node: bool = False, quiet: bool = False) -> Screen:
    """Return the screen for a job: JSON Lines with --json, else the output of the program."""
    from sshgrid.terminal.screen import JsonScreen, PlainScreen

    if session.json:
        return JsonScreen()
    return PlainScreen(
        session.warn, session.err, notes=session.shows_notes() and not quiet, show_node=show_node, quiet=session.quiet
    )


def until_ended(session: Session, follower: JobFollower, screen: Screen, job: JobId, into: str = "") -> int:
    """Follow a job until it ends or the user detaches. Return the exit status of the command.

    `into` is the folder for its fetched files; "" leaves them with the master.
    """
    from sshgrid.client.follow import Detached, exit_status

    failed = 0
    try:
        line = follower.until_ended()
        if line.fetch:
            failed = _fetch(session, screen, line, into)
        screen.ended(line, interrupted=follower.interrupts > 0)
    except Detached:
        session.warn(f"job {job} continues: sshgrid attach {job}")
        return INTERRUPTED
    except BrokenPipeError:
        return PIPE_CLOSED
    return INTERRUPTED if follower.interrupts else exit_status(line) or failed


def _fetch(session: Session, screen: Screen, line: JobLine, into: str) -> int:
    """Fetch the files of an ended job. Return the exit status: not 0 when some are missing."""
    from sshgrid.client.fetch import unpack
    from sshgrid.client.follow import ReconnectingReader
    from sshgrid.client.session import report_error
    from sshgrid.protocol.messages import Notice

    found = line.fetched
    for warning in found.warnings if found else ():
        screen.notice(Notice(warning))
    if found is None or not found.files:
        return 0
    if not into:
        session.note(f"job {line.id} has {found.files} files to fetch: sshgrid attach {line.id} --into DIR")
        return 0
    try:
        with ReconnectingReader(session.connect(), session.connect) as reader:
            unpack(line, reader.kept(line.id, line.attempt, "files"), into, screen)
    except SshgridError as error:
        return report_error(session, error)
    return 0


def is_sweep(connection: Connection, job: JobId) -> bool:
    """Return whether the job is a sweep. Raises NoSuchJob."""
    from sshgrid.protocol.messages import Info, JobsReply

    return any(line.sweep for line in connection.request(Info(job), JobsReply).jobs)


def _print_placement(session: Session, submission: Submission, sources: Sequence[Source]) -> int:
    """Print which node would get the job, for --dry-run. Return 125 when no node can run it, else 0."""
    from sshgrid.client.program import upload
    from sshgrid.protocol.messages import Explain, ExplainReply
    from sshgrid.terminal import render

    with session.connect() as connection:
        upload(connection, sources)
        reply = connection.request(Explain(submission), ExplainReply)
    scores, reasons = dict(reply.scores), {each.node: each.reason for each in reply.why}
    names = [*scores, *(name for name in reasons if name not in scores)]
    rows = [
        (
            name,
            "chosen" if name == reply.chosen else "",
            f"{scores[name]:.2f}" if name in scores else "-",
            reasons.get(name, ""),
        )
        for name in names
    ]
    session.show(
        lambda: {
            "schema": 1,
            "chosen": reply.chosen or None,
            "scores": scores,
            "why": render.why_objects(reply.why),
        },
        lambda: render.table(("NODE", "CHOICE", "SCORE", "REASON"), rows, session.out, right=frozenset({"SCORE"})),
    )
    return 0 if reply.chosen else 125
