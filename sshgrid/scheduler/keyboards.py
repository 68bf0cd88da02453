"""What users type into interactive runs, kept from the submission until the run reads it."""

from __future__ import annotations

import asyncio

from sshgrid.engines import Keyboard
from sshgrid.model import Job, JobId, Phase

MAX_UNREAD_PIECES = 64  # a client that sends faster than the program reads has to wait


class Keyboards:
    """The unread input of each interactive job."""

    def __init__(self) -> None:
        self._keyboards: dict[JobId, Keyboard] = {}

    def of(self, job_id: JobId) -> Keyboard:
        """The keyboard of an interactive job."""
        return self._keyboards.setdefault(job_id, asyncio.Queue(MAX_UNREAD_PIECES))

    async def put_input(self, job: Job, piece: bytes) -> None:
        """Append to the standard input of a job; dropped when the job has ended or is not interactive."""
        if job.submission.interactive and job.phase is not Phase.DONE:
            await self.of(job.id).put(piece)

    async def put_window_size(self, job: Job, columns: int, rows: int) -> None:
        """As `put_input`, for a new size of the terminal window."""
        if job.submission.interactive and job.phase is not Phase.DONE:
            await self.of(job.id).put((columns, rows))

    def remove(self, job_id: JobId) -> None:
        """Drop the unread input of a job that has ended."""
        self._keyboards.pop(job_id, None)

    def __len__(self) -> int:
        return len(self._keyboards)
