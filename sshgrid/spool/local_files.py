"""Files of the master's own machine: a client names a file, and the master copies it without a socket in between.

A file that several clients name at the same time is read once. A file that was copied before is not read again when
device, inode, size and both times are the same, as in git's index, and no process had it open for writing. A file that
differs from the one that the client has seen raises UsageError.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import stat
import sys

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.errors import UsageError
from sshgrid.lru import LruCache
from sshgrid.protocol.messages import TakeFile
from sshgrid.spool.spool import Spool

KNOWN = 1000  # files whose digest is remembered
# A file that has just been written may be written again within one tick of its timestamps.
SETTLED_SECONDS = 2.0


class LocalFiles:
    """Copies files that clients of this machine name."""

    def __init__(self, spool: Spool, clock: Clock = SYSTEM_CLOCK) -> None:
        self._spool = spool
        self._clock = clock
        self._known = LruCache[TakeFile, str](KNOWN)
        self._taking: dict[TakeFile, asyncio.Task[str]] = {}
        self._leaving = False

    async def take(self, file: TakeFile) -> str:
        """Copy a file to the spool and return its SHA-256. Raises UsageError, StoreError."""
        if (sha256 := self._known.get(file)) and self._spool.blobs.has(sha256):
            return sha256
        if (taking := self._taking.get(file)) is None:
            taking = self._taking[file] = asyncio.create_task(self._take(file))
            taking.add_done_callback(lambda _: self._taking.pop(file, None))
        return await asyncio.shield(taking)  # other callers may wait for the same file

    async def _take(self, file: TakeFile) -> str:
        sha256, is_at_rest = await asyncio.to_thread(self._copy, file)
        if is_at_rest and self._clock.wall() - file.ctime_ns / 1e9 > SETTLED_SECONDS:
            self._known[file] = sha256
        return sha256

    def _copy(self, file: TakeFile) -> tuple[str, bool]:
        """Return the SHA-256, and whether a later change of the file would change its timestamps."""
        try:
            # O_NONBLOCK: opening a FIFO in its place must not block.
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise UsageError(f"{file.path}: the master cannot read it: {error}") from error
        try:
            _check_same(file, descriptor)
            is_at_rest = _has_no_writer(descriptor)
            sha256 = self._spool.blobs.adopt(descriptor, lambda: not self._leaving)
            _check_same(file, descriptor)
        finally:
            os.close(descriptor)
        return sha256, is_at_rest

    async def close(self) -> None:
        """End the copies that are in progress."""
        self._leaving = True
        await asyncio.gather(*self._taking.values(), return_exceptions=True)


def _check_same(file: TakeFile, descriptor: int) -> None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or TakeFile.of(file.path, found) != file:
        raise UsageError(f"{file.path} was changed while it was read", "run it again")


def _has_no_writer(descriptor: int) -> bool:
    """Return whether no process has the file open for writing: a write to a mapped page may leave the timestamps.

    The kernel then grants a lease, which is returned at once. It grants none for files of other users and on some file
    systems: the result is False there.
    """
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError):
        fcntl.fcntl(
            descriptor, fcntl.F_SETSIG, signal.SIGURG
        )  # another process that opens the file must not kill this one
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True
    return False
