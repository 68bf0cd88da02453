"""Bytes that the master keeps beside the queue: uploaded files by their SHA-256, and what each attempt printed.

A file has its name only when it is whole, checked and on disk. Output only ever grows; its size is the offset to go on
from. Refuses names that are not a digest, a number or a known stream: no path is made of what a user typed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from sshgrid.errors import UsageError
from sshgrid.model import JobId, sweep_of, task_number
from sshgrid.spool import disk
from sshgrid.spool.disk import blame_disk

STREAMS = ("stdout", "stderr", "compile", "files")  # files: a tar archive of what was brought back
MAX_OPEN = 64
FEW_FILES = 8  # above that it is cheaper to bring the whole file system to disk
MOST_TOGETHER = 256  # files that get their names together: the loop waits for the disk as long
FRESH_SECONDS = 60.0  # a file that is marked as asked for is not marked again for so long: that costs more than a look
RESERVED_BYTES = 256 << 20
HOUR = 3600.0
_BLOCK = 65536
_COPY_BYTES = 32 << 20
_HASH_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHARD = re.compile(r"[0-9a-f]{2}")

OutputName = tuple[JobId, int, str]


class BlobWriter:
    """A file on its way in. It is not there before `finish`; `abort` or a failure leaves nothing behind."""

    def __init__(self, spool: Spool, sha256: str, size: int | None) -> None:
        self._target = spool.path(sha256)
        self._sha256 = sha256
        self._size = size
        self._hash = hashlib.sha256()
        self._written = 0
        with blame_disk(spool.incoming):
            self._descriptor, self._aside = disk.create_aside(spool.incoming, f"{sha256[:8]}.")
        self._spool = spool
        spool.unfinished.add(self._aside)

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
                _write_all(self._descriptor, piece)
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
        """As `finish`, but it has its name only after `Spool.publish`: of many files that costs a fraction."""
        try:
            self._check()
            os.close(self._descriptor)
            self._descriptor = -1
            self._spool.whole(self._sha256, self._aside)
        finally:
            self.abort()

    def abort(self) -> None:
        """Forget the file; nothing happens after `finish` or a second time."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            self._aside.unlink(missing_ok=True)
            self._spool.unfinished.discard(self._aside)

    def _check(self) -> None:
        if self._size is not None and self._written != self._size:
            raise UsageError(f"file {self._sha256[:12]}: {self._written} bytes came, {self._size} were announced")
        if (found := self._hash.hexdigest()) != self._sha256:
            raise UsageError(f"file {self._sha256[:12]}: the bytes that came have SHA-256 {found[:12]}")


def _copy_and_digest(source: int, copy: int, go_on: Callable[[], bool]) -> str:
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
            if not go_on():
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
    _write_all(copy, piece)
    return len(piece)


def _publish(aside: Path, target: Path) -> None:
    shard = target.parent
    if not shard.exists():
        shard.mkdir(mode=0o700, exist_ok=True)
        disk.sync(shard.parent)
    aside.replace(target)  # also over an old one: the same bytes, or a damaged file healed
    disk.sync(shard)


