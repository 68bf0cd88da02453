"""Fetches the files that `--fetch` names: lists the run's folder, chooses, and reads the files as one tar archive.

The archive is stored as it comes, beside the output of the run, and never unpacked here. More bytes than the listing
announced are an error. Files that the node cannot give become warnings: the program's result stays as it is.
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
# Bytes of an archive for one file, beside its content: headers, also for a long name or a large size, and padding.
_OVERHEAD_BYTES = 8 * _BLOCK + 2 * MAX_NAME_BYTES
_END_BYTES = 2 * tarfile.RECORDSIZE
_ERROR_BYTES = 500


async def fetch_files(link: Link, spec: RunSpec, sink: Sink) -> None:
    """Store the requested files that exist, and pass a warning for each of the others. Raises HostError."""
    program = spec.program
    most = min(sink.fetch_room(), program.limits.fetch_bytes or MOST_BYTES)
    if most <= 0:
        await sink.fetched(Fetched())
        return
    listing = await link.transfer.files(spec.run, globs.find_arguments(program.fetch))
    chosen, warnings = await asyncio.to_thread(globs.choose, listing, program.fetch, most)
    await sink.restart_stream(STREAM)
    warnings_of_read = await _read_archive(link, spec.run, chosen, sink) if chosen else ()
    await sink.fetched(
        Fetched(len(chosen), sum(chosen.values()), warnings + warnings_of_read, whole=not warnings_of_read)
    )


async def _read_archive(link: Link, run: str, chosen: Mapping[str, int], sink: Sink) -> tuple[str, ...]:
    """Pass the files to the sink. Return warnings about files that are missing from the archive."""
    has_tar = "tar" in link.facts.helpers
    pieces = link.transfer.archive(run, tuple(chosen)) if has_tar else _archive_by_file(link, run, chosen)
    room = sum(chosen.values()) + len(chosen) * _OVERHEAD_BYTES + _END_BYTES
    async with aclosing(pieces):
        async for piece in pieces:
            room -= len(piece)
            if room < 0:
                return ("not everything was fetched: the node sends more than it has announced",)
            if sink.fetch_room() <= 0:
                return ("not everything was fetched: the job was cancelled, or the master's disk is full",)
            await sink.output(STREAM, piece)
    errors = (
        (await link.runs.read_piece(run, "fetch.err", 0, _ERROR_BYTES)).decode("utf-8", "replace") if has_tar else ""
    )
    return (f"not everything was fetched: {' '.join(errors.split())}",) if errors.strip() else ()


async def _archive_by_file(link: Link, run: str, chosen: Mapping[str, int]) -> AsyncGenerator[bytes, None]:
    """Yield the archive of a node without tar, file by file."""
    for name, size in chosen.items():
        member = tarfile.TarInfo(f"./{name}")
        member.size, member.mode = size, 0o644
        yield member.tobuf(tarfile.GNU_FORMAT)
        at = 0
        while at < size:
            piece = await link.runs.read_piece(run, f"work/{name}", at, min(PIECE_BYTES, size - at))
            # The file is shorter now: fill it up with zeros, as tar does.
            piece = piece or bytes(min(PIECE_BYTES, size - at))
            at += len(piece)
            yield piece
        yield bytes(-size % _BLOCK)
    yield bytes(2 * _BLOCK)
