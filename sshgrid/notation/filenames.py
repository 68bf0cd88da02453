"""Checks of the file names of a program: each must be a relative path that stays inside its folder.

Quotes, newlines, leading dashes and $(...) are valid in a name, because no shell ever evaluates it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sshgrid.errors import UsageError
from sshgrid.model import Program, SourceFile

MAX_COMPONENT_BYTES = 255
MAX_NAME_BYTES = 2048  # the node's work folder and the name together stay below PATH_MAX


def check_name(name: str) -> None:
    """Raise UsageError unless `name` is a relative path that stays inside its folder."""
    if problem := name_problem(name):
        raise UsageError(f"file name {name!r} {problem}", "rename the file, or use one inside the program's folder")


def name_problem(name: str) -> str:
    """Why `name` is not a path inside a folder; "" when it is one."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    parts = encoded.split(b"/")
    if not encoded:
        return "is empty"
    if b"\0" in encoded:
        return "contains a NUL byte"
    if encoded.startswith(b"/"):
        return "is absolute"
    if b".." in parts:
        return "leads out of its folder ('..')"
    if b"" in parts or b"." in parts:
        return "contains an empty part or '.'"
    if any(len(part) > MAX_COMPONENT_BYTES for part in parts):
        return f"has a part longer than {MAX_COMPONENT_BYTES} bytes"
    return f"is longer than {MAX_NAME_BYTES} bytes" if len(encoded) > MAX_NAME_BYTES else ""


def _checked(files: Sequence[SourceFile]) -> list[str]:
    """The names of files for one folder. Raises UsageError when one is invalid, or when two exclude each other."""
    names = [file.name for file in files]
    for name in names:
        check_name(name)
    if len(set(names)) < len(names):
        raise UsageError(f"file name {next(name for name in names if names.count(name) > 1)!r} is given twice")
    folders = {name[:place] for name in names for place, letter in enumerate(name) if letter == "/"}
    if both := folders.intersection(names):
        raise UsageError(f"{min(both)!r} is both a file and a folder")
    return names


def check_program(program: Program) -> None:
    """Raise UsageError when a file name, argument or flag of the program cannot be sent to a node."""
    names = _checked(program.files)
    _checked(program.data)
    if program.entry not in names:
        raise UsageError(f"the program's file {program.entry!r} is not among its files")
    if any(b"\0" in arg for arg in program.args) or any("\0" in flag for flag in program.flags):
        raise UsageError("an argument contains a NUL byte")
