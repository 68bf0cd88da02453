"""What the master and the process that makes children of the door say to each other, a message a packet.

Pure nouns, as MessagePack: a command line is bytes. Refuses packets longer than MAX_PACKET.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from sshgrid.model import Role, Struct

MAX_PACKET = 160 * 1024
MAX_COMMAND_BYTES = 64 * 1024


class WorkerRequest(Struct, frozen=True, tag=True):
    """Make a child: descriptors for its questions and its three streams come with this packet."""

    number: int
    command: bytes
    user: str
    role: Role
    folder: str
    environ: dict[str, str]
    terminal: bool = False
    shell: bool = False  # no command was given


class WorkerSignal(Struct, frozen=True, tag=True):
    """Send this to a child and what belongs to it; nothing when it has ended."""

    number: int
    signal: int


class WorkerExited(Struct, frozen=True, tag=True):
    """A child has ended, with a status as os.waitstatus_to_exitcode gives it."""

    number: int
    status: int


Packet: TypeAlias = WorkerRequest | WorkerSignal | WorkerExited

_decoder: msgspec.msgpack.Decoder[Packet] = msgspec.msgpack.Decoder(Packet)
encode = msgspec.msgpack.Encoder().encode


def decode(packet: bytes) -> Packet:
    """Raises msgspec.MsgspecError for what no such process said."""
    return _decoder.decode(packet)
