"""The prompt: the same commands without the word `sshgrid`, with completion, history and a live line at the bottom.

Every line goes through the command line's own `invoke`; the few words that only make sense here (`edit`, `watch`,
`unwatch`, a last `&`) come on top. Without a terminal the lines are read from standard input, without a prompt. Ctrl-C
ends what is followed, Ctrl-D leaves. Refuses to end a job because its shell ends.
"""
# os.path, not pathlib (see per-file-ignores), as in all of the client.

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from sshgrid.client.connection import Connection
from sshgrid.client.poll import Poller, request_all
from sshgrid.client.session import Session, report_error, reporting_errors
from sshgrid.errors import SshgridError, UsageError
from sshgrid.prompt.background import Background
from sshgrid.protocol.messages import Jobs, JobsReply, Nodes, NodesReply, Status, StatusReply

if TYPE_CHECKING:
    import click
    from prompt_toolkit import PromptSession

REFRESH_SECONDS = 1.0
MOST_ASKED_FOR = 1000  # jobs of ours, when we leave
_LEAVE = frozenset({"exit", "quit"})
_ABSENT = frozenset({"DOWN", "UNKNOWN"})
HERE = {
    "run ... &": "Run it in the background: its output appears above the prompt.",
    "watch ID": "Show the output of a job above the prompt.",
    "unwatch [ID]": "Show it no more; the job goes on.",
    "edit FILE": "Write a small program; `run` without a file runs it.",
    "exit": "Leave; jobs go on.",
}


class CommandLine(Protocol):
    """The command line as the shell needs it: its commands, and one call of one of them."""

    @property
    def group(self) -> click.Group: ...
    def invoke(self, words: Sequence[str], session: Session) -> int: ...


def repl(session: Session, commands: CommandLine) -> int:
    """Until Ctrl-D, `exit` or the end of the input; the exit status of the last command."""
    if session.in_shell:
        raise UsageError("this is the shell already")
    shell = Shell(session, commands)
    if sys.stdin is None or not sys.stdin.isatty() or not session.err.terminal:
        return shell.read(sys.stdin or ())
    return shell.prompt()


class Shell:
    """One shell: what it remembers from line to line."""

    def __init__(self, session: Session, commands: CommandLine) -> None:
        self._session = session
        self._commands = commands
        self._muted = session.child()
        self._muted.muted = True
        self._background = Background(self._muted.connect)
        self._buffer = ""  # the file that was edited last
        self._asked = False  # whether to leave although jobs run
        self._has_terminal = False
        self._words: dict[str, Callable[[Sequence[str]], int]] = {
            "help": self._help,
            "watch": self._watch,
            "unwatch": self._unwatch,
            "edit": self._edit,
        }

    def read(self, lines: Iterable[str]) -> int:
        """Lines of a file or pipe."""
        status = 0
        for line in lines:
            found = self.run_line(line)
            if found is None:
                break
            status = found
        return status

    def prompt(self) -> int:
        """Lines that a person types."""
        self._has_terminal = True
        with Poller(self._muted.connect_running, fetch_counts, REFRESH_SECONDS) as counts:
            prompt = _prompt_session(self._session, self._commands.group, lambda: counts.problem or counts.newest or "")
            status = 0
            while True:
                try:
                    with self._background.shown_above():
                        line = prompt.prompt(f"[{status}] sshgrid> " if status else "sshgrid> ")
                except KeyboardInterrupt:
                    continue  # the line is gone, as in any shell
                except EOFError:
                    line = "exit"
                found = self.run_line(line)
                if found is not None:
                    status = found
                elif self._may_leave():
                    return status

    def run_line(self, line: str) -> int | None:
        """The exit status of one line; None when it asks to leave."""
        try:
            words = shlex.split(line, comments=True)
        except ValueError as error:
            return report_error(self._session, UsageError(f"the quotes do not match: {error}"))
        if words[:1] == ["sshgrid"]:
            words = words[1:]
        if not words:
            return 0
        if words[0] in _LEAVE:
            return None
        self._asked = False
        return reporting_errors(self._session, lambda: self._run(words))

    def _run(self, words: list[str]) -> int:
        if (word := self._words.get(words[0])) is not None:
            return word(words[1:])
        if words[0] == "run":
            return self._run_program(words)
        if words[-1] == "&":
            raise UsageError(f"{words[0]} has no background; only run has", "run FILE &")
        return self._invoke(words)

    def _invoke(self, words: Sequence[str]) -> int:
        return self._commands.invoke(words, self._session.child())

    def _run_program(self, words: list[str]) -> int:
        in_background = words[-1] == "&"
        if in_background:
            words = ["run", "-d", *words[1:-1]]
        if self._buffer and _names_no_file(self._commands.group, words[1:]):
            words.append(self._buffer)
        before = len(self._session.accepted)
        status = self._invoke(words)
        if in_background:
            for job in self._session.accepted[before:]:
                self._background.watch(job)
        return status

    # --- words of the shell alone

    def _help(self, words: Sequence[str]) -> int:
        from sshgrid.terminal import render

        if words:
            return self._invoke([*words, "--help"])
        status = self._invoke(["--help"])
        rows = ((f"  {word}", about) for word, about in HERE.items())
        render.write_out("\nOnly in the shell:\n" + render.table(("", ""), rows, self._session.out, with_header=False))
        return status

    def _watch(self, words: Sequence[str]) -> int:
        if len(words) != 1:
            raise UsageError("watch takes one job", "watch last")
        if not self._has_terminal:
            raise UsageError("watch needs a terminal", f"attach {words[0]}")
        with self._session.connect() as connection:
            job = self._session.one_job(connection, words[0])
        self._background.watch(job)
        return 0

    def _unwatch(self, words: Sequence[str]) -> int:
        wanted = [job for job in self._background.jobs if not words or str(job) in words]
        if not wanted:
            raise UsageError("no such job is watched", "watch ID")
        for job in wanted:
            self._background.unwatch(job)
        return 0

    def _edit(self, words: Sequence[str]) -> int:
        from sshgrid.prompt.editor import edit

        path = words[0] if words else self._buffer
        if len(words) > 1 or not path:
            raise UsageError("edit takes one file", "edit hello.py")
        if not self._has_terminal:
            raise UsageError("edit needs a terminal")
        if not edit(path, self._session.warn):
            self._session.warn(f"{path} is as it was")
            return 1
        self._buffer = path
        return 0

    # --- leaving

    def _may_leave(self) -> bool:
        running = [] if self._asked else self._own_running()
        if not running:
            return True
        self._asked = True
        self._session.warn(f"still running: {' '.join(running)}; they go on without this shell. Leave again to leave.")
        return False

    def _own_running(self) -> list[str]:
        """Jobs of this shell that are not over; none when nobody can say."""
        own = ",".join(map(str, self._session.accepted[-MOST_ASKED_FOR:]))
        if not own:
            return []
        try:
            with self._muted.connect_running() as connection:
                found: JobsReply = request_all(connection, [Jobs(own, active_only=True)], [JobsReply])[0]
        except (OSError, SshgridError):
            return []
        return [str(job.id) for job in found.jobs]


