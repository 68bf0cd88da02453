"""The prompt: the same commands without the word `sshgrid`, with completion, history and a live line at the bottom.

Every line goes through the command line's own `invoke`, so nothing exists here that does not exist there. Without a
terminal the lines are read from standard input, without a prompt. Ctrl-C ends what is followed, Ctrl-D leaves.
"""
# os.path, not pathlib (see per-file-ignores), as in all of the client.

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from sshgrid.cli import files
from sshgrid.cli.session import Session
from sshgrid.errors import SshgridError, UsageError
from sshgrid.wire import Nodes, NodesReply, Status, StatusReply

if TYPE_CHECKING:
    from click import Group
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

REFRESH_SECONDS = 1.0
ASK_SECONDS = 2.0
_LEAVE = frozenset({"exit", "quit"})
_ABSENT = frozenset({"DOWN", "UNKNOWN"})


def repl(session: Session) -> int:
    """Until Ctrl-D, `exit` or the end of the input; the exit status of the last command."""
    if session.in_shell:
        raise UsageError("this is the shell already")
    if sys.stdin is None or not sys.stdin.isatty() or not session.err.terminal:
        return _run_lines(session, sys.stdin or ())
    return _prompt_lines(session)


def _run_lines(session: Session, lines: Iterable[str]) -> int:
    status = 0
    for line in lines:
        found = run_line(session, line)
        if found is None:
            break
        status = found
    return status


def _prompt_lines(session: Session) -> int:
    with LiveCounts(session) as counts:
        prompt = _prompt_session(session, counts)
        status = 0
        while True:
            try:
                line = prompt.prompt(f"[{status}] sshgrid> " if status else "sshgrid> ")
            except KeyboardInterrupt:
                continue  # the line is gone, as in any shell
            except EOFError:
                return status
            found = run_line(session, line)
            if found is None:
                return status
            status = found


def run_line(session: Session, line: str) -> int | None:
    """The exit status of one line; None when it asks to leave."""
    from sshgrid.cli.session import report
    from sshgrid.cli.verbs import invoke

    try:
        words = shlex.split(line, comments=True)
    except ValueError as error:
        return report(session, UsageError(f"the quotes do not match: {error}"))
    if words[:1] == ["sshgrid"]:
        words = words[1:]
    if not words:
        return 0
    if words[0] in _LEAVE:
        return None
    return invoke(["--help"] if words == ["help"] else words, session.child())


def _prompt_session(session: Session, counts: LiveCounts) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from sshgrid.cli.verbs import cli

    at_home = session.door is None and not session.master
    return PromptSession(
        history=FileHistory(_history_file(session)) if at_home else InMemoryHistory(),
        completer=command_completer(cli, session),
        complete_while_typing=False,
        bottom_toolbar=counts.text,
        refresh_interval=REFRESH_SECONDS,
    )


def _history_file(session: Session) -> str:
    """Ours alone: command lines may name what is nobody's business."""
    places = session.places(must_exist=False)
    os.makedirs(places.config_dir, mode=0o700, exist_ok=True)
    path = os.path.join(places.config_dir, "history")
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    return path


# --- completion ------------------------------------------------------------------------------------------------------


def command_completer(group: Group, session: Session | None = None) -> Completer:
    """Verbs, flags, job ids and node names through click's own completion; files where click says file or nothing."""
    from click.shell_completion import ShellComplete
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    click_completion = ShellComplete(group, {"obj": session} if session else {}, "sshgrid", "_SSHGRID_COMPLETE")
    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
            words, incomplete = split_line(document.text_before_cursor)
            items = click_completion.get_completions(words, incomplete)
            plain = [item for item in items if item.type == "plain"]
            for item in plain:
                yield Completion(str(item.value), -len(incomplete), display_meta=item.help or "")
            if words and not plain and not incomplete.startswith("-") and not files.confined():
                yield from paths.get_completions(Document(incomplete), event)

    return Commands()


def split_line(text: str) -> tuple[list[str], str]:
    """The finished words of a line and the one under the cursor; an open quote counts as closed."""
    for closing in ("", "'", '"'):
        try:
            words = shlex.split(text + closing)
        except ValueError:
            continue
        if words[:1] == ["sshgrid"]:
            words = words[1:]
        if not words or (not closing and text[-1:].isspace()):
            return words, ""
        return words[:-1], words[-1]
    return [], ""


# --- the live line ---------------------------------------------------------------------------------------------------


class LiveCounts:
    """Asks the master once a second, in a thread of its own, so that the prompt never waits for it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._text = ""
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._refresh, name="live counts", daemon=True)

    def __enter__(self) -> LiveCounts:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left.set()
        self._thread.join(ASK_SECONDS)

    def text(self) -> str:
        return self._text

    def _refresh(self) -> None:
        while True:
            self._text = self._ask()
            if self._left.wait(REFRESH_SECONDS):
                return

    def _ask(self) -> str:
        if self._session.master:
            return self._session.master  # each look would be a login
        try:
            with self._session.look(ASK_SECONDS) as connection:
                status = connection.ask(Status(), StatusReply)
                nodes = connection.ask(Nodes(), NodesReply)
        except (OSError, SshgridError):
            return "no master is running"
        return counts_text(status, nodes)


def counts_text(status: StatusReply, nodes: NodesReply) -> str:
    """`jobs: 3 running, 12 pending   nodes: 4 of 5 up`"""
    running = status.jobs_by_state.get("RUNNING", 0) + status.jobs_by_state.get("DISCONNECTED", 0)
    up = sum(line.state not in _ABSENT for line in nodes.nodes)
    pending = status.jobs_by_state.get("PENDING", 0)
    problem = "   the inventory has errors" if status.inventory_error else ""
    return f"jobs: {running} running, {pending} pending   nodes: {up} of {len(nodes.nodes)} up{problem}"
