"""Who waits for news of which job, and the sentences that were said about it.

News is only "look again": what is new is read from the store and the spool, so nothing is queued for anybody.
"""

from __future__ import annotations

import asyncio

from sshgrid.model import JobId

NOTICES_KEPT = 64


class Notifications:
    """One for all jobs of a master."""

    def __init__(self) -> None:
        self._waiters: dict[JobId | None, set[asyncio.Future[None]]] = {}
        self._notices: dict[JobId, list[tuple[int, str]]] = {}  # numbered from 1: the oldest ones go

    def tell(self, job: JobId) -> None:
        """Something about this job is new."""
        for key in (job, None):
            for waiter in self._waiters.get(key, ()):
                if not waiter.done():
                    waiter.set_result(None)

    def tell_all(self) -> None:
        """Something about the nodes is new, which may concern every waiting job."""
        for waiters in self._waiters.values():
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def say(self, job: JobId, text: str) -> None:
        notices = self._notices.setdefault(job, [])
        notices.append((notices[-1][0] + 1 if notices else 1, text))
        del notices[:-NOTICES_KEPT]
        self.tell(job)

    def notices(self, job: JobId, heard: int = 0) -> list[tuple[int, str]]:
        """The sentences with a number above `heard`, each with its number."""
        return [notice for notice in self._notices.get(job, ()) if notice[0] > heard]

    def forget(self, job: JobId) -> None:
        self._notices.pop(job, None)

    def listen(self, job: JobId | None) -> asyncio.Future[None]:
        """Done at the next news; ask for it before looking, so that nothing falls in between."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(job, set()).add(waiter)
        waiter.add_done_callback(lambda done: self._leave(job, done))
        return waiter

    def _leave(self, job: JobId | None, waiter: asyncio.Future[None]) -> None:
        waiters = self._waiters.get(job)
        if waiters is not None:
            waiters.discard(waiter)
            if not waiters:
                del self._waiters[job]

    async def changed(self, job: JobId | None, seconds: float) -> None:
        waiter = self.listen(job)
        await asyncio.wait([waiter], timeout=seconds)
        waiter.cancel()
