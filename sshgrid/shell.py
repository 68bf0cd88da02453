"""The shell: the same commands without the word `sshgrid`, with completion, history and a live line at the bottom.

Every line is run by `invoke` of the command line; `edit`, `watch`, `unwatch` and a final `&` exist only here. Without a
terminal, lines are read from standard input without a prompt. Ctrl-C cancels the job that is followed, Ctrl-D leaves.
Jobs continue when the shell ends.
"""
# os.path, not pathlib (see per-file-ignores), as in all of the client.

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from sshgrid.client.connection import Connection
from sshgrid.client.poll import MasterPoller, request_all
from sshgrid.client.session import Session, report_error, reporting_errors
from sshgrid.errors import SshgridError, UsageError
from sshgrid.prompt.background import Background
from sshgrid.protocol.messages import Jobs, JobsReply, Nodes, NodesReply, Status, StatusReply

if TYPE_CHECKING:
    import click
    from prompt_toolkit import PromptSession

REFRESH_SECONDS = 1.0
MAX_CHECKED_JOBS = 1000  # newest jobs of this shell that are checked on exit
_EXIT_WORDS = frozenset({"exit", "quit"})
_DOWN_STATES = frozenset({"DOWN", "UNKNOWN"})
SHELL_COMMANDS = {
    "run ... &": "Run a program in the background; its output appears above the prompt.",
    "watch ID": "Show the output of a job above the prompt.",
    "unwatch [ID]": "Stop showing the output; the job continues.",
    "edit FILE": "Edit a small program; `run` without a file runs it.",
    "exit": "Leave the shell; jobs continue.",
}


class CommandLine(Protocol):
    """The command line: its commands, and a function that runs one of them."""

    @property
    def group(self) -> click.Group: ...
    def invoke(self, argv: Sequence[str], session: Session) -> int: ...


def repl(session: Session, commands: CommandLine) -> int:
    """Run lines until Ctrl-D, `exit` or the end of the input; returns the exit status of the last command."""
    if session.in_shell:
        raise UsageError("this is already the shell")
    shell = Shell(session, commands)
    if sys.stdin is None or not sys.stdin.isatty() or not session.err.terminal:
        return shell.read(sys.stdin or ())
    return shell.prompt()


