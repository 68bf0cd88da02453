"""Names of a program's files: which can be carried to a node, and which could leave the folder they belong to.

A name is data: quotes, newlines, leading dashes and $(...) are fine. Refused is what is no path inside a folder.
"""

from __future__ import annotations

from collections.abc import Sequence

from sshgrid.errors import UsageError
from sshgrid.model import Program, SourceFile

MAX_COMPONENT_BYTES = 255
MAX_NAME_BYTES = 2048  # leaves room for the node's work folder below PATH_MAX


def check_name(name: str) -> None:
    """UsageError unless `name` is a relative path that stays in its folder; quotes, newlines, dashes are fine."""
    if fault := fault_of(name):
        raise UsageError(f"file name {name!r} {fault}", "rename the file, or name one inside the program's folder")


def fault_of(name: str) -> str:
    """Why `name` is no path inside a folder; "" when it is one."""
    try:
        encoded = name.encode()
    except UnicodeEncodeError:
        return "is not UTF-8"
    parts = encoded.split(b"/")
    if not encoded:
        return "is empty"
    if b"\0" in encoded:
        return "holds a NUL byte"
    if encoded.startswith(b"/"):
        return "is absolute"
    if b".." in parts:
        return "leads out of its folder ('..')"
    if b"" in parts or b"." in parts:
        return "has an empty part or '.'"
    if any(len(part) > MAX_COMPONENT_BYTES for part in parts):
        return f"has a part longer than {MAX_COMPONENT_BYTES} bytes"
    return f"is longer than {MAX_NAME_BYTES} bytes" if len(encoded) > MAX_NAME_BYTES else ""


def _checked(files: Sequence[SourceFile]) -> list[str]:
    """The names of what shall lie in one folder."""
    names = [file.name for file in files]
    for name in names:
        check_name(name)
    if len(set(names)) < len(names):
        raise UsageError(f"file name {next(name for name in names if names.count(name) > 1)!r} is given twice")
    folders = {name[:place] for name in names for place, sign in enumerate(name) if sign == "/"}
    if both := folders.intersection(names):
        raise UsageError(f"{min(both)!r} is both a file and a folder")
    return names


def check_program(program: Program) -> None:
    """UsageError when a file, argument or flag cannot be carried; one bad name refuses the whole bundle."""
    names = _checked(program.files)
    _checked(program.data)
    if program.entry not in names:
        raise UsageError(f"the program's file {program.entry!r} is not among its files")
    if any(b"\0" in arg for arg in program.args) or any("\0" in flag for flag in program.flags):
        raise UsageError("an argument holds a NUL byte")
