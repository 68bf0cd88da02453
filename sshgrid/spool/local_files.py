"""Files of the master's own machine: its owner's clients name them, and the master takes a copy by itself.

A gigabyte that need not go through a socket is read once, however many clients name it at the same moment, and not at
all when it is known: by device, inode, size and both its times, as git's index knows a file, and only when nobody had
it open to write. Refuses a file that is not, or no longer, the one that the client has seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import stat
import sys
import time

from sshgrid.errors import UsageError
from sshgrid.lru import LruCache
from sshgrid.protocol.messages import TakeFile
from sshgrid.spool.spool import Spool

KNOWN = 1000  # files whose digest is remembered
# A file that was written to so shortly before may be written to again within one tick of the clock of its times.
SETTLED_SECONDS = 2.0


class LocalFiles:
    """The files that clients of this machine hand over."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._known = LruCache[TakeFile, str](KNOWN)
        self._taking: dict[TakeFile, asyncio.Task[str]] = {}
        self._leaving = False

    async def take(self, file: TakeFile) -> str:
        """Its SHA-256, under which the spool has it. UsageError, StoreError."""
        if (sha256 := self._known.get(file)) and self._spool.blobs.has(sha256):
            return sha256
        if (taking := self._taking.get(file)) is None:
            taking = self._taking[file] = asyncio.create_task(self._take(file))
            taking.add_done_callback(lambda _: self._taking.pop(file, None))
        return await asyncio.shield(taking)  # others may wait for it, too

    async def _take(self, file: TakeFile) -> str:
        sha256, rests = await asyncio.to_thread(self._copy, file)
        if rests and time.time() - file.ctime_ns / 1e9 > SETTLED_SECONDS:
            self._known[file] = sha256
        return sha256

    def _copy(self, file: TakeFile) -> tuple[str, bool]:
        """Its SHA-256, and whether nobody could write to it unseen."""
        try:
            # O_NONBLOCK: a FIFO in its place must not keep us.
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            raise UsageError(f"{file.path}: the master cannot read it: {error}") from error
        try:
            _check_same(file, descriptor)
            rests = _rests(descriptor)
            sha256 = self._spool.blobs.adopt(descriptor, lambda: not self._leaving)
            _check_same(file, descriptor)
        finally:
            os.close(descriptor)
        return sha256, rests

    async def close(self) -> None:
        """What is under way ends early."""
        self._leaving = True
        await asyncio.gather(*self._taking.values(), return_exceptions=True)


def _check_same(file: TakeFile, descriptor: int) -> None:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or TakeFile.of(file.path, found) != file:
        raise UsageError(f"{file.path} was changed while it was read", "run it again")


def _rests(descriptor: int) -> bool:
    """Whether nobody has it open to write: into a page that is mapped one may write without a new time.

    The kernel tells by granting a lease, which is given back at once. False also where it grants none: for files of
    others, and on some file systems.
    """
    if sys.platform != "linux":
        return False
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)  # who opens it meanwhile must not end us
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        return True
    return False
