"""Write the files that a run sends back into a folder of the user.

They arrive as a tar archive, made by a node that need not be trusted: only regular files are taken from it, under names
that were requested, and nothing is written through a link. Only regular files are replaced.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import IO, Any, Protocol

from sshgrid.client import files
from sshgrid.errors import SshgridError
from sshgrid.notation import globs
from sshgrid.protocol.messages import JobLine

COPY_BYTES = 1 << 20
_DISK_IS_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLAIN = frozenset({tarfile.REGTYPE, tarfile.AREGTYPE})


class NotFetched(SshgridError):
    """Some files could not be written; the master still has them."""

    code = "not-fetched"


class FetchListener(Protocol):
    """Receives the name of each file that was written."""

    def fetched(self, name: str, size: int, replaced: bool) -> None: ...


def unpack(job: JobLine, pieces: Iterator[bytes], into: str, listener: FetchListener) -> None:
    """Write all files of the archive to the folder `into`, which is created if missing. NotFetched when some failed."""
    again = f"sshgrid attach {job.id} --into DIR"
    try:
        folder = FetchFolder(into)
    except OSError as error:
        raise NotFetched(f"{into}: {error.strerror} (--into)", again) from error
    errors: list[str] = []
    count = 0
    with folder:
        try:
            with tarfile.open(fileobj=_PieceReader(pieces), mode="r|", encoding="utf-8") as archive:
                for member in archive:
                    count += 1
                    errors += _extract(archive, member, job, folder, listener)
        except tarfile.TarError as error:
            if _is_complete(job):
                errors.append(f"the archive of job {job.id} is damaged: {error}")
        except OSError as error:
            raise NotFetched(f"{into}: {error.strerror}; the master still has the other files", again) from error
    if job.fetched and _is_complete(job) and not errors and count < job.fetched.files:
        errors.append(f"only {count} of {job.fetched.files} files of job {job.id} were received")
    if errors:
        raise NotFetched("\n".join(errors), again)


def _is_complete(job: JobLine) -> bool:
    """Whether the master has all files of the job; if not, its warnings were printed."""
    return job.fetched is None or job.fetched.whole


def _extract(
    archive: tarfile.TarFile, member: tarfile.TarInfo, job: JobLine, folder: FetchFolder, listener: FetchListener
) -> list[str]:
    """Write one member of the archive; returns error messages. OSError when the disk is full."""
    name = member.name.removeprefix("./")
    if fault := globs.fetch_problem(name):
        return [f"{ascii(name)[:200]} {fault}: skipped"]
    if not any(globs.matches(glob, name) for glob in job.fetch):
        return [f"{name} does not match --fetch: skipped"]
    try:
        if member.type == tarfile.LNKTYPE:  # a hard link to a file that came before
            size, replaced = folder.copy(member.linkname.removeprefix("./"), name)
        elif member.type in _PLAIN and (stream := archive.extractfile(member)) is not None:
            size = member.size
            replaced = folder.write(name, stream, executable=bool(member.mode & 0o111))
        else:
            return [f"{name} is not a regular file: skipped"]
    except OSError as error:
        if error.errno in _DISK_IS_FULL:
            raise
        return [f"{os.path.join(folder.path, name)}: {_reason(error)}"]
    listener.fetched(os.path.normpath(os.path.join(folder.path, name)), size, replaced)
    return []


def _reason(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "a part of the path is a link or a file, and links are not followed"
    return error.strerror or str(error)


class _PieceReader(io.RawIOBase):
    """An iterator of pieces as a file object for tarfile."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


class FetchFolder:
    """The folder for fetched files. Each path is opened component by component, so that no link leads out of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._root = files.open_folder(path)
        self._written: set[str] = set()

    def __enter__(self) -> FetchFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def write(self, name: str, stream: IO[bytes], *, executable: bool) -> bool:
        """Write a file through a temporary one; returns whether it replaced a file. Raises OSError."""
        with self._parent(name) as (folder, last):
            replaces = _check_target(folder, last)
            temporary = f".sshgrid-{os.getpid()}.part"
            mode = 0o777 if executable else 0o666
            try:
                with os.fdopen(os.open(temporary, _NEW, mode, dir_fd=folder), "wb", buffering=0) as file:
                    while piece := stream.read(COPY_BYTES):
                        _write_all(file.fileno(), piece)
                os.replace(temporary, last, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(temporary, dir_fd=folder)
                raise
        self._written.add(name)
        return replaces

    def copy(self, source: str, name: str) -> tuple[int, bool]:
        """Copy a file that was written before; returns its size and whether it replaced a file. Raises OSError."""
        if source not in self._written:
            raise FileNotFoundError(errno.ENOENT, f"it is a link to {source!r}, which is missing")
        with self._parent(source) as (folder, last):
            descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as stream:
            found = os.fstat(descriptor)
            return found.st_size, self.write(name, stream, executable=bool(found.st_mode & 0o111))

    @contextlib.contextmanager
    def _parent(self, name: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder of a file, created if missing, and the file's name in it."""
        *above, last = name.split("/")
        at = os.dup(self._root)
        try:
            for part in above:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=at)
                below = os.open(part, _FOLDER, dir_fd=at)
                os.close(at)
                at = below
            yield at, last
        finally:
            os.close(at)


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _check_target(folder: int, name: str) -> bool:
    """Whether a regular file has this name. OSError when something else has it."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(errno.EEXIST, "exists and is not a regular file: not replaced")
    return True


def _write_all(descriptor: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
