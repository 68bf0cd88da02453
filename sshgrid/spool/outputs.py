"""Outputs: the bytes that each attempt has printed, one file for each stream.

An output only grows; its size is the offset at which an engine continues. Job numbers, attempt numbers and stream names
are checked before they become part of a path.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from sshgrid.errors import UsageError
from sshgrid.lru import LruCache
from sshgrid.model import STREAMS, JobId, sweep_of, task_number
from sshgrid.spool import disk
from sshgrid.spool.disk import blame_disk, write_all

MAX_OPEN = 64  # descriptors that are kept open
FEW_FILES = 8  # above this number, syncing the whole file system is cheaper than syncing each file
RESERVED_BYTES = 256 << 20  # of the disk, for the queue
_BLOCK = 65536

OutputName = tuple[JobId, int, str]


class OpenOutput(NamedTuple):
    """An output that is open for appending."""

    descriptor: int
    size: int

    def close(self) -> None:
        os.close(self.descriptor)


class Outputs:
    """The outputs of one master, in one folder. Methods block for the time of one disk access."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        disk.private_directory(directory, forbidden=0o077)
        self._open = LruCache[OutputName, OpenOutput](MAX_OPEN, on_evict=lambda _, output: output.close())
        self._unsynced: set[OutputName] = set()

    def close(self) -> None:
        for name in list(self._open):
            self._close(name)

    def append(self, job: JobId, attempt: int, stream: str, piece: bytes) -> int:
        """Append to an output and return its new size. After a StoreError `size` shows how much was written."""
        name = (job, attempt, stream)
        path = self._output(*name)
        with blame_disk(path):
            output = self._open.pop(name) or _open_output(path)
            try:
                write_all(output.descriptor, piece)
            except BaseException:
                output.close()
                raise
            size = output.size + len(piece)
            self._open[name] = OpenOutput(output.descriptor, size)
            self._unsynced.add(name)
        return size

    def _close(self, name: OutputName) -> None:
        if output := self._open.pop(name):
            output.close()

    def restart(self, job: JobId, attempt: int, stream: str) -> None:
        """Remove an output: it starts again from its first byte."""
        name = (job, attempt, stream)
        path = self._output(*name)
        self._close(name)
        with blame_disk(path):
            path.unlink(missing_ok=True)

    def room(self) -> int:
        """Return how many bytes can be written before the space that is reserved for the queue is used."""
        with blame_disk(self.directory):
            return max(0, shutil.disk_usage(self.directory).free - RESERVED_BYTES)

    def size(self, job: JobId, attempt: int, stream: str) -> int:
        """Return the size in bytes; 0 when nothing was printed."""
        path = self._output(job, attempt, stream)
        with blame_disk(path):
            try:
                return path.stat().st_size
            except FileNotFoundError:
                return 0

    def sizes(self, job: JobId, attempt: int) -> Counter[str]:
        """Return the sizes of all streams of an attempt, with one disk access when the job has printed nothing."""
        sizes: Counter[str] = Counter()
        folder = f"{self.directory}/{_folder_of(job)}"  # a string: this is called for each task of a sweep
        with blame_disk(self.directory):
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

    def resume(self, job: JobId, attempt: int, stream: str) -> int:
        """As `size`, for an output that an earlier master may not have brought to disk: `sync` will do it."""
        size = self.size(job, attempt, stream)
        if size:
            self._unsynced.add((job, attempt, stream))
        return size

    def read(self, job: JobId, attempt: int, stream: str, offset: int, max_bytes: int) -> bytes:
        """Return at most `max_bytes` from `offset`; b"" at the end."""
        with self._reading(self._output(job, attempt, stream)) as descriptor:
            return b"" if descriptor is None else os.pread(descriptor, max_bytes, offset)

    def tail(self, job: JobId, attempt: int, stream: str, lines: int) -> int:
        """Return the offset of the last `lines` lines; an incomplete last line counts as one."""
        with self._reading(self._output(job, attempt, stream)) as descriptor:
            return 0 if descriptor is None else _start_of_last(descriptor, lines)

    def sync(self, attempts: Iterable[tuple[JobId, int]]) -> None:
        """Bring all output of these attempts to disk. Must be called before they are settled."""
        names = [(job, number, stream) for job, number in attempts for stream in STREAMS]
        names = [name for name in names if name in self._unsynced]
        if not names:
            return
        paths = [self._output(*name) for name in names]
        with blame_disk(self.directory):
            if len(paths) > FEW_FILES:
                disk.sync_all(self.directory)
            else:
                folders = [folder for path in paths for folder in (path.parent, path.parent.parent, self.directory)]
                for path in (*paths, *dict.fromkeys(folders)):
                    disk.sync(path)
        self._unsynced.difference_update(names)

    def remove(self, job: JobId) -> None:
        """Remove all output of a job."""
        folder = self._folder(job)
        for name in [name for name in self._open if job in (name[0], sweep_of(name[0]))]:
            self._close(name)
        self._unsynced = {name for name in self._unsynced if job not in (name[0], sweep_of(name[0]))}
        with blame_disk(folder):
            if folder.exists():
                shutil.rmtree(folder)

    def remove_after(self, job: JobId, attempt: int) -> None:
        """Remove the output of attempts after this one, which the queue does not have."""
        folder = self._folder(job)
        with blame_disk(folder):
            for path in folder.iterdir() if folder.exists() else ():
                number = path.name.partition(".")[0]
                if number.isdecimal() and int(number) > attempt:
                    path.unlink()

    def jobs(self) -> list[JobId]:
        """Return the jobs that have output. One that the queue does not have is left from a crash."""
        with blame_disk(self.directory):
            return sorted(JobId(int(entry.name)) for entry in self.directory.iterdir() if entry.name.isdecimal())

    def _folder(self, job: JobId) -> Path:
        return self.directory / _folder_of(job)

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
    """Return the name of a job's folder. Raises UsageError."""
    sweep = sweep_of(job) if isinstance(job, int) else None
    if not isinstance(job, int) or job == 0 or sweep == 0 or (sweep and not task_number(job)):
        raise UsageError(f"not a job number: {job!r}")
    return str(job) if sweep is None else f"{sweep}/t{task_number(job)}"


def _open_output(path: Path) -> OpenOutput:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileNotFoundError:
        path.parent.parent.mkdir(mode=0o700, exist_ok=True)  # the sweep's folder, when this is a task
        path.parent.mkdir(mode=0o700)
        descriptor = os.open(path, flags, 0o600)
    return OpenOutput(descriptor, os.fstat(descriptor).st_size)


def _start_of_last(descriptor: int, lines: int) -> int:
    """Search backwards block by block: the cost depends on the lines returned, not on the size of the file."""
    end = os.fstat(descriptor).st_size
    if lines <= 0 or end == 0:
        return end
    # The newline at the end of the last line starts no further line.
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
