"""The settings of one command: the global options, what follows from them, and how to print messages and errors.

Does not import click, as `sshgrid run` is handled without it (sshgrid.cli.fast_run). Nothing here connects, reads a
file or imports a large module before a command needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.errors import SshgridError
    from sshgrid.model import JobId
    from sshgrid.paths import Places
    from sshgrid.terminal.render import TextStyle

PIPE_CLOSED = 141  # 128 + SIGPIPE, as a shell shows it for other tools
INTERRUPTED = 130
FAILED = 125


class GatewaySession(Protocol):
    """The session of a process behind the SSH gateway: its way to the master, and the commands it allows."""

    verbs: frozenset[str]

    def connect(self) -> Connection: ...


class Session:
    """The settings of one command, from the global options and the environment."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self.environ = os.environ if environ is None else environ
        self.inventory: str | None = None
        self.json = False
        self.color = "auto"
        self.quiet = False
        self.verbose = 0
        self.no_input = False
        self.in_shell = False
        self.muted = False  # print no messages: another part uses the screen
        self.accepted: list[JobId] = []  # submitted jobs; one list for all lines of a shell
        self.master = self.environ.get("SSHGRID_MASTER", "")  # "" = the one of the inventory
        self.gateway: GatewaySession | None = None  # set behind the SSH gateway

    def child(self) -> Session:
        """A copy for one line of the shell, which starts with the settings of the shell."""
        other = Session(self.environ)
        other.__dict__.update(self.__dict__)
        other.in_shell = True
        return other

    # --- the master

    def places(self, *, must_exist: bool = True, state_dir: str | None = None) -> Places:
        """The paths of the inventory and its state. Raises InventoryError, UsageError."""
        from sshgrid import paths
        from sshgrid.errors import UsageError

        if self.gateway is not None or self.master:
            raise UsageError("this command changes files on the machine of the master: run it there")
        home = self.environ.get("HOME") or os.path.expanduser("~")
        found = paths.places(self.inventory, self.environ, _cwd(), home, state_flag=state_dir, must_exist=must_exist)
        for note in found.notes:
            self.warn(note)
        return found

    def connect(self, *, start: bool = True) -> Connection:
        """Connect to the master, which is started if it is missing and `start`. Raises MasterGone."""
        from sshgrid.client.start import connect

        if self.gateway is not None:
            return self.gateway.connect()
        if self.master:
            from sshgrid.client import remote

            return remote.connect(self.master, self.environ, prompts=not self.no_input)
        return connect(self.places(), start=start, warn=self.warn)

    def connect_running(self) -> Connection:
        """Connect to the running master; start none, and replace none of another version. Raises MasterGone.

        For live views, which must not change the master.
        """
        from sshgrid.client.connection import to_error
        from sshgrid.client.start import find_any_version
        from sshgrid.errors import MasterGone
        from sshgrid.protocol.messages import Failure

        if self.gateway is not None or self.master:
            return self.connect()
        connection = find_any_version(self.places())
        if connection is None:
            raise MasterGone("no master is running for this inventory", "sshgrid master start")
        if isinstance(connection.welcome, Failure):
            connection.close()
            raise to_error(connection.welcome)
        return connection

    # --- printing

    @property
    def out(self) -> TextStyle:
        """The style of text on stdout."""
        return self._style(1)

    @property
    def err(self) -> TextStyle:
        """The style of text on stderr."""
        return self._style(2)

    def _style(self, descriptor: int) -> TextStyle:
        from sshgrid.terminal.render import TextStyle

        # Behind the SSH gateway the user may have a terminal that this process does not see.
        return TextStyle.detect(descriptor, self.color, self.environ, escapes=self.gateway is not None)

    def shows_notes(self) -> bool:
        """Whether to print notes (progress, hints) as well as errors."""
        return self.verbose > 0 or (self.err.terminal and not self.quiet and not self.json)

    def note(self, text: str) -> None:
        """Print a note to stderr; only on a terminal or with -v."""
        if self.shows_notes():
            self.warn(text)

    def warn(self, text: str) -> None:
        """Print a message to stderr."""
        from sshgrid.terminal.render import write_err

        if self.muted:
            return
        write_err(self.err.safe(text) + "\n")

    def show(self, value: Callable[[], object], text: Callable[[], str]) -> None:
        """Print a result to stdout: `value` as one line of JSON with --json, else `text`."""
        from sshgrid.terminal.render import to_json, write_out

        write_or_leave(write_out, to_json(value()) + "\n" if self.json else text())

    def confirm(self, question: str, otherwise: str) -> bool:
        """Prompt on the terminal. UsageError with the hint `otherwise` when no prompt is possible."""
        from sshgrid.errors import UsageError

        if self.no_input or sys.stdin is None or not sys.stdin.isatty() or not self.err.terminal:
            raise UsageError(f"{question} There is no terminal to answer on.", otherwise)
        import click

        return click.confirm(self.err.safe(question), err=True)

    # --- jobs

    def jobs(self, connection: Connection, selector: str) -> tuple[JobId, ...]:
        """The IDs of the selected jobs; a plain number is not looked up."""
        from sshgrid.model import JobId
        from sshgrid.protocol.messages import Jobs, JobsReply

        if selector.isascii() and selector.isdigit():
            return (JobId(int(selector)),)
        return tuple(job.id for job in connection.request(Jobs(selector), JobsReply).jobs)

    def one_job(self, connection: Connection, selector: str) -> JobId:
        """The ID of the one selected job. Raises NoSuchJob, UsageError."""
        from sshgrid.errors import NoSuchJob, UsageError

        found = self.jobs(connection, selector)
        if len(found) > 1:
            raise UsageError(f"{selector} selects {len(found)} jobs; expected one", "sshgrid ps -a")
        if not found:
            raise NoSuchJob(f"no such job: {selector}", "sshgrid ps -a")
        return found[0]


def write_or_leave(write: Callable[[str], None], text: str) -> None:
    """Write to stdout; exit silently with PIPE_CLOSED when its reader has closed it, as other tools do."""
    try:
        write(text)
    except BrokenPipeError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)  # so that the final flush of the interpreter does not fail again
        raise SystemExit(PIPE_CLOSED) from None


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # the current folder was removed
        return "/"


def reporting_errors(session: Session, work: Callable[[], int]) -> int:
    """Call `work` and return its exit status; errors are printed, not raised."""
    from sshgrid.errors import SshgridError

    try:
        return work()
    except SshgridError as error:
        return report_error(session, error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else FAILED


def report_error(session: Session, error: SshgridError) -> int:
    """Print an error as text or JSON; returns the exit status."""
    from sshgrid.terminal import render

    if session.json:
        write_or_leave(render.write_out, render.to_json(_encodable(render.error_object(error))) + "\n")
    else:
        render.write_err(render.error_text(error, session.err))
    if session.verbose > 1 and session.gateway is None:
        import traceback

        render.write_err("".join(traceback.format_exception(error)))
    return error.exit_status


def _encodable(value: object) -> object:
    """A value that can be encoded as UTF-8: file names in messages may contain other bytes."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        case dict():
            return {key: _encodable(inner) for key, inner in value.items()}
    return value
