"""SFTP into the folder of one user on the master; the files there can be run through the SSH gateway.

Every path is opened from the folder down, a component at a time, so nothing outside of it is ever reached. Links and
special files are refused, as are more bytes or files than the user may have there.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NoReturn, cast

import asyncssh
from asyncssh.constants import FXF_APPEND, FXF_CREAT, FXF_EXCL, FXF_READ, FXF_TRUNC, FXF_WRITE

from sshgrid.notation.quantities import format_size

MOST_FILES = 10_000
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class FolderQuota:
    """The bytes and files in a user's folder, shared by all SFTP sessions of the user. `cap` gives the most bytes."""

    def __init__(self, root: Path, cap: Callable[[], int | None]) -> None:
        self.root = root
        self._cap = cap
        self.bytes, self.files = 0, 0

    def measure(self) -> None:
        """Count again: a worker process of the gateway may have written files."""
        self.bytes, self.files = 0, 0
        for _, _, names, folder in os.fwalk(self.root):
            sizes = [_size(os.fsencode(name), folder) or 0 for name in names]
            self.bytes, self.files = self.bytes + sum(sizes), self.files + len(sizes)

    def grow(self, more: int, files: int = 0) -> None:
        """Count this many more bytes and files. Raises SFTPFailure when they are over the quota."""
        limit = self._cap()
        if limit is not None and more > 0 and self.bytes + more > limit:
            raise asyncssh.SFTPFailure(f"your folder cannot hold more than {format_size(limit)}")
        if files > 0 and self.files + files > MOST_FILES:
            raise asyncssh.SFTPFailure(f"your folder cannot hold more than {MOST_FILES} files")
        self.bytes, self.files = self.bytes + more, self.files + files

    def resize(self, descriptor: int, size: int) -> None:
        """Change the size of an open file. Raises SFTPFailure when it is over the quota."""
        self.grow(size - os.fstat(descriptor).st_size)
        os.truncate(descriptor, size)


class RestrictedServer(asyncssh.SFTPServer):
    """An SFTP server without links, without figures of the host's file system and without names of its accounts."""

    def readlink(self, path: bytes) -> NoReturn:
        raise asyncssh.SFTPPermissionDenied("links are not supported")

    def symlink(self, oldpath: bytes, newpath: bytes) -> NoReturn:
        raise asyncssh.SFTPPermissionDenied("links are not supported")

    link = symlink

    def statvfs(self, path: bytes) -> NoReturn:
        raise asyncssh.SFTPOpUnsupported("the file system of the host is not shown")

    def fstatvfs(self, file_obj: object) -> NoReturn:
        raise asyncssh.SFTPOpUnsupported("the file system of the host is not shown")

    def format_user(self, uid: int | None) -> str:
        return "you"

    def format_group(self, gid: int | None) -> str:
        return "grid"


