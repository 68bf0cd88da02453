"""The standard inputs of a sweep: which file each task reads.

The list names each file once and has one number for each task: 100,000 tasks with as many files take 4 MB. A list that
is truncated, or that refers to a file it does not contain, is a usage error.
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
_NUMBER_BYTES = 4  # the number of a task's file in the list, from 1; 0 = the task reads no file


class Inputs(Struct, frozen=True):
    """The input files of a sweep, and the file of each task. Made by `collect`."""

    digests: bytes  # SHA-256 of each file, one after the other
    sizes: tuple[int, ...]
    # For each task the number of its file, little-endian; encoded by this name in queues of earlier versions.
    numbers: bytes = msgspec.field(name="whose")

    def __len__(self) -> int:
        """The number of tasks."""
        return len(self.numbers) // _NUMBER_BYTES

    def of(self, task: int) -> SourceFile | None:
        """The file that a task reads; None when it reads none."""
        at = (task - 1) * _NUMBER_BYTES
        number = int.from_bytes(self.numbers[at : at + _NUMBER_BYTES], "little")
        return SourceFile("stdin", self._digest(number - 1), self.sizes[number - 1]) if number else None

    def sha256(self) -> Iterator[str]:
        """The digest of each file."""
        return map(self._digest, range(len(self.sizes)))

    def _digest(self, at: int) -> str:
        return self.digests[at * _DIGEST_BYTES : (at + 1) * _DIGEST_BYTES].hex()

    def has_all(self, tasks: Iterable[range]) -> bool:
        """Whether each of these tasks has an input."""
        return all(all(self._file_numbers()[each.start - 1 : each.stop - 1]) for each in tasks)

    def _file_numbers(self) -> tuple[int, ...]:
        return struct.unpack(f"<{len(self)}I", self.numbers)

    def check(self) -> None:
        """Raise UsageError when the list is truncated or refers to a file that it does not contain."""
        if len(self.digests) != len(self.sizes) * _DIGEST_BYTES or len(self.numbers) % _NUMBER_BYTES:
            raise UsageError("this list of inputs is truncated")
        if max(self._file_numbers(), default=0) > len(self.sizes):
            raise UsageError("this list of inputs refers to a file that it does not contain")


def collect(tasks: int, given: Mapping[int, SourceFile]) -> Inputs:
    """The inputs of a sweep of `tasks` tasks. `given` has the file of each task; equal files are stored once."""
    files = {file.sha256: file for file in given.values()}
    numbers = {sha256: number for number, sha256 in enumerate(files, 1)}
    file_numbers = (numbers[given[task].sha256] if task in given else 0 for task in range(1, tasks + 1))
    return Inputs(
        bytes.fromhex("".join(files)),
        tuple(file.size for file in files.values()),
        struct.pack(f"<{tasks}I", *file_numbers),
    )


def encode(inputs: Inputs) -> bytes:
    """Encode a list for `decode`. Raises UsageError when it takes more than MAX_BYTES."""
    packed = msgspec.msgpack.encode(inputs)
    _check_size(packed)
    return packed


def decode(packed: bytes) -> Inputs:
    """Decode and check a list of `encode`. Raises UsageError for anything else."""
    _check_size(packed)
    try:
        inputs = msgspec.msgpack.decode(packed, type=Inputs)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"this is not a list of inputs: {error}") from error
    inputs.check()
    return inputs


def _check_size(packed: bytes) -> None:
    if len(packed) > MAX_BYTES:
        size = f"a list of inputs of {format_size(len(packed))} is larger than {format_size(MAX_BYTES)}"
        raise UsageError(size, "split the sweep")
