"""The byte streams that carry the protocol: a Unix socket, or a channel of an SSH connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from sshgrid.model import User


class ByteReader(Protocol):
    """The bytes that a client sends."""

    async def read(self, n: int = -1, /) -> bytes:
        """At most `n` bytes; b"" at the end. Raises ConnectionError when the connection is lost."""


class ByteWriter(Protocol):
    """The bytes that a client receives."""

    def write(self, data: bytes, /) -> None: ...

    async def drain(self) -> None:
        """Wait until the peer has read enough of what was written."""


# Serves the protocol to an authenticated user until the stream ends; the text is the address of the client.
ServeClient: TypeAlias = Callable[[ByteReader, ByteWriter, User, str], Awaitable[None]]
