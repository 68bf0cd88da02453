"""The files and folders that a person names on the command line: every one of them is opened here.

At home that is what the system does. Through the door, after `confine`, only what lies below the folder that this
process stands in is found: refuses absolute paths, `..`, links of any kind, and what is neither a file nor a folder.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from sshgrid.errors import UsageError

_root: int | None = None  # a descriptor of the folder to stay in


def confine() -> None:
    """From now on nothing outside the current folder is found."""
    global _root
    _root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def confined() -> bool:
    """Whether that was said."""
    return _root is not None


def open_binary(path: str) -> BinaryIO:
    """For reading, unbuffered. OSError; UsageError for what leads out."""
    if _root is None:
        return open(path, "rb", buffering=0)
    return os.fdopen(_open_below(_root, path), "rb", buffering=0)


def status(path: str) -> os.stat_result:
    """As os.stat. OSError; UsageError for what leads out."""
    if _root is None:
        return os.stat(path)
    descriptor = _open_below(_root, path)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def exists(path: str) -> bool:
    """Whether there is something to be opened."""
    try:
        status(path)
    except (OSError, UsageError, ValueError):
        return False
    return True


def is_folder(path: str) -> bool:
    """Whether it is one, or a link to one where links are followed."""
    return stat.S_ISDIR(status(path).st_mode)


def replace(path: str, content: bytes) -> None:
    """Whole or not at all; at home a link stays a link. OSError; UsageError for what leads out."""
    if _root is None:
        path = os.path.realpath(path)
    elif "/" in path or path in ("", ".", ".."):
        raise UsageError(f"{path!r} is not a plain name in your folder", "edit hello.py")
    aside = f"{path}.{os.getpid()}.new"
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=_root), "wb") as file:
            file.write(content)
            with contextlib.suppress(FileNotFoundError):
                before = os.stat(path, dir_fd=_root, follow_symlinks=False)
                os.fchmod(file.fileno(), before.st_mode & 0o777)
        os.replace(aside, path, src_dir_fd=_root, dst_dir_fd=_root)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(aside, dir_fd=_root)
        raise


def open_folder(path: str) -> int:
    """A descriptor of this folder, which is made when it is missing. OSError; UsageError for what leads out."""
    if _root is None:
        os.makedirs(path or ".", exist_ok=True)
        return os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    made = ""
    for part in path.split("/") if not path.startswith("/") else ():  # absolute ones are refused below
        above, made = made, os.path.join(made, part)
        at = _open_below(_root, above)
        try:
            with contextlib.suppress(FileExistsError):
                if part not in ("", ".", ".."):
                    os.mkdir(part, dir_fd=at)
        finally:
            os.close(at)
    return _open_below(_root, path)


def open_to_append(path: str) -> int:
    """A descriptor that reads anywhere and writes at the end. OSError; UsageError for what leads out."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    if _root is None:
        return os.open(path, flags, 0o666)
    folder, name = os.path.split(path)
    at = _open_below(_root, folder)
    try:
        found = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666, dir_fd=at)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a link, and links are not followed here", "name another file") from None
        raise
    finally:
        os.close(at)
    _check_kind(found, path)
    return found


def check_inside(path: str) -> None:
    """UsageError for what leads out, where that matters."""
    if _root is not None and (path.startswith("/") or ".." in path.split("/") or "\0" in path):
        raise UsageError(f"{path!r} is outside of your folder", "put it there with sftp or scp, and name it so")


def own_status(path: str) -> os.stat_result:
    """As os.lstat. OSError; UsageError for what leads out, and for any link where none is followed."""
    return os.lstat(path) if _root is None else status(path)


def names(folder: str) -> list[str]:
    """What is in a folder; nothing when it cannot be read."""
    try:
        return listed(folder)
    except (OSError, UsageError, ValueError):
        return []


def listed(folder: str) -> list[str]:
    """As os.listdir. OSError; UsageError for what leads out."""
    if _root is None:
        return os.listdir(folder)
    descriptor = _open_below(_root, folder)
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, links not followed. OSError at once."""
    if _root is None:
        yield from os.walk(folder, onerror=_raise)
        return
    descriptor = _open_below(_root, folder)
    try:
        for at, folders, found, _ in os.fwalk(".", onerror=_raise, dir_fd=descriptor):
            yield os.path.normpath(os.path.join(folder, at)), folders, found
    finally:
        os.close(descriptor)


def _raise(error: OSError) -> None:
    raise error


def _open_below(root: int, path: str) -> int:
    """Component by component, so that no link is ever followed, not even one that is put there meanwhile."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    check_inside(path)
    at = os.dup(root)
    try:
        for part in parts:
            # O_NONBLOCK: a FIFO must not keep us.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            below = os.open(part, flags, dir_fd=at)
            os.close(at)
            at = below
        _check_kind(at, path)
    except OSError as error:
        os.close(at)
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a link, and links are not followed here", "put a copy in its place") from None
        raise
    except BaseException:
        os.close(at)
        raise
    return at


def _check_kind(descriptor: int, path: str) -> None:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(f"{path} is neither a file nor a folder", "put a copy in its place")
