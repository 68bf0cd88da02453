"""A small program written at the prompt: lines in a buffer, saved into a file. Refuses to be anybody's main editor."""
# os.path, not pathlib (see per-file-ignores), as in all of the client.

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from sshgrid.client import files
from sshgrid.errors import UsageError

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

LARGEST_BYTES = 256 * 1024
_KEYS = "Alt-Enter or Ctrl-S saves, Ctrl-C leaves it as it was"


def edit(path: str, say: Callable[[str], None]) -> bool:
    """Let a person change this file, or make it; False when they left it as it was. Raises UsageError.

    What cannot be saved is said, and stays on the screen to be saved again.
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
            say(f"{path} is not saved: {error.strerror or error}")


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
            text = file.read(LARGEST_BYTES + 1).decode()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or 'is no text'}") from error
    if len(text) > LARGEST_BYTES:
        raise UsageError(f"{path}: is too large to be edited here")
    return text
