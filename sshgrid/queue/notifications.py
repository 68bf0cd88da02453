"""Notifications that a job has changed, and notices: sentences for the users who watch a job.

A notification has no content. A watcher reads the change from the store and the spool, so no queue of changes is kept.
"""

from __future__ import annotations

import asyncio

from sshgrid.model import JobId

NOTICES_KEPT = 64


class Notifications:
    """The notifications of all jobs of one master."""

    def __init__(self) -> None:
        self._waiters: dict[JobId | None, set[asyncio.Future[None]]] = {}
        self._notices: dict[JobId, list[tuple[int, str]]] = {}  # numbered from 1; only the newest are kept

    def notify(self, job: JobId) -> None:
        """Wake the waiters for this job, and those for any job."""
        for key in (job, None):
            for waiter in self._waiters.get(key, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def notify_all(self) -> None:
        """Wake all waiters."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def add_notice(self, job: JobId, text: str) -> None:
        """Keep a sentence for the watchers of a job, and notify them."""
        notices = self._notices.setdefault(job, [])
        notices.append((notices[-1][0] + 1 if notices else 1, text))
        del notices[:-NOTICES_KEPT]
        self.notify(job)

    def notices(self, job: JobId, after: int = 0) -> list[tuple[int, str]]:
        """The notices with a number above `after`, each with its number."""
        return [notice for notice in self._notices.get(job, ()) if notice[0] > after]

    def drop_notices(self, job: JobId) -> None:
        """Drop the notices of a removed job."""
        self._notices.pop(job, None)

    def listen(self, job: JobId | None) -> asyncio.Future[None]:
        """A future that is done at the next notification. Call it before reading, so that no change is missed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(job, set()).add(waiter)
        waiter.add_done_callback(lambda done: self._remove_waiter(job, done))
        return waiter

    def _remove_waiter(self, job: JobId | None, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(job)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[job]

    async def changed(self, job: JobId | None, seconds: float) -> None:
        """Wait for the next notification, at most `seconds`."""
        waiter = self.listen(job)
        await asyncio.wait([waiter], timeout=seconds)
        waiter.cancel()
