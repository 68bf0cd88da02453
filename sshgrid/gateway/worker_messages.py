"""The messages between the master and the forkserver, one to a packet, as MessagePack.

A command line is bytes. A packet is at most MAX_PACKET bytes long.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from sshgrid.model import Role, Struct

MAX_PACKET = 160 * 1024
MAX_COMMAND_BYTES = 64 * 1024


class WorkerRequest(Struct, frozen=True, tag=True):
    """Start a worker process. Its descriptors come with this packet: the socket on which it asks for connections to the
    master, then its terminal, or its three streams."""

    number: int  # given by `Workers.start`
    command: bytes
    user: str
    role: Role
    folder: str
    environ: dict[str, str]
    terminal: bool = False
    shell: bool = False  # no command was given


class WorkerSignal(Struct, frozen=True, tag=True):
    """Send a signal to a worker process and its process group; ignored when the worker has ended."""

    number: int
    signal: int


class WorkerExited(Struct, frozen=True, tag=True):
    """A worker process has ended. `status` is as os.waitstatus_to_exitcode returns it."""

    number: int
    status: int


Packet: TypeAlias = WorkerRequest | WorkerSignal | WorkerExited

_decoder: msgspec.msgpack.Decoder[Packet] = msgspec.msgpack.Decoder(Packet)
encode = msgspec.msgpack.Encoder().encode


def decode(packet: bytes) -> Packet:
    """Raises msgspec.MsgspecError when the packet is not one of these messages."""
    return _decoder.decode(packet)
