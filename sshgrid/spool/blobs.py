"""Blobs: uploaded files, each under its SHA-256.

A file gets its name only when it is complete, checked and on disk. A name that is not a digest is refused, so no path
is built from what a user typed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from sshgrid.errors import UsageError
from sshgrid.spool import disk
from sshgrid.spool.disk import blame_disk, write_all

FEW_FILES = 8  # above this number, syncing the whole file system is cheaper than syncing each file
MOST_TOGETHER = 256  # complete files that get their names in one step; the event loop waits for the disk that long
FRESH_SECONDS = 60.0  # the modification time of a requested file is renewed at most this often
HOUR = 3600.0
_COPY_BYTES = 32 << 20
_HASH_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"[0-9a-f]{2}")


class BlobWriter:
    """A file on its way in. It is not there before `finish`; `abort` or a failure leaves nothing behind."""

    def __init__(self, blobs: Blobs, sha256: str, size: int | None) -> None:
        self._target = blobs.path(sha256)
        self._sha256 = sha256
        self._size = size
        self._hash = hashlib.sha256()
        self._written = 0
        with blame_disk(blobs.incoming):
            self._descriptor, self._aside = disk.create_aside(blobs.incoming, f"{sha256[:8]}.")
        self._blobs = blobs
        blobs.unfinished.add(self._aside)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abort()

    def append(self, piece: bytes) -> None:
        """Take the next piece. UsageError as soon as there is more than was announced."""
        if self._size is not None and self._written + len(piece) > self._size:
            self.abort()
            raise UsageError(f"file {self._sha256[:12]}: more than the {self._size} bytes that were announced")
        try:
            with blame_disk(self._target):
                write_all(self._descriptor, piece)
        except BaseException:
            self.abort()
            raise
        self._hash.update(piece)
        self._written += len(piece)

    def finish(self) -> Path:
        """The file under its digest, durable on return. UsageError when it is not what was announced."""
        try:
            self._check()
            with blame_disk(self._target):
                os.fsync(self._descriptor)
                _publish(self._aside, self._target)
        finally:
            self.abort()
        return self._target

    def finish_later(self) -> None:
        """As `finish`, but it has its name only after `Blobs.publish`: of many files that costs a fraction."""
        try:
            self._check()
            os.close(self._descriptor)
            self._descriptor = -1
            self._blobs.add_complete(self._sha256, self._aside)
        finally:
            self.abort()

    def abort(self) -> None:
        """Forget the file; nothing happens after `finish` or a second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._aside.unlink(missing_ok=True)
            self._blobs.unfinished.discard(self._aside)

    def _check(self) -> None:
        if self._size is not None and self._written != self._size:
            raise UsageError(f"file {self._sha256[:12]}: {self._written} bytes came, {self._size} were announced")
        if (found := self._hash.hexdigest()) != self._sha256:
            raise UsageError(f"file {self._sha256[:12]}: the bytes that came have SHA-256 {found[:12]}")


