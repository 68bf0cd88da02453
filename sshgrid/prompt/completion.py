"""Completion at the prompt: click's own, the words of the shell alone, and files.

Refuses to say what went wrong in it: whoever presses Tab sees nothing, and types on.
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

# word of the shell -> the command whose words follow it; "" = files
_AS = {"watch": "info", "unwatch": "info", "help": "help", "edit": "", "exit": "exit"}


def command_completer(group: Group, session: Session) -> Completer:
    """Verbs, flags, jobs, nodes, tags and languages through click's own completion; files where click knows nothing."""
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
                for word in _AS:
                    if word.startswith(incomplete) and not incomplete.startswith("-"):
                        yield Completion(word, -len(incomplete), display_meta="of the shell")
            asked = [_AS.get(words[0], words[0]), *words[1:]] if words else []
            items = click_completion.get_completions(asked, incomplete) if asked[:1] != [""] else []
            plain = [item for item in items if item.type == "plain"]
            for item in plain:
                yield Completion(str(item.value), -len(incomplete), display_meta=item.help or "")
            if words and not plain and not incomplete.startswith("-") and not files.confined():
                yield from paths.get_completions(Document(incomplete), event)

    return LineCommands()


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
