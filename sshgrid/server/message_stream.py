"""Messages over one client's byte stream.

A client that sends many requests at once is interrupted after a few, so that other clients are answered in between.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from sshgrid.errors import UsageError
from sshgrid.protocol.codec import Decoder, encode, failure
from sshgrid.protocol.messages import Message
from sshgrid.protocol.streams import ByteReader, ByteWriter

READ_BYTES = 256 * 1024
MESSAGES_PER_TURN = 8  # then the other clients are served
UNSENT_BYTES = 64 * 1024


class MessageStream:
    """Reads and writes messages. A message is read by the task that waits for it, without a reader task."""

    def __init__(self, reader: ByteReader, writer: ByteWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder()
        self._inbox: deque[tuple[Message, bytes]] = deque()  # received, and not yet given out
        self._error: UsageError | None = None  # raised by the bytes after the inbox
        self._given = 0
        self._unsent = bytearray()  # events that are sent together

    async def next(self) -> tuple[Message, bytes] | None:
        """The next message with its payload; None when the client has left.

        Bytes that are not the protocol are answered with `Failure`, and the result is None.
        """
        self._given += 1
        if self._given % MESSAGES_PER_TURN == 0:
            await asyncio.sleep(0)
        while not self._inbox:
            if self._error:
                await self.send(failure(self._error))
                return None
            try:
                piece = await self._reader.read(READ_BYTES)
            except ConnectionError:
                return None
            if not piece:
                return None
            try:
                for message in self._decoder.feed(piece):
                    self._inbox.append(message)
            except UsageError as error:
                self._error = error  # the messages before it are answered first
        return self._inbox.popleft()

    def put_back(self, message: Message, payload: bytes) -> None:
        """Make this message the next one again."""
        self._inbox.appendleft((message, payload))

    async def send(self, message: Message, payload: bytes = b"") -> None:
        """Send a message now. Raises ConnectionError when the client has left."""
        self._flush()
        self._writer.write(encode(message, payload))
        await self._writer.drain()

    async def send_soon(self, message: Message, payload: bytes = b"") -> None:
        """Send a message together with those that follow in the same round of the event loop.

        Each write wakes the client, and events often come many at a time. Raises ConnectionError.
        """
        if not self._unsent:
            asyncio.get_running_loop().call_soon(self._flush_unless_closed)
        self._unsent += encode(message, payload)
        if len(self._unsent) >= UNSENT_BYTES:
            self._flush()
        await self._writer.drain()

    async def flush(self) -> None:
        """Send everything now. Raises ConnectionError."""
        self._flush()
        await self._writer.drain()

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, bytearray()
        if unsent:
            self._writer.write(bytes(unsent))

    def _flush_unless_closed(self) -> None:
        with contextlib.suppress(ConnectionError):  # the next send raises it
            self._flush()
