"""Blobs: uploaded files, each under its SHA-256.

A file gets its name only when it is complete, checked and on disk. Names that are not digests raise UsageError and
never become part of a path.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.errors import UsageError
from sshgrid.spool import disk
from sshgrid.spool.disk import blame_disk, write_all

FEW_FILES = 8  # above this number, syncing the whole file system is cheaper than syncing each file
MOST_TOGETHER = 256  # complete files that are published in one step, as the event loop waits for the disk
FRESH_SECONDS = 60.0  # between two renewals of the modification time of a requested file
HOUR = 3600.0
_COPY_BYTES = 32 << 20
_HASH_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"[0-9a-f]{2}")


class BlobWriter:
    """A blob that is being received. It exists only after `finish`; `abort` and failures remove it."""

    def __init__(self, blobs: Blobs, sha256: str, size: int | None) -> None:
        self._target = blobs.path(sha256)
        self._sha256 = sha256
        self._size = size
        self._hash = hashlib.sha256()
        self._written = 0
        with blame_disk(blobs.incoming):
            self._descriptor, self._temporary = disk.create_temporary(blobs.incoming, f"{sha256[:8]}.")
        self._blobs = blobs
        blobs.unfinished.add(self._temporary)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.abort()

    def append(self, piece: bytes) -> None:
        """Add the next piece. Raises UsageError when there are more bytes than announced."""
        if self._size is not None and self._written + len(piece) > self._size:
            self.abort()
            raise UsageError(f"file {self._sha256[:12]}: more than the announced {self._size} bytes")
        try:
            with blame_disk(self._target):
                write_all(self._descriptor, piece)
        except BaseException:
            self.abort()
            raise
        self._hash.update(piece)
        self._written += len(piece)

    def finish(self) -> Path:
        """Publish the file under its digest, durable on return. Raises UsageError when size or digest differ."""
        try:
            self._check()
            with blame_disk(self._target):
                os.fsync(self._descriptor)
                _publish(self._temporary, self._target)
        finally:
            self.abort()
        return self._target

    def finish_later(self) -> None:
        """As `finish`, but leave the publication to `Blobs.publish`: for many files that costs a fraction."""
        try:
            self._check()
            os.close(self._descriptor)
            self._descriptor = -1
            self._blobs.add_complete(self._sha256, self._temporary)
        finally:
            self.abort()

    def abort(self) -> None:
        """Remove the file. Does nothing after `finish`, or when called again."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._temporary.unlink(missing_ok=True)
            self._blobs.unfinished.discard(self._temporary)

    def _check(self) -> None:
        if self._size is not None and self._written != self._size:
            raise UsageError(f"file {self._sha256[:12]}: {self._written} bytes received, {self._size} announced")
        if (found := self._hash.hexdigest()) != self._sha256:
            raise UsageError(f"file {self._sha256[:12]}: the received bytes have SHA-256 {found[:12]}")


