"""An editor for small programs: lines in a buffer, saved to a file."""
# os.path, not pathlib (see per-file-ignores), as in all of the client.

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sshgrid.client import files
from sshgrid.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

MAX_BYTES = 256 * 1024
_KEYS = "Alt-Enter or Ctrl-S saves, Ctrl-C discards changes"


def edit(path: str, warn: Callable[[str], None]) -> bool:
    """Edit a file, which may be new. False when the user discards the changes. Raises UsageError.

    When the text cannot be saved, a warning is printed and the editor stays open.
    """
    from prompt_toolkit import PromptSession

    name = os.path.basename(path)
    text = _read(path)
    buffer: PromptSession[str] = PromptSession(
        multiline=True,
        key_bindings=_bindings("\t" if name == "Makefile" else "    "),
        prompt_continuation=lambda width, number, wrapped: " " * width if wrapped else f"{number + 1:>{width - 1}} ",
        bottom_toolbar=f"{name}: {_KEYS}",
    )
    while True:
        try:
            text = buffer.prompt("  1 ", default=text.removesuffix("\n"))
        except (KeyboardInterrupt, EOFError):
            return False
        try:
            files.replace(path, (text if text.endswith("\n") else f"{text}\n").encode())
            return True
        except OSError as error:
            warn(f"{path}: not saved: {error.strerror or error}")


def _bindings(indent: str) -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("c-s")
    def save(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("tab")
    def indent_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text(indent)

    return keys


def _read(path: str) -> str:
    try:
        with files.open_binary(path) as file:
            text = file.read(MAX_BYTES + 1).decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or 'is not a text file'}") from error
    if len(text) > MAX_BYTES:
        raise UsageError(f"{path}: is too large for this editor")
    return text
