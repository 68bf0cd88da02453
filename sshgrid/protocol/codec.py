"""Encode and decode messages: JSON Lines over a byte stream, raw bytes after a line that announces them."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import get_args

import msgspec

from sshgrid.errors import SshgridError, UsageError
from sshgrid.protocol.messages import MAX_PAYLOAD, Failure, Input, Message, Output, PutBlob
from sshgrid.protocol.sweep_messages import TaskOutput

MAX_LINE = 4 * 1024 * 1024
_PAYLOAD = (PutBlob, Output, TaskOutput, Input)
_HEAD = re.compile(rb'\{"type":"([a-z-]+)"[,}]')
_KINDS = {kind.__struct_config__.tag: kind for kind in get_args(Message)}
_encoder = msgspec.json.Encoder()


@functools.cache
def _decoder(tag: str) -> msgspec.json.Decoder[Message]:
    """The decoder of one kind of message; for an unknown tag that of all kinds.

    It is made when the first message of its kind arrives: those of all kinds take 3 ms, and a client needs few.
    """
    return msgspec.json.Decoder(_KINDS.get(tag, Message))


def _tag(line: bytes) -> str:
    """The type of the message when it is first in the line, as the encoder writes it; else ""."""
    head = _HEAD.match(line)
    return head[1].decode() if head and head[1].decode() in _KINDS else ""


def encode(message: Message, payload: bytes = b"") -> bytes:
    """The bytes of one message. The length of `payload` must be the message's `size`; else ValueError is raised."""
    if isinstance(message, _PAYLOAD) and len(payload) != message.size:
        raise ValueError(f"payload of {len(payload)} bytes announced as {message.size}")
    return _encoder.encode(message) + b"\n" + payload


class Decoder:
    """Turns bytes into messages with their payloads.

    >>> decoder = Decoder()
    >>> list(decoder.feed(encode(Input(2), b"hi")))
    [(Input(size=2), b'hi')]
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0  # there is no newline before this place
        self._head: PutBlob | Output | TaskOutput | Input | None = None

    def feed(self, piece: bytes) -> Iterator[tuple[Message, bytes]]:
        """Yield the messages that `piece` completes. Raises UsageError when the bytes are not this protocol."""
        self._buffer += piece
        while True:
            if self._head is not None:
                size = self._head.size
                if len(self._buffer) < size:
                    return
                payload = bytes(self._buffer[:size])
                del self._buffer[:size]
                head, self._head = self._head, None
                yield head, payload
                continue
            end = self._buffer.find(b"\n", self._searched)
            self._searched = 0 if end >= 0 else len(self._buffer)
            if end < 0:
                if len(self._buffer) > MAX_LINE:
                    raise UsageError(f"a request line is longer than {MAX_LINE} bytes")
                return
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 1]
            message = _parse(line)
            if isinstance(message, _PAYLOAD) and message.size > 0:
                self._head = message
            else:
                yield message, b""


def _parse(line: bytes) -> Message:
    try:
        message = _decoder(_tag(line)).decode(line)
    # Nested too deeply, or not UTF-8 inside a string: neither is a MsgspecError.
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"not a request this version understands: {error}") from error
    if isinstance(message, _PAYLOAD) and not 0 <= message.size <= MAX_PAYLOAD:
        raise UsageError(f"a payload of {message.size} bytes is over the limit of {MAX_PAYLOAD}")
    return message


def failure(error: SshgridError) -> Failure:
    """The reply to a request that raised this error."""
    return Failure(error.code, error.message, error.hint, error.exit_status)