class Blobs:
    """The blobs of one master, in one folder. Methods block for the time of one disk access."""

    def __init__(self, directory: Path, incoming: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        self.directory = directory
        self._clock = clock
        self.incoming = incoming  # files that are not published yet
        self.unfinished: set[Path] = set()  # files in `incoming` that are still being written
        self._complete: dict[str, Path] = {}  # by digest: checked files that are not published yet
        for folder in (directory, incoming):
            disk.private_directory(folder, forbidden=0o077)

    def writer(self, sha256: str, size: int | None = None) -> BlobWriter:
        """Return a writer for a file that arrives in pieces. Without `size` only its digest is checked."""
        return BlobWriter(self, sha256, size)

    def adopt(self, descriptor: int, proceed: Callable[[], bool] = lambda: True) -> str:
        """Copy an open file and return its SHA-256, durable on return. The copy shares blocks where that is possible.

        Takes long for large files: call it in a thread. Raises UsageError when the number of bytes differs from the
        size of the file, or when `proceed` returns False.
        """
        with blame_disk(self.incoming):
            copy, temporary = disk.create_temporary(self.incoming, "adopted.")
        self.unfinished.add(temporary)
        try:
            with blame_disk(temporary):
                target = self.path(_copy_and_digest(descriptor, copy, proceed))
                if (size := os.fstat(copy).st_size) != (expected := os.fstat(descriptor).st_size):
                    raise UsageError(f"{size} bytes were read from a file of {expected} bytes")
                os.fsync(copy)
                _publish(temporary, target)
        finally:
            os.close(copy)
            temporary.unlink(missing_ok=True)
            self.unfinished.discard(temporary)
        return target.name

    def keep(self, content: bytes) -> str:
        """Store these bytes, durable on return, and return their SHA-256."""
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.has(sha256):
            with self.writer(sha256, len(content)) as writer:
                writer.append(content)
                writer.finish()
        return sha256

    def add_complete(self, sha256: str, temporary: Path) -> None:
        """Add a checked file, which is published together with others."""
        before = self._complete.pop(sha256, None)
        self._complete[sha256] = temporary
        if before is not None:
            before.unlink(missing_ok=True)
            self.unfinished.discard(before)
        if len(self._complete) >= MOST_TOGETHER:
            self.publish()

    def publish(self) -> None:
        """Publish the checked files durably, with one wait for the disk for all of them."""
        files, self._complete = self._complete, {}
        if not files:
            return
        try:
            with blame_disk(self.directory):
                self._publish(files)
        finally:
            for temporary in files.values():
                temporary.unlink(missing_ok=True)
                self.unfinished.discard(temporary)

    def _publish(self, files: Mapping[str, Path]) -> None:
        if len(files) <= FEW_FILES:
            for sha256, temporary in files.items():
                disk.sync(temporary)
                _publish(temporary, self.path(sha256))
            return
        disk.sync_all(self.incoming)
        for sha256, temporary in files.items():
            target = self.path(sha256)
            target.parent.mkdir(mode=0o700, exist_ok=True)
            temporary.replace(target)
        disk.sync_all(self.directory)

    def path(self, sha256: str) -> Path:
        """Return the path of a blob, which need not exist. Raises UsageError."""
        if not _SHA256.fullmatch(sha256):
            raise UsageError(f"not a SHA-256: {sha256[:80]!r}")
        return self.directory / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Return whether a blob exists. The request renews its age: `evict` spares it for an hour, less a minute."""
        path = self.path(sha256)
        with blame_disk(path):
            try:
                if path.stat().st_mtime < self._clock.wall() - FRESH_SECONDS:
                    os.utime(path)
            except FileNotFoundError:
                return False
        return True

    def holds(self, sha256: str, content: bytes) -> bool:
        """Return whether a blob exists with exactly these bytes."""
        return self.has(sha256) and self._size_of(sha256) == len(content) and self.read(sha256) == content

    def _size_of(self, sha256: str) -> int:
        path = self.path(sha256)
        with blame_disk(path):
            return path.stat().st_size

    def missing(self, shas: Iterable[str]) -> tuple[str, ...]:
        """Return those of these digests that do not exist, each once. Renews the age of the others as `has` does."""
        return tuple(sha256 for sha256 in dict.fromkeys(shas) if not self.has(sha256))

    def read(self, sha256: str) -> bytes:
        path = self.path(sha256)
        with blame_disk(path):
            return path.read_bytes()

    def evict(self, keep: Collection[str], now: float, age_seconds: float = HOUR) -> int:
        """Delete blobs that are not in `keep` and older than this, and abandoned uploads. Return the bytes freed."""
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
    """Copy, and return the SHA-256 of the copy: unlike the source, it has no other writers."""
    digest = hashlib.sha256()
    os.lseek(source, 0, os.SEEK_SET)
    at = 0
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(_copy_step, source, copy)
        while count := ahead.result():
            ahead = pool.submit(_copy_step, source, copy)  # copied while this part is read
            for offset in range(at, at + count, _HASH_BYTES):
                digest.update(os.pread(copy, min(_HASH_BYTES, at + count - offset), offset))
            at += count
            if not proceed():
                raise UsageError("the master is stopping", "run it again")
    return digest.hexdigest()


def _copy_step(source: int, copy: int) -> int:
    """Copy the next part and return its size in bytes, 0 at the end. The part before is on disk then."""
    os.fdatasync(copy)  # part by part: syncing everything at the end would take long
    try:  # not every pair of file systems supports it
        return os.copy_file_range(source, copy, _COPY_BYTES)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
    piece = os.read(source, _COPY_BYTES)
    write_all(copy, piece)
    return len(piece)


def _publish(temporary: Path, target: Path) -> None:
    shard = target.parent
    if not shard.exists():
        shard.mkdir(mode=0o700, exist_ok=True)
        disk.sync(shard.parent)
    temporary.replace(target)  # an old file has the same bytes, or is damaged and thus repaired
    disk.sync(shard)
