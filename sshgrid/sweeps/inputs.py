"""The standard input of each task of a sweep: which of the files that travel with it belongs to whom.

A list names each file once and has a number for each task, in a few bytes: a hundred thousand tasks with as many files
are 4 MB, and nothing is unpacked but what is asked for. Refuses, with a UsageError, what is cut or names a file that is
not in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from sshgrid.errors import UsageError
from sshgrid.model import SourceFile, Struct
from sshgrid.notation.quantities import format_size

MAX_BYTES = 32 * 1024 * 1024
_DIGEST_BYTES = 32
_NUMBER_BYTES = 4  # of a task's file in the list, from 1; 0 = it has none


class Inputs(Struct, frozen=True):
    """The files of a sweep's standard inputs, and whose they are. Made by `collect`."""

    digests: bytes  # SHA-256 of each file, one after the other
    sizes: tuple[int, ...]
    whose: bytes  # for each task the number of its file, little-endian

    def __len__(self) -> int:
        """So many tasks it is about."""
        return len(self.whose) // _NUMBER_BYTES

    def of(self, task: int) -> SourceFile | None:
        """What a task reads; None when it has nothing to read."""
        at = (task - 1) * _NUMBER_BYTES
        number = int.from_bytes(self.whose[at : at + _NUMBER_BYTES], "little")
        return SourceFile("stdin", self._digest(number - 1), self.sizes[number - 1]) if number else None

    def sha256(self) -> Iterator[str]:
        """The digest of each file."""
        return map(self._digest, range(len(self.sizes)))

    def _digest(self, at: int) -> str:
        return self.digests[at * _DIGEST_BYTES : (at + 1) * _DIGEST_BYTES].hex()

    def has_all(self, tasks: Iterable[range]) -> bool:
        """Whether each of these tasks has an input."""
        return all(all(self._numbers()[each.start - 1 : each.stop - 1]) for each in tasks)

    def _numbers(self) -> tuple[int, ...]:
        return struct.unpack(f"<{len(self)}I", self.whose)

    def check(self) -> None:
        """UsageError unless it is whole and names only files that are in it."""
        if len(self.digests) != len(self.sizes) * _DIGEST_BYTES or len(self.whose) % _NUMBER_BYTES:
            raise UsageError("this list of inputs was cut")
        if max(self._numbers(), default=0) > len(self.sizes):
            raise UsageError("this list of inputs names a file that is not in it")


def collect(tasks: int, given: Mapping[int, SourceFile]) -> Inputs:
    """For a sweep of so many tasks; `given`: task -> what it reads. Files of the same bytes are one."""
    files = {file.sha256: file for file in given.values()}
    numbers = {sha256: number for number, sha256 in enumerate(files, 1)}
    whose = (numbers[given[task].sha256] if task in given else 0 for task in range(1, tasks + 1))
    return Inputs(
        bytes.fromhex("".join(files)),
        tuple(file.size for file in files.values()),
        struct.pack(f"<{tasks}I", *whose),
    )


def encode(inputs: Inputs) -> bytes:
    """For `decode`. UsageError when it would be more than MAX_BYTES."""
    packed = msgspec.msgpack.encode(inputs)
    _check_size(packed)
    return packed


def decode(packed: bytes) -> Inputs:
    """The list of `encode`, checked. UsageError for anything else."""
    _check_size(packed)
    try:
        inputs = msgspec.msgpack.decode(packed, type=Inputs)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"this is no list of inputs: {error}") from error
    inputs.check()
    return inputs


def _check_size(packed: bytes) -> None:
    if len(packed) > MAX_BYTES:
        size = f"a list of inputs of {format_size(len(packed))} is more than {format_size(MAX_BYTES)}"
        raise UsageError(size, "split the sweep")