class Spool:
    """One folder of one master. Methods block, for the time of one disk access."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs = directory / "blobs"
        self.outputs = directory / "out"
        self.incoming = directory / "incoming"
        self.unfinished: set[Path] = set()  # in `incoming`, and still written to
        for folder in (directory, self.blobs, self.outputs, self.incoming):
            disk.private_directory(folder, forbidden=0o077)
        self._whole: dict[str, Path] = {}  # by digest: checked, and without a name yet
        self._open: OrderedDict[OutputName, tuple[int, int]] = OrderedDict()  # -> (descriptor, size)
        self._unsynced: set[OutputName] = set()

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1][0])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # --- files by digest ----------------------------------------------------------------------------------------------

    def writer(self, sha256: str, size: int | None = None) -> BlobWriter:
        """A file that comes in pieces; without `size` its digest alone says whether it is whole."""
        return BlobWriter(self, sha256, size)

    def adopt(self, descriptor: int, go_on: Callable[[], bool] = lambda: True) -> str:
        """Keep a copy of an open file, which shares its blocks where the file system can; gives its SHA-256.

        UsageError when it gives more or fewer bytes than it is said to have. Durable on return, and takes as long as
        the file is large: for a thread. It ends early, with UsageError, when it shall not `go_on`.
        """
        with blame_disk(self.incoming):
            copy, aside = disk.create_aside(self.incoming, "adopted.")
        self.unfinished.add(aside)
        try:
            with blame_disk(aside):
                target = self.path(_copy_and_digest(descriptor, copy, go_on))
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

    def whole(self, sha256: str, aside: Path) -> None:
        """This file has all its bytes. It gets its name with others."""
        before = self._whole.pop(sha256, None)
        self._whole[sha256] = aside
        if before is not None:
            before.unlink(missing_ok=True)
            self.unfinished.discard(before)
        if len(self._whole) >= MOST_TOGETHER:
            self.publish()

    def publish(self) -> None:
        """What is whole gets its name, durably. One round of waiting for the disk, however many files there are."""
        files, self._whole = self._whole, {}
        if not files:
            return
        try:
            with blame_disk(self.blobs):
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
        disk.sync_all(self.blobs)

    def path(self, sha256: str) -> Path:
        """Where the file is, or will be."""
        if not _SHA256.fullmatch(sha256):
            raise UsageError(f"not a SHA-256: {sha256[:80]!r}")
        return self.blobs / sha256[:2] / sha256

    def has(self, sha256: str) -> bool:
        """Is it here? A file that was asked for counts as new again: `sweep` leaves it for another hour (less a
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
        """Which of these are not here, each once. What is here stays for at least the time that `sweep` grants."""
        return tuple(sha256 for sha256 in dict.fromkeys(shas) if not self.has(sha256))

    def read(self, sha256: str) -> bytes:
        path = self.path(sha256)
        with blame_disk(path):
            return path.read_bytes()

    def sweep(self, keep: Collection[str], now: float, age_seconds: float = HOUR) -> int:
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
        for shard in self.blobs.iterdir():
            if _SHARD.fullmatch(shard.name):
                yield from (path for path in shard.iterdir() if _SHA256.fullmatch(path.name))

    # --- what attempts printed ----------------------------------------------------------------------------------------

    def append(self, job: JobId, attempt: int, stream: str, piece: bytes) -> int:
        """Add to an output and give its new size. After a StoreError a first part may be kept: `size` says how much."""
        name = (job, attempt, stream)
        path = self._output(*name)
        with blame_disk(path):
            descriptor, size = self._open.pop(name) if name in self._open else _open_output(path)
            try:
                _write_all(descriptor, piece)
            except BaseException:
                os.close(descriptor)
                raise
            self._open[name] = (descriptor, size + len(piece))
            self._unsynced.add(name)
            if len(self._open) > MAX_OPEN:
                os.close(self._open.popitem(last=False)[1][0])
        return size + len(piece)

    def restart(self, job: JobId, attempt: int, stream: str) -> None:
        """Forget what is kept of an output: it begins anew."""
        name = (job, attempt, stream)
        path = self._output(*name)
        if name in self._open:
            os.close(self._open.pop(name)[0])
        with blame_disk(path):
            path.unlink(missing_ok=True)

    def room(self) -> int:
        """Bytes that may be kept here before the disk is so full that the queue is in danger."""
        with blame_disk(self.outputs):
            return max(0, shutil.disk_usage(self.outputs).free - RESERVED_BYTES)

    def size(self, job: JobId, attempt: int, stream: str) -> int:
        """Bytes kept so far; 0 when nothing was printed."""
        path = self._output(job, attempt, stream)
        with blame_disk(path):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return 0

    def sizes(self, job: JobId, attempt: int) -> Counter[str]:
        """The same of all streams of an attempt: one look at the disk when the job has printed nothing."""
        sizes: Counter[str] = Counter()
        folder = f"{self.outputs}/{_folder_of(job)}"  # as text: this is asked for each task of a sweep
        with blame_disk(self.outputs):
            try:
                entries = os.scandir(folder)
            except FileNotFoundError:
                return sizes
            with entries:
                for entry in entries:
                    number, _, stream = entry.name.partition(".")
                    if number == str(attempt):
                        sizes[stream] = entry.stat(follow_symlinks=False).st_size
        return sizes

    def go_on(self, job: JobId, attempt: int, stream: str) -> int:
        """As `size`, for an output that an earlier master may have begun and not brought to disk."""
        size = self.size(job, attempt, stream)
        if size:
            self._unsynced.add((job, attempt, stream))
        return size

    def read_output(self, job: JobId, attempt: int, stream: str, offset: int, max_bytes: int) -> bytes:
        """At most `max_bytes` from `offset` on; b"" at the end of what is kept."""
        with self._reading(self._output(job, attempt, stream)) as descriptor:
            return b"" if descriptor is None else os.pread(descriptor, max_bytes, offset)

    def tail(self, job: JobId, attempt: int, stream: str, lines: int) -> int:
        """Offset at which the last `lines` lines begin; an unfinished last line counts as one."""
        with self._reading(self._output(job, attempt, stream)) as descriptor:
            return 0 if descriptor is None else _start_of_last(descriptor, lines)

    def sync(self, attempts: Iterable[tuple[JobId, int]]) -> None:
        """All output of these attempts survives a power cut from now on: to be called before they are settled."""
        names = [(job, number, stream) for job, number in attempts for stream in STREAMS]
        names = [name for name in names if name in self._unsynced]
        if not names:
            return
        paths = [self._output(*name) for name in names]
        with blame_disk(self.outputs):
            if len(paths) > FEW_FILES:
                disk.sync_all(self.outputs)
            else:
                folders = [folder for path in paths for folder in (path.parent, path.parent.parent, self.outputs)]
                for path in (*paths, *dict.fromkeys(folders)):
                    disk.sync(path)
        self._unsynced.difference_update(names)

    def remove(self, job: JobId) -> None:
        """Forget all output of a job."""
        folder = self._folder(job)
        for name in [name for name in self._open if job in (name[0], sweep_of(name[0]))]:
            os.close(self._open.pop(name)[0])
        self._unsynced = {name for name in self._unsynced if job not in (name[0], sweep_of(name[0]))}
        with blame_disk(folder):
            if folder.exists():
                shutil.rmtree(folder)

    def remove_after(self, job: JobId, attempt: int) -> None:
        """Forget the output of later attempts than this one, which the queue does not know."""
        folder = self._folder(job)
        with blame_disk(folder):
            for path in folder.iterdir() if folder.exists() else ():
                number = path.name.partition(".")[0]
                if number.isdecimal() and int(number) > attempt:
                    path.unlink()

    def jobs(self) -> list[JobId]:
        """Jobs that have output here: those that the queue does not know are left over from a crash."""
        with blame_disk(self.outputs):
            return sorted(JobId(int(entry.name)) for entry in self.outputs.iterdir() if entry.name.isdecimal())

    def _folder(self, job: JobId) -> Path:
        return self.outputs / _folder_of(job)

    def _output(self, job: JobId, attempt: int, stream: str) -> Path:
        if not isinstance(attempt, int) or attempt < 1:
            raise UsageError(f"not an attempt number: {attempt!r}")
        if stream not in STREAMS:
            raise UsageError(f"no such stream: {stream[:80]!r}", f"one of {', '.join(STREAMS)}")
        return self._folder(job) / f"{int(attempt)}.{stream}"

    @contextmanager
    def _reading(self, path: Path) -> Iterator[int | None]:
        with blame_disk(path):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                yield None
                return
            try:
                yield descriptor
            finally:
                os.close(descriptor)


def _folder_of(job: JobId) -> str:
    """Its name below `outputs`."""
    sweep = sweep_of(job) if isinstance(job, int) else None
    if not isinstance(job, int) or job == 0 or sweep == 0 or (sweep and not task_number(job)):
        raise UsageError(f"not a job number: {job!r}")
    return str(job) if sweep is None else f"{sweep}/t{task_number(job)}"


def _open_output(path: Path) -> tuple[int, int]:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.parent.mkdir(mode=0o700, exist_ok=True)  # of the sweep, when this is a task
        path.parent.mkdir(mode=0o700)
        descriptor = os.open(path, flags, 0o600)
    return descriptor, os.fstat(descriptor).st_size


def _write_all(descriptor: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _start_of_last(descriptor: int, lines: int) -> int:
    """Search backwards, a block at a time: a log of gigabytes costs no more than what is shown of it."""
    end = os.fstat(descriptor).st_size
    if lines <= 0 or end == 0:
        return end
    # The newline that ends the last line does not begin another one.
    left = lines + (os.pread(descriptor, 1, end - 1) == b"\n")
    while end > 0:
        start = max(0, end - _BLOCK)
        block = os.pread(descriptor, end - start, start)
        at = len(block)
        while (at := block.rfind(b"\n", 0, at)) >= 0:
            left -= 1
            if left == 0:
                return start + at + 1
        end = start
    return 0