class UserFolder(RestrictedServer):
    """One SFTP session. The method names are asyncssh's; an OSError is answered as the SFTP error that it means."""

    def __init__(self, channel: asyncssh.SSHServerChannel[bytes], quota: FolderQuota) -> None:
        super().__init__(channel)
        self._root = quota.root
        self._quota = quota
        quota.measure()

    def realpath(self, path: bytes) -> bytes:
        return b"/" + b"/".join(_parts(path))

    # --- files

    def open(self, path: bytes, pflags: int, attrs: asyncssh.SFTPAttrs) -> object:
        flags = _flags(pflags) | _FILE
        with _parent(self._root, path) as (folder, name):
            before = _size(name, folder)
            if before is None and flags & os.O_CREAT:
                self._quota.grow(0, files=1)
            mode = 0o700 if attrs.permissions is not None and attrs.permissions & 0o100 else 0o600
            descriptor = os.open(name, flags & ~os.O_TRUNC, mode, dir_fd=folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise asyncssh.SFTPPermissionDenied("not a file")
        if flags & os.O_TRUNC and before:
            os.truncate(descriptor, 0)
            self._quota.grow(-before)
        return os.fdopen(descriptor, "r+b" if flags & (os.O_RDWR | os.O_WRONLY) else "rb", buffering=0, closefd=True)

    def read(self, file_obj: object, offset: int, size: int) -> bytes:
        return os.pread(_descriptor(file_obj), size, offset)

    def write(self, file_obj: object, offset: int, data: bytes) -> int:
        descriptor = _descriptor(file_obj)
        self._quota.grow(max(0, offset + len(data) - os.fstat(descriptor).st_size))
        return os.pwrite(descriptor, data, offset)

    def setstat(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        with _parent(self._root, path) as (folder, name):
            descriptor = os.open(name, os.O_RDONLY | _FILE, dir_fd=folder)
            try:
                _set(descriptor, attrs)
            finally:
                os.close(descriptor)
            if attrs.size is not None:
                writable = os.open(name, os.O_WRONLY | _FILE, dir_fd=folder)
                try:
                    self._quota.resize(writable, attrs.size)
                finally:
                    os.close(writable)

    lsetstat = setstat

    def fsetstat(self, file_obj: object, attrs: asyncssh.SFTPAttrs) -> None:
        _set(_descriptor(file_obj), attrs)
        if attrs.size is not None:
            self._quota.resize(_descriptor(file_obj), attrs.size)

    def remove(self, path: bytes) -> None:
        with _parent(self._root, path) as (folder, name):
            size = _size(name, folder) or 0
            os.unlink(name, dir_fd=folder)
        self._quota.grow(-size, files=-1)

    # --- folders

    def lstat(self, path: bytes) -> os.stat_result:
        with _parent(self._root, path) as (folder, name):
            return os.stat(name, dir_fd=folder, follow_symlinks=False)

    stat = lstat

    async def scandir(self, path: bytes) -> AsyncIterator[asyncssh.SFTPName]:
        with _folder(self._root, _parts(path)) as folder:
            found = [(os.fsencode(name), _status(name, folder)) for name in os.listdir(folder)]  # noqa: PTH208 - of a descriptor
        for name, status in found:
            if status is not None:
                yield asyncssh.SFTPName(name, attrs=asyncssh.SFTPAttrs.from_local(status))

    def mkdir(self, path: bytes, attrs: asyncssh.SFTPAttrs) -> None:
        with _parent(self._root, path) as (folder, name):
            self._quota.grow(0, files=1)
            os.mkdir(name, 0o700, dir_fd=folder)

    def rmdir(self, path: bytes) -> None:
        with _parent(self._root, path) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    def rename(self, oldpath: bytes, newpath: bytes) -> None:
        with _parent(self._root, newpath) as (folder, name):
            if _status(os.fsdecode(name), folder) is not None:
                raise asyncssh.SFTPFailure("a file of this name already exists")
        self.posix_rename(oldpath, newpath)

    def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        with _parent(self._root, oldpath) as (old, name), _parent(self._root, newpath) as (new, wanted):
            os.rename(name, wanted, src_dir_fd=old, dst_dir_fd=new)

    def exit(self) -> None:
        """Send an exit status, without which `scp` reports a failure."""
        with suppress(OSError):
            self.channel.exit(0)


# --- paths ------------------------------------------------------------------------------------------------------------


@contextmanager
def _parent(root: Path, path: bytes) -> Iterator[tuple[int, bytes]]:
    """A descriptor of the folder that holds `path`, and its name there; "." for the root itself."""
    parts = _parts(path)
    with _folder(root, parts[:-1]) as folder:
        yield folder, parts[-1] if parts else b"."


@contextmanager
def _folder(root: Path, parts: list[bytes]) -> Iterator[int]:
    """A descriptor of the folder below `root`. Raises SFTPPermissionDenied when a component is a link."""
    at = os.open(root, _FOLDER)
    try:
        for part in parts:
            below = os.open(part, _FOLDER, dir_fd=at)
            os.close(at)
            at = below
        yield at
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise asyncssh.SFTPPermissionDenied("links are not followed here") from None
        raise
    finally:
        os.close(at)


def _parts(path: bytes) -> list[bytes]:
    """The components of a path; `..` is resolved as text, and the parent of the root is the root."""
    found: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del found[-1:]
        elif part not in (b"", b"."):
            found.append(part)
    return found


def _flags(pflags: int) -> int:
    flags = os.O_RDONLY
    if pflags & FXF_WRITE:
        flags = os.O_RDWR if pflags & FXF_READ else os.O_WRONLY
    for bit, flag in ((FXF_APPEND, os.O_APPEND), (FXF_CREAT, os.O_CREAT), (FXF_TRUNC, os.O_TRUNC)):
        flags |= flag if pflags & bit and pflags & FXF_WRITE else 0
    return flags | (os.O_EXCL if pflags & FXF_EXCL else 0)


def _status(name: str, folder: int) -> os.stat_result | None:
    with suppress(OSError):
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    return None


def _size(name: bytes, folder: int) -> int | None:
    status = _status(os.fsdecode(name), folder)
    return None if status is None else status.st_size


def _set(descriptor: int, attrs: asyncssh.SFTPAttrs) -> None:
    """Set the execute permission and the times; owner and group do not change."""
    found = os.fstat(descriptor)
    if attrs.permissions is not None:
        folder = stat.S_ISDIR(found.st_mode)
        os.fchmod(descriptor, 0o700 if folder or attrs.permissions & 0o100 else 0o600)
    if attrs.mtime is not None:
        os.utime(descriptor, (found.st_atime if attrs.atime is None else attrs.atime, attrs.mtime))


def _descriptor(file_obj: object) -> int:
    return cast("IO[bytes]", file_obj).fileno()