class Blobs:
    """The blobs of one master, in one folder. Methods block for the time of one disk access."""

    def __init__(self, directory: Path, incoming: Path) -> None:
        self.directory = directory
        self.incoming = incoming  # files that have no name yet
        self.unfinished: set[Path] = set()  # files in `incoming` that are still being written
        self._complete: dict[str, Path] = {}  # by digest: checked files that have no name yet
        for folder in (directory, incoming):
            disk.private_directory(folder, forbidden=0o077)

    def writer(self, sha256: str, size: int | None = None) -> BlobWriter:
        """A file that comes in pieces; without `size` its digest alone says whether it is whole."""
        return BlobWriter(self, sha256, size)

    def adopt(self, descriptor: int, proceed: Callable[[], bool] = lambda: True) -> str:
        """Keep a copy of an open file, which shares its blocks where the file system can; gives its SHA-256.

        UsageError when it gives more or fewer bytes than it is said to have. Durable on return, and takes as long as
        the file is large: for a thread. It ends early, with UsageError, when it shall not `proceed`.
        """
        with blame_disk(self.incoming):
            copy, aside = disk.create_aside(self.incoming, "adopted.")
        self.unfinished.add(aside)
        try:
            with blame_disk(aside):
                target = self.path(_copy_and_digest(descriptor, copy, proceed))
                if (size := os.fstat(copy).st_size) != (said := os.fstat(descriptor).st_size):
                    raise UsageError(f"{size} bytes of it came, and it is said to have {said}")
                os.fsync(copy)
                _publish(aside, target)
        finally:
            os.close(copy)
            aside.unlink(missing_ok=True)
            self.unfinished.discard(aside)
        return target.name

    def keep(self, content: bytes) -> str:
        """Keep these bytes, durable on return; gives their SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.has(sha256):
            with self.writer(sha256, len(content)) as writer:
                writer.append(content)
                writer.finish()
        return sha256

    def add_complete(self, sha256: str, aside: Path) -> None:
        """This file has all its bytes. It gets its name with others."""
        before = self._complete.pop(sha256, None)
        self._complete[sha256] = aside
        if before is not None:
            before.unlink(missing_ok=True)
            self.unfinished.discard(before)
        if len(self._complete) >= MOST_TOGETHER:
            self.publish()

    def publish(self) -> None:
        """What is whole gets its name, durably. One round of waiting for the disk, however many files there are."""
        files, self._complete = self._complete, {}
        if not files:
            return
        try:
            with blame_disk(self.directory):
                self._publish(files)
        finally:
            for aside in files.values():
                aside.unlink(missing_ok=True)
                self.unfinished.discard(aside)

    def _publish(self, files: Mapping[str, Path]) -> None:
        if len(files) <= FEW_FILES:
            for sha256, aside in files.items():
                disk.sync(aside)
                _publish(aside, self.path(sha256))
            return
        disk.sync_all(self.incoming)
        for sha256, aside in files.items():
            target = self.path(sha256)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            aside.replace(target)
        disk.sync_all(self.directory)

    def path(self, sha256: str) -> Path:
        """Where the file is, or will be."""
        if not _SHA256.fullmatch(sha256):
            raise UsageError(f"not a SHA-256: {sha256[:80]!r}")
        return self.directory / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Is it here? A file that was asked for counts as new again: `evict` leaves it for another hour (less a
        minute)."""
        path = self.path(sha256)
        with blame_disk(path):
            try:
                if path.stat().st_mtime < time.time() - FRESH_SECONDS:
                    os.utime(path)
            except FileNotFoundError:
                return False
        return True

    def holds(self, sha256: str, content: bytes) -> bool:
        """Is it here, with exactly these bytes? Then they need not be written again."""
        return self.has(sha256) and self._size_of(sha256) == len(content) and self.read(sha256) == content

    def _size_of(self, sha256: str) -> int:
        path = self.path(sha256)
        with blame_disk(path):
            return path.stat().st_size

    def missing(self, shas: Iterable[str]) -> tuple[str, ...]:
        """Which of these are not here, each once. What is here stays for at least the time that `evict` grants."""
        return tuple(sha256 for sha256 in dict.fromkeys(shas) if not self.has(sha256))

    def read(self, sha256: str) -> bytes:
        path = self.path(sha256)
        with blame_disk(path):
            return path.read_bytes()

    def evict(self, keep: Collection[str], now: float, age_seconds: float = HOUR) -> int:
        """Delete files that no job needs and nobody asked for lately, and abandoned ones; gives the bytes freed."""
        kept = frozenset(keep)
        freed = 0
        with blame_disk(self.directory):
            for path in self._files():
                found = path.stat()
                if path.name not in kept and found.st_mtime < now - age_seconds:
                    path.unlink()
                    freed += found.st_size
        return freed

    def _files(self) -> Iterator[Path]:
        yield from (path for path in self.incoming.iterdir() if path not in self.unfinished)
        for shard in self.directory.iterdir():
            if _SHARD.fullmatch(shard.name):
                yield from (path for path in shard.iterdir() if _SHA256.fullmatch(path.name))


def _copy_and_digest(source: int, copy: int, proceed: Callable[[], bool]) -> str:
    """Of the bytes as they are in the copy: nobody else writes to that."""
    digest = hashlib.sha256()
    os.lseek(source, 0, os.SEEK_SET)
    at = 0
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(_copy_step, source, copy)
        while count := ahead.result():
            ahead = pool.submit(_copy_step, source, copy)  # while this one is read
            for offset in range(at, at + count, _HASH_BYTES):
                digest.update(os.pread(copy, min(_HASH_BYTES, at + count - offset), offset))
            at += count
            if not proceed():
                raise UsageError("the master leaves", "try again")
    return digest.hexdigest()


def _copy_step(source: int, copy: int) -> int:
    """Bytes copied, those of the step before on disk; 0 at the end."""
    os.fdatasync(copy)  # bit by bit, as all at the end would be waited for
    try:  # not every pair of file systems can do it by themselves
        return os.copy_file_range(source, copy, _COPY_BYTES)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    piece = os.read(source, _COPY_BYTES)
    write_all(copy, piece)
    return len(piece)


def _publish(aside: Path, target: Path) -> None:
    shard = target.parent
    if not shard.exists():
        shard.mkdir(mode=0o700, exist_ok=True)
        disk.sync(shard.parent)
    aside.replace(target)  # also over an old one: the same bytes, or a damaged file healed
    disk.sync(shard)