def _names_no_file(group: click.Group, words: Sequence[str]) -> bool:
    """Are these the words of a `run` that does not say what?"""
    import click

    run = group.get_command(click.Context(group), "run")
    assert run is not None
    try:
        with run.make_context("run", list(words), resilient_parsing=True) as context:
            return not context.params.get("file")
    except click.ClickException:
        return False


# --- the prompt -------------------------------------------------------------------------------------------------------


def _prompt_session(session: Session, group: click.Group, toolbar: Callable[[], str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from sshgrid.prompt.completion import command_completer

    at_home = session.gateway is None and not session.master
    return PromptSession(
        history=FileHistory(_history_file(session)) if at_home else InMemoryHistory(),
        auto_suggest=AutoSuggestFromHistory(),
        completer=command_completer(group, session),
        complete_while_typing=False,
        complete_in_thread=True,  # the master may be slow to say which jobs there are
        bottom_toolbar=toolbar,
        refresh_interval=REFRESH_SECONDS,
    )


def _history_file(session: Session) -> str:
    """Ours alone: command lines may name what is nobody's business."""
    places = session.places(must_exist=False)
    os.makedirs(places.config_dir, mode=0o700, exist_ok=True)
    path = os.path.join(places.config_dir, "history")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    return path


# --- the live line ----------------------------------------------------------------------------------------------------


def fetch_counts(connection: Connection) -> str:
    """What the bottom line says while the master answers."""
    status, nodes = request_all(connection, [Status(), Nodes()], [StatusReply, NodesReply])
    return counts_text(status, nodes)


def counts_text(status: StatusReply, nodes: NodesReply) -> str:
    """`jobs: 3 running, 12 pending   nodes: 4 of 5 up`"""
    running = status.jobs_by_state.get("RUNNING", 0) + status.jobs_by_state.get("DISCONNECTED", 0)
    up = sum(line.state not in _ABSENT for line in nodes.nodes)
    pending = status.jobs_by_state.get("PENDING", 0)
    problem = "   the inventory has errors" if status.inventory_error else ""
    return f"jobs: {running} running, {pending} pending   nodes: {up} of {len(nodes.nodes)} up{problem}"
