"""Offer large files by name to a master on this machine, which reads each of them once, for all of its clients.

A file that the master does not read is read and sent by the client.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, BinaryIO

from sshgrid.errors import SshgridError
from sshgrid.protocol.messages import TakeFile, TakeFileReply

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.client.session import Session

LARGE_BYTES = 8 << 20


class LocalFileOffer:
    """Offers files over a connection that is closed at the end of the `with` block. `enabled` = False offers none."""

    def __init__(self, session: Session, *, enabled: bool = True) -> None:
        self._session = session
        self._connection: Connection | None = None
        self._enabled = enabled and session.gateway is None and not session.master

    def __enter__(self) -> LocalFileOffer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def digest(self, path: str, stream: BinaryIO) -> str:
        """The SHA-256 under which the master has stored this file; "" when it has not read it."""
        found = os.fstat(stream.fileno())
        if not self._enabled or not stat.S_ISREG(found.st_mode) or found.st_size < LARGE_BYTES:
            return ""
        try:
            if self._connection is None:
                self._connection = self._session.connect()
            return self._connection.request(TakeFile.of(os.path.abspath(path), found), TakeFileReply).sha256
        except (SshgridError, UnicodeEncodeError):  # the path is not UTF-8
            # The client sends the file itself, and reports errors of the file or the master then.
            self._enabled = False
            return ""
