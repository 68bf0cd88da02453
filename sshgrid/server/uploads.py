"""The files that one client uploads, before a job names them.

A user may name a file in a submission when this session has uploaded it or one of the user's jobs names it: knowing a
digest is not enough to use the file of another user.
"""

from __future__ import annotations

from collections.abc import Iterable

from sshgrid.errors import SshgridError, UsageError
from sshgrid.model import Submission, User
from sshgrid.policy import access
from sshgrid.protocol.messages import PutBlob
from sshgrid.scheduler import admission
from sshgrid.server.grid import Grid
from sshgrid.spool.blobs import BlobWriter

MAX_UPLOADS = 64


class Uploads:
    """The uploads of one session."""

    def __init__(self, grid: Grid, user: User) -> None:
        self._grid = grid
        self._spool = grid.spool
        self._user = user
        self._sizes: dict[str, int] = {}  # digest -> uploaded bytes that no job has claimed
        self._incoming: dict[str, BlobWriter] = {}
        self._refused: set[str] = set()  # files that failed, while more pieces of them arrive

    def take(self, message: PutBlob, piece: bytes) -> None:
        """Add a piece of a file. After an error the other pieces of that file are ignored.

        Raises OverLimit, UsageError, StoreError.
        """
        sha256 = message.sha256
        if sha256 in self._refused:
            if message.last:
                self._refused.discard(sha256)
            return
        if sha256 not in self._incoming and message.last and self._spool.blobs.holds(sha256, piece):
            self._sizes.setdefault(sha256, 0)
            return
        blob = self._incoming.get(sha256) or self._begin(sha256)
        try:
            if not access.sees_all_jobs(self._user):
                self._grid.accounts.add_upload(self._user.name, len(piece))
            blob.append(piece)
            if message.last:
                blob.finish_later()
            self._sizes[sha256] = self._sizes.get(sha256, 0) + len(piece)
        except SshgridError:
            blob.abort()
            if not message.last:
                self._refused.add(sha256)
            raise
        finally:
            if message.last or sha256 in self._refused:
                self._incoming.pop(sha256, None)

    def _begin(self, sha256: str) -> BlobWriter:
        if len(self._incoming) >= MAX_UPLOADS:
            raise UsageError(f"more than {MAX_UPLOADS} files are uploaded at the same time")
        blob = self._incoming[sha256] = self._spool.blobs.writer(sha256)
        return blob

    def missing(self, digests: tuple[str, ...]) -> tuple[str, ...]:
        """The files that this client must upload before it can name them in a submission."""
        return tuple(dict.fromkeys((*self._spool.blobs.missing(digests), *self._foreign(digests))))

    def check(self, submission: Submission) -> None:
        """Raise UsageError when the submission names files that this user may not use."""
        if missing := self._foreign(admission.digests(submission, self._spool)):
            files = "1 file of this job was" if len(missing) == 1 else f"{len(missing)} files of this job were"
            raise UsageError(f"{files} not uploaded")

    def claim(self) -> None:
        """The uploaded bytes belong to a job now: stop counting them against the limit of the user."""
        self._grid.accounts.claim_upload(self._user.name, sum(self._sizes.values()))
        self._sizes = dict.fromkeys(self._sizes, 0)

    def close(self) -> None:
        """Discard files that are not complete."""
        for blob in self._incoming.values():
            blob.abort()

    def _foreign(self, digests: Iterable[str]) -> tuple[str, ...]:
        """The files that this user has neither uploaded here nor named in a job."""
        unknown = set() if access.sees_all_jobs(self._user) else set(digests) - self._sizes.keys()
        return tuple(unknown - self._grid.job_queries.files_of(self._user.name)) if unknown else ()
