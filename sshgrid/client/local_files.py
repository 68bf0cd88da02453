"""Large files go to a master on this machine by name: it reads them by itself, once, whoever else names them.

Nothing is refused here: what the master will not read is read by the client, and sent.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, BinaryIO

from sshgrid.errors import SshgridError
from sshgrid.protocol.messages import TakeFile, Taken

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.client.session import Session

LARGE_BYTES = 8 << 20


class LocalFileOffer:
    """A context manager: the connection over which files are named lasts as long as it. `able`: any may be named."""

    def __init__(self, session: Session, *, able: bool = True) -> None:
        self._session = session
        self._connection: Connection | None = None
        self._able = able and session.gateway is None and not session.master

    def __enter__(self) -> LocalFileOffer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def digest(self, path: str, stream: BinaryIO) -> str:
        """The SHA-256 under which the master has kept this file; "" when it has not."""
        found = os.fstat(stream.fileno())
        if not self._able or not stat.S_ISREG(found.st_mode) or found.st_size < LARGE_BYTES:
            return ""
        try:
            if self._connection is None:
                self._connection = self._session.connect()
            return self._connection.request(TakeFile.of(os.path.abspath(path), found), Taken).sha256
        except (SshgridError, UnicodeEncodeError):  # a path that is not UTF-8 cannot be said
            # Whatever is wrong with the file or the master will be said by the ordinary way.
            self._able = False
            return ""
