"""A protocol client for tests, over a Unix socket; each wait has a deadline."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from types import TracebackType
from typing import TypeVar

from sshgrid.model import JobId, Program, SourceFile, Submission
from sshgrid.protocol.codec import Decoder, encode
from sshgrid.protocol.messages import (
    PROTOCOL,
    Accepted,
    Ended,
    Hello,
    JobLine,
    Message,
    Output,
    PutBlob,
    Submit,
    Watch,
    Welcome,
)

DEADLINE_SECONDS = 15.0
M = TypeVar("M")


class Talk:
    """One connection. Every wait has a deadline."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._decoder = Decoder()
        self._inbox: deque[tuple[Message, bytes]] = deque()

    @classmethod
    async def open(cls, path: str, protocol: int | None = PROTOCOL, limit: int = 1 << 16) -> Talk:
        """Connect, and exchange versions unless `protocol` is None."""
        talk = cls(*await asyncio.open_unix_connection(path, limit=limit))
        if protocol is not None:
            await talk.send(Hello("test", protocol))
            if protocol == PROTOCOL:
                await talk.expect(Welcome)
        return talk

    async def __aenter__(self) -> Talk:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, at: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        self.writer.transport.abort()
        await asyncio.sleep(0)

    async def send(self, message: Message, payload: bytes = b"") -> None:
        await self.send_raw(encode(message, payload))

    async def send_raw(self, data: bytes) -> None:
        self.writer.write(data)
        async with asyncio.timeout(DEADLINE_SECONDS):
            await self.writer.drain()

    async def next(self) -> tuple[Message, bytes] | None:
        """The next message; None when the master has closed."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not self._inbox:
                try:
                    piece = await self.reader.read(1 << 18)
                except ConnectionError:
                    return None
                if not piece:
                    return None
                self._inbox.extend(self._decoder.feed(piece))
        return self._inbox.popleft()

    async def expect(self, kind: type[M]) -> M:
        found = await self.next()
        assert found is not None, f"closed instead of {kind.__name__}"
        assert isinstance(found[0], kind), found[0]
        return found[0]

    async def request(self, request: Message, kind: type[M], payload: bytes = b"") -> M:
        await self.send(request, payload)
        return await self.expect(kind)

    async def until(self, kind: type[M]) -> M:
        """The next message of this kind; others are skipped."""
        while found := await self.next():
            if isinstance(found[0], kind):
                return found[0]
        raise AssertionError(f"closed before a {kind.__name__}")

    # --- jobs

    async def put(self, content: bytes, piece_bytes: int = 1 << 20) -> str:
        digest = hashlib.sha256(content).hexdigest()
        pieces = [content[at : at + piece_bytes] for at in range(0, len(content), piece_bytes)] or [b""]
        for number, piece in enumerate(pieces, 1):
            await self.send(PutBlob(digest, len(piece), number == len(pieces)), piece)
        return digest

    async def submit(self, source: bytes, key: str, *args: bytes, name: str = "a.sh") -> JobId:
        digest = await self.put(source)
        program = Program("", name, (SourceFile(name, digest, len(source)),), args)
        return (await self.request(Submit(Submission(program, name), key), Accepted)).job

    async def watch(self, job: JobId) -> tuple[dict[str, bytes], JobLine]:
        """The output of each stream, and how the job ended."""
        await self.send(Watch(job))
        return await self.to_end()

    async def to_end(self) -> tuple[dict[str, bytes], JobLine]:
        streams: dict[str, bytearray] = {}
        while found := await self.next():
            match found:
                case (Output(stream=stream), payload):
                    streams.setdefault(stream, bytearray()).extend(payload)
                case (Ended(job=line), _):
                    return {name: bytes(output) for name, output in streams.items()}, line
        raise AssertionError("closed before the job ended")
