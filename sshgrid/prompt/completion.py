"""Completion at the prompt: that of click, the commands of the shell, and file names.

Errors are not reported; Tab then offers nothing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sshgrid.client import files
from sshgrid.client.session import Session

if TYPE_CHECKING:
    from click import Group
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion
    from prompt_toolkit.document import Document

# command of the shell -> the command whose arguments complete like its own; "" = files
_COMPLETED_AS = {"watch": "info", "unwatch": "info", "help": "help", "edit": "", "exit": "exit"}


def command_completer(group: Group, session: Session) -> Completer:
    """Complete commands, options, jobs, nodes, tags and languages with click, and file names otherwise."""
    from click.shell_completion import ShellComplete
    from prompt_toolkit.completion import Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    quiet = session.child()
    quiet.muted = True
    click_completion = ShellComplete(group, {"obj": quiet}, "sshgrid", "_SSHGRID_COMPLETE")
    paths = PathCompleter(expanduser=True)

    class LineCommands(Completer):
        def get_completions(self, document: Document, event: CompleteEvent) -> Iterator[Completion]:
            words, incomplete = split_line(document.text_before_cursor)
            if not words:
                for word in _COMPLETED_AS:
                    if word.startswith(incomplete) and not incomplete.startswith("-"):
                        yield Completion(word, -len(incomplete), display_meta="shell command")
            asked = [_COMPLETED_AS.get(words[0], words[0]), *words[1:]] if words else []
            items = click_completion.get_completions(asked, incomplete) if asked[:1] != [""] else []
            plain = [item for item in items if item.type == "plain"]
            for item in plain:
                yield Completion(str(item.value), -len(incomplete), display_meta=item.help or "")
            if words and not plain and not incomplete.startswith("-") and not files.confined():
                yield from paths.get_completions(Document(incomplete), event)

    return LineCommands()


def split_line(text: str) -> tuple[list[str], str]:
    """The complete words of a line and the one at the cursor; an open quote counts as closed."""
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