class Shell:
    """The state of one shell between its lines."""

    def __init__(self, session: Session, commands: CommandLine) -> None:
        self._session = session
        self._commands = commands
        self._muted = session.child()
        self._muted.muted = True
        self._background = Background(self._muted.connect)
        self._buffer = ""  # the file that was last edited
        self._confirmed = False  # the last line asked to leave while jobs run
        self._has_terminal = False
        self._commands_here: dict[str, Callable[[Sequence[str]], int]] = {
            "help": self._help,
            "watch": self._watch,
            "unwatch": self._unwatch,
            "edit": self._edit,
        }

    def read(self, lines: Iterable[str]) -> int:
        """Run the lines of a file or pipe; returns the last exit status."""
        status = 0
        for line in lines:
            found = self.run_line(line)
            if found is None:
                break
            status = found
        return status

    def prompt(self) -> int:
        """Run the lines that a user types; returns the last exit status."""
        self._has_terminal = True
        with MasterPoller(self._muted.connect_running, fetch_counts, REFRESH_SECONDS) as counts:
            prompt = _prompt_session(self._session, self._commands.group, lambda: counts.problem or counts.newest or "")
            status = 0
            while True:
                try:
                    with self._background.shown_above():
                        line = prompt.prompt(f"[{status}] sshgrid> " if status else "sshgrid> ")
                except KeyboardInterrupt:
                    continue  # Ctrl-C discards the line, as in any shell
                except EOFError:
                    line = "exit"
                found = self.run_line(line)
                if found is not None:
                    status = found
                elif self._may_leave():
                    return status

    def run_line(self, line: str) -> int | None:
        """Run one line and return its exit status; None for `exit`."""
        try:
            argv = shlex.split(line, comments=True)
        except ValueError as error:
            return report_error(self._session, UsageError(f"unbalanced quotes: {error}"))
        if argv[:1] == ["sshgrid"]:
            argv = argv[1:]
        if not argv:
            return 0
        if argv[0] in _EXIT_WORDS:
            return None
        self._confirmed = False
        return reporting_errors(self._session, lambda: self._run(argv))

    def _run(self, argv: list[str]) -> int:
        if (command := self._commands_here.get(argv[0])) is not None:
            return command(argv[1:])
        if argv[0] == "run":
            return self._run_program(argv)
        if argv[-1] == "&":
            raise UsageError(f"{argv[0]} cannot run in the background; only run can", "run FILE &")
        return self._invoke(argv)

    def _invoke(self, argv: Sequence[str]) -> int:
        return self._commands.invoke(argv, self._session.child())

    def _run_program(self, argv: list[str]) -> int:
        in_background = argv[-1] == "&"
        if in_background:
            argv = ["run", "-d", *argv[1:-1]]
        if self._buffer and _lacks_file(self._commands.group, argv[1:]):
            argv.append(self._buffer)
        before = len(self._session.accepted)
        status = self._invoke(argv)
        if in_background:
            for job in self._session.accepted[before:]:
                self._background.watch(job)
        return status

    # --- commands of the shell only

    def _help(self, args: Sequence[str]) -> int:
        from sshgrid.terminal import render

        if args:
            return self._invoke([*args, "--help"])
        status = self._invoke(["--help"])
        rows = ((f"  {command}", text) for command, text in SHELL_COMMANDS.items())
        render.write_out("\nOnly in the shell:\n" + render.table(("", ""), rows, self._session.out, with_header=False))
        return status

    def _watch(self, args: Sequence[str]) -> int:
        if len(args) != 1:
            raise UsageError("watch takes one job", "watch last")
        if not self._has_terminal:
            raise UsageError("watch needs a terminal", f"attach {args[0]}")
        with self._session.connect() as connection:
            job = self._session.one_job(connection, args[0])
        self._background.watch(job)
        return 0

    def _unwatch(self, args: Sequence[str]) -> int:
        jobs = [job for job in self._background.jobs if not args or str(job) in args]
        if not jobs:
            raise UsageError("no such job is watched", "watch ID")
        for job in jobs:
            self._background.unwatch(job)
        return 0

    def _edit(self, args: Sequence[str]) -> int:
        from sshgrid.prompt.editor import edit

        path = args[0] if args else self._buffer
        if len(args) > 1 or not path:
            raise UsageError("edit takes one file", "edit hello.py")
        if not self._has_terminal:
            raise UsageError("edit needs a terminal")
        if not edit(path, self._session.warn):
            self._session.warn(f"{path}: not changed")
            return 1
        self._buffer = path
        return 0

    # --- leaving

    def _may_leave(self) -> bool:
        running = [] if self._confirmed else self._own_running()
        if not running:
            return True
        self._confirmed = True
        self._session.warn(f"still running: {' '.join(running)}; jobs continue without this shell. Repeat to leave.")
        return False

    def _own_running(self) -> list[str]:
        """The jobs of this shell that have not ended; none when the master does not answer."""
        own = ",".join(map(str, self._session.accepted[-MAX_CHECKED_JOBS:]))
        if not own:
            return []
        try:
            with self._muted.connect_running() as connection:
                found: JobsReply = request_all(connection, [Jobs(own, active_only=True)], [JobsReply])[0]
        except (OSError, SshgridError):
            return []
        return [str(job.id) for job in found.jobs]


def _lacks_file(group: click.Group, argv: Sequence[str]) -> bool:
    """Whether these arguments of `run` do not contain a FILE."""
    import click

    run = group.get_command(click.Context(group), "run")
    assert run is not None
    try:
        with run.make_context("run", list(argv), resilient_parsing=True) as context:
            return not context.params.get("file")
    except click.ClickException:
        return False


# --- the prompt -------------------------------------------------------------------------------------------------------


def _prompt_session(session: Session, group: click.Group, toolbar: Callable[[], str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from sshgrid.prompt.completion import command_completer

    local = session.gateway is None and not session.master
    return PromptSession(
        history=FileHistory(_history_file(session)) if local else InMemoryHistory(),
        auto_suggest=AutoSuggestFromHistory(),
        completer=command_completer(group, session),
        complete_while_typing=False,
        complete_in_thread=True,  # the master may be slow to list jobs
        bottom_toolbar=toolbar,
        refresh_interval=REFRESH_SECONDS,
    )


def _history_file(session: Session) -> str:
    """The path of the history, a private file: command lines may contain secrets."""
    places = session.places(must_exist=False)
    os.makedirs(places.config_dir, mode=0o700, exist_ok=True)
    path = os.path.join(places.config_dir, "history")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    return path


# --- the live line ----------------------------------------------------------------------------------------------------


def fetch_counts(connection: Connection) -> str:
    """The text of the bottom line."""
    status, nodes = request_all(connection, [Status(), Nodes()], [StatusReply, NodesReply])
    return counts_text(status, nodes)


def counts_text(status: StatusReply, nodes: NodesReply) -> str:
    """`jobs: 3 running, 12 pending   nodes: 4 of 5 up`"""
    running = status.jobs_by_state.get("RUNNING", 0) + status.jobs_by_state.get("DISCONNECTED", 0)
    up = sum(line.state not in _DOWN_STATES for line in nodes.nodes)
    pending = status.jobs_by_state.get("PENDING", 0)
    problem = "   the inventory has errors" if status.inventory_error else ""
    return f"jobs: {running} running, {pending} pending   nodes: {up} of {len(nodes.nodes)} up{problem}"
