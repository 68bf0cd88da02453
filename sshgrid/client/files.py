"""Opens the files and folders that are named on the command line.

By default paths mean what they mean to the system. Behind the SSH gateway, after `confine`, only what lies below the
current folder can be opened: absolute paths, `..`, links, and anything but files and folders raise UsageError.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

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
    """From now on, open only what lies below the current folder."""
    global _root
    _root = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def confined() -> bool:
    """Whether `confine` was called."""
    return _root is not None


def open_binary(path: str) -> BinaryIO:
    """Open for reading, unbuffered. OSError; UsageError for a path that leads out of the folder."""
    if _root is None:
        return open(path, "rb", buffering=0)
    return os.fdopen(_open_below(_root, path), "rb", buffering=0)


def status(path: str) -> os.stat_result:
    """As os.stat. OSError; UsageError for a path that leads out of the folder."""
    if _root is None:
        return os.stat(path)
    descriptor = _open_below(_root, path)
    try:
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)


def exists(path: str) -> bool:
    """Whether the path can be opened."""
    try:
        status(path)
    except (OSError, UsageError, ValueError):
        return False
    return True


def is_folder(path: str) -> bool:
    """Whether the path is a folder, or a link to one where links are followed. Raises OSError, UsageError."""
    return stat.S_ISDIR(status(path).st_mode)


def replace(path: str, content: bytes) -> None:
    """Replace a file as a whole; without `confine` a link stays a link. OSError; UsageError for another folder."""
    if _root is None:
        path = os.path.realpath(path)
    elif "/" in path or path in ("", ".", ".."):
        raise UsageError(f"{path!r} is not the name of a file in your folder", "edit hello.py")
    temporary = f"{path}.{os.getpid()}.new"
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=_root), "wb") as file:
            file.write(content)
            with contextlib.suppress(FileNotFoundError):
                before = os.stat(path, dir_fd=_root, follow_symlinks=False)
                os.fchmod(file.fileno(), before.st_mode & 0o777)
        os.replace(temporary, path, src_dir_fd=_root, dst_dir_fd=_root)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary, dir_fd=_root)
        raise


def open_folder(path: str) -> int:
    """A descriptor of this folder, which is created if missing. OSError; UsageError for a path that leads out."""
    if _root is None:
        os.makedirs(path or ".", exist_ok=True)
        return os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    made = ""
    for part in path.split("/") if not path.startswith("/") else ():  # _open_below refuses absolute paths
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
    """A descriptor for reading and appending. OSError; UsageError for a path that leads out of the folder."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    if _root is None:
        return os.open(path, flags, 0o666)
    folder, name = os.path.split(path)
    at = _open_below(_root, folder)
    try:
        found = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666, dir_fd=at)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a link, and links are not followed here", "use another file") from None
        raise
    finally:
        os.close(at)
    _check_kind(found, path)
    return found


def check_inside(path: str) -> None:
    """After `confine`, UsageError for a path that leads out of the folder."""
    if _root is not None and (path.startswith("/") or ".." in path.split("/") or "\0" in path):
        raise UsageError(
            f"{path!r} is outside of your folder", "copy it into your folder with sftp or scp, and use that name"
        )


def own_status(path: str) -> os.stat_result:
    """As os.lstat. OSError; UsageError for a path that leads out, and after `confine` for any link."""
    return os.lstat(path) if _root is None else status(path)


def names(folder: str) -> list[str]:
    """The names in a folder; none when it cannot be read."""
    try:
        return listed(folder)
    except (OSError, UsageError, ValueError):
        return []


def listed(folder: str) -> list[str]:
    """As os.listdir. OSError; UsageError for a path that leads out of the folder."""
    if _root is None:
        return os.listdir(folder)
    descriptor = _open_below(_root, folder)
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def walk(folder: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk without following links. OSError for the first folder that cannot be read."""
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
    """Open component by component, so that no link is followed, not even one that is created meanwhile."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    check_inside(path)
    at = os.dup(root)
    try:
        for part in parts:
            # O_NONBLOCK: opening a FIFO must not block.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            below = os.open(part, flags, dir_fd=at)
            os.close(at)
            at = below
        _check_kind(at, path)
    except OSError as error:
        os.close(at)
        if error.errno == errno.ELOOP:
            raise UsageError(f"{path} is a link, and links are not followed here", "replace it with a copy") from None
        raise
    except BaseException:
        os.close(at)
        raise
    return at


def _check_kind(descriptor: int, path: str) -> None:
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise UsageError(f"{path} is neither a file nor a folder", "replace it with a copy")
