"""Files that keep the records of a sweep: locked, read, appended to, and replaced as a whole."""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import fcntl
import os
import stat

from sshgrid.errors import SshgridError, UsageError


class Unwritable(SshgridError):
    """A record cannot be written on this machine; the sweep itself continues."""

    code = "unwritable"


def unwritable(path: str, error: OSError) -> Unwritable:
    """The error for this path."""
    message = f"{path}: {error.strerror or error}; the sweep continues, and the records so far are complete"
    return Unwritable(message, "free some space, then repeat the command with --resume to fetch the rest")


def lock(descriptor: int, path: str) -> None:
    """Lock a file until it is closed. UsageError when another process has locked it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another sshgrid is writing to {path}", "wait until it has ended, or use another path"
        ) from None
    except OSError:
        return  # the file system has no locks


def read(descriptor: int) -> bytes:
    """The whole content of an open file."""
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
        file.seek(0)
        return file.read()


def whole_lines(content: bytes) -> bytes:
    """The content without a last line that has no end."""
    return content[: content.rfind(b"\n") + 1]


def append(descriptor: int, piece: bytes, path: str) -> None:
    """Append all of `piece`; after an error a regular file is cut back to its old size. Raises Unwritable."""
    size = os.fstat(descriptor).st_size
    rest = memoryview(piece)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.ftruncate(descriptor, size)
        raise unwritable(path, error) from error


def replace(folder: int, name: str, content: bytes) -> None:
    """Write a file of this folder through a temporary file and a rename. Raises OSError."""
    temporary = f".{name}.new"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o666, dir_fd=folder), "wb") as file:
        file.write(content)
    os.replace(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
