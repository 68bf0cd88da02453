"""What a run brought back, from the master into a folder of the person who waits.

The master holds it as a tar archive, made by a node that need not be trusted: only plain files come out of it, under
names that were asked for, and nothing is ever written through a link. Refuses to replace anything but plain files.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

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
    """Some of the files are not where they were wanted; the master still has them."""

    code = "not-fetched"


class FetchListener(Protocol):
    """Who is told what happens."""

    def fetched(self, name: str, size: int, replaced: bool) -> None: ...


def unpack(job: JobLine, pieces: Iterator[bytes], into: str, told: FetchListener) -> None:
    """Every file of the archive into the folder `into`, made when it is missing. NotFetched when some are not there."""
    again = f"sshgrid attach {job.id} --into DIR"
    try:
        folder = FetchFolder(into)
    except OSError as error:
        raise NotFetched(f"{into}: {error.strerror} (--into)", again) from error
    wrong: list[str] = []
    count = 0
    with folder:
        try:
            with tarfile.open(fileobj=_PieceReader(pieces), mode="r|", encoding="utf-8") as archive:
                for member in archive:
                    count += 1
                    wrong += _take(archive, member, job, folder, told)
        except tarfile.TarError as error:
            if _is_whole(job):
                wrong.append(f"the files of job {job.id} are not whole: {error}")
        except OSError as error:
            raise NotFetched(f"{into}: {error.strerror}; the rest is still with the master", again) from error
    if job.fetched and _is_whole(job) and not wrong and count < job.fetched.files:
        wrong.append(f"{count} of {job.fetched.files} files of job {job.id} are there")
    if wrong:
        raise NotFetched("\n".join(wrong), again)


def _is_whole(job: JobLine) -> bool:
    """Whether the archive should be; where it cannot, that was told already."""
    return job.fetched is None or job.fetched.whole


def _take(
    archive: tarfile.TarFile, member: tarfile.TarInfo, job: JobLine, folder: FetchFolder, told: FetchListener
) -> list[str]:
    """One member; what is wrong with it. OSError when the disk is full."""
    name = member.name.removeprefix("./")
    if fault := globs.fault(name):
        return [f"{ascii(name)[:200]} {fault}: left out"]
    if not any(globs.matches(glob, name) for glob in job.fetch):
        return [f"{name} was not asked for: left out"]
    try:
        if member.type == tarfile.LNKTYPE:  # the same file under another name: it came before
            size, replaced = folder.copy(member.linkname.removeprefix("./"), name)
        elif member.type in _PLAIN and (stream := archive.extractfile(member)) is not None:
            size = member.size
            replaced = folder.write(name, stream, executable=bool(member.mode & 0o111))
        else:
            return [f"{name} is no plain file: left out"]
    except OSError as error:
        if error.errno in _DISK_IS_FULL:
            raise
        return [f"{os.path.join(folder.path, name)}: {_words(error)}"]
    told.fetched(os.path.normpath(os.path.join(folder.path, name)), size, replaced)
    return []


def _words(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "a part of the path is a link or a file: nothing is written through it"
    return error.strerror or str(error)


class _PieceReader(io.RawIOBase):
    """Pieces as a file that tarfile can read."""

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
    """Where fetched files go. Every path is taken from it, a component at a time, so that no link leads out of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._root = files.open_folder(path)
        self._written: set[str] = set()

    def __enter__(self) -> FetchFolder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._root)

    def write(self, name: str, stream: IO[bytes], *, executable: bool) -> bool:
        """A whole file or none; whether it replaced one. OSError."""
        with self._parent(name) as (folder, last):
            replaces = _refuse_unless_plain(folder, last)
            aside = f".sshgrid-{os.getpid()}.part"
            mode = 0o777 if executable else 0o666
            try:
                with os.fdopen(os.open(aside, _NEW, mode, dir_fd=folder), "wb", buffering=0) as file:
                    while piece := stream.read(COPY_BYTES):
                        _write_all(file.fileno(), piece)
                os.replace(aside, last, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(aside, dir_fd=folder)
                raise
        self._written.add(name)
        return replaces

    def copy(self, source: str, name: str) -> tuple[int, bool]:
        """A file that was written before, under another name: its size, and whether it replaced one. OSError."""
        if source not in self._written:
            raise FileNotFoundError(errno.ENOENT, f"the file that it is ({source!r}) did not come")
        with self._parent(source) as (folder, last):
            descriptor = os.open(last, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        with os.fdopen(descriptor, "rb") as stream:
            found = os.fstat(descriptor)
            return found.st_size, self.write(name, stream, executable=bool(found.st_mode & 0o111))

    @contextlib.contextmanager
    def _parent(self, name: str) -> Iterator[tuple[int, str]]:
        """A descriptor of the folder that holds it, made when it is missing, and its name there."""
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


def _refuse_unless_plain(folder: int, name: str) -> bool:
    """Whether there is a file of this name. OSError when it is something else."""
    try:
        found = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode):
        raise FileExistsError(errno.EEXIST, "is there, and is no plain file: not replaced")
    return True


def _write_all(descriptor: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]
