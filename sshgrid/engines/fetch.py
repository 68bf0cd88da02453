"""Bringing back what `--fetch` names: looks what is there, chooses, and takes it as one tar archive.

The archive is kept as it comes, beside what the run has printed, and never unpacked here. Refuses more than was
announced, and goes on without what a node cannot give: the program's own result stands.
"""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from sshgrid.engines import Sink
from sshgrid.engines.launch import RunSpec
from sshgrid.model import Fetched
from sshgrid.notation import globs
from sshgrid.notation.filenames import MAX_NAME_BYTES
from sshgrid.ssh.link import Link
from sshgrid.ssh.runs import PIECE_BYTES

STREAM = "files"
MOST_BYTES = 64 << 30
_BLOCK = tarfile.BLOCKSIZE
# Of one file, beside its bytes: its header, those of a long name or a large size, and what fills its last block.
_AROUND_BYTES = 8 * _BLOCK + 2 * MAX_NAME_BYTES
_END_BYTES = 2 * tarfile.RECORDSIZE
_WORDS_BYTES = 500


async def fetch_files(link: Link, order: RunSpec, sink: Sink) -> None:
    """What is there of what was asked for is kept when this returns, and what is not was told. Raises HostError."""
    program = order.program
    most = min(sink.room(), program.limits.fetch_bytes or MOST_BYTES)
    if most <= 0:
        await sink.fetched(Fetched())
        return
    listing = await link.transfer.files(order.run, globs.where(program.fetch))
    chosen, warnings = await asyncio.to_thread(globs.choose, listing, program.fetch, most)
    await sink.again(STREAM)
    trouble = await _take(link, order.run, chosen, sink) if chosen else ()
    await sink.fetched(Fetched(len(chosen), sum(chosen.values()), warnings + trouble, whole=not trouble))


async def _take(link: Link, run: str, chosen: Mapping[str, int], sink: Sink) -> tuple[str, ...]:
    """The files into the sink; what went wrong with some of them."""
    has_tar = "tar" in link.facts.helpers
    pieces = link.transfer.archive(run, tuple(chosen)) if has_tar else _archive(link, run, chosen)
    room = sum(chosen.values()) + len(chosen) * _AROUND_BYTES + _END_BYTES
    async with aclosing(pieces):
        async for piece in pieces:
            room -= len(piece)
            if room < 0:
                return ("not everything was fetched: the node sends more than it has announced",)
            if sink.room() <= 0:
                return ("not everything was fetched: the job was cancelled, or the master's disk is full",)
            await sink.output(STREAM, piece)
    words = (await link.runs.piece(run, "fetch.err", 0, _WORDS_BYTES)).decode("utf-8", "replace") if has_tar else ""
    return (f"not everything was fetched: {' '.join(words.split())}",) if words.strip() else ()


async def _archive(link: Link, run: str, chosen: Mapping[str, int]) -> AsyncGenerator[bytes, None]:
    """As `Cargo.archive`, piece by piece, of a node without tar."""
    for name, size in chosen.items():
        member = tarfile.TarInfo(f"./{name}")
        member.size, member.mode = size, 0o644
        yield member.tobuf(tarfile.GNU_FORMAT)
        at = 0
        while at < size:
            piece = await link.runs.piece(run, f"work/{name}", at, min(PIECE_BYTES, size - at))
            # Shorter than it was: what is missing is filled up, as tar does.
            piece = piece or bytes(min(PIECE_BYTES, size - at))
            at += len(piece)
            yield piece
        yield bytes(-size % _BLOCK)
    yield bytes(2 * _BLOCK)
