"""The words of `sweep` as a plan: which tasks there are, and what each is called, runs and writes into.

Everything that may be wrong with parameters is found here, before anything is sent. Refuses to read one stream twice,
and files that no table could hold.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from sshgrid.client import files, program
from sshgrid.errors import FileMissing, UsageError
from sshgrid.model import Halt
from sshgrid.sweeps import parameters
from sshgrid.sweeps.halt import max_fails, parse_halt
from sshgrid.sweeps.parameters import Axis, Row, Table
from sshgrid.sweeps.templates import Template, Word, folder_name, folders_clash

Made = TypeVar("Made")


class Plan:
    """A table of parameters, and what becomes of each of its rows. `stdin`: the word of --stdin."""

    def __init__(self, file: str, args: Sequence[bytes], table: Table, named: Sequence[str], stdin: str) -> None:
        self.file, self.args, self.table = file, tuple(args), table
        self.names = table.names
        self._stdin = _about("--stdin", lambda: Word(os.fsencode(stdin), self.names))
        # A parameter that names a file of input is used, in whatever arguments it is not.
        self.template = Template(self.args, self.names, set(named) - self._stdin.used)
        # Two rows may be alike; then the folders of their results carry the tasks' numbers.
        self.numbered = folders_clash(table)

    def __len__(self) -> int:
        return len(self.table)

    def values(self, number: int) -> Row:
        return self.table.row(number)

    @property
    def reads_its_own(self) -> bool:
        """Whether each task has an input of its own."""
        return self._stdin.varies

    def stdin(self, number: int) -> str:
        """The file that a task reads, when it reads its own."""
        return os.fsdecode(self._stdin.expand(self.values(number), number))

    def command(self, number: int) -> bytes:
        """As a shell would take it: for --dry-run and the joblog."""
        words = self.template.expand(self.values(number), number)
        text = shlex.join([self.file, *map(os.fsdecode, words)])
        return os.fsencode(f"{text} < {shlex.quote(self.stdin(number))}" if self.reads_its_own else text)

    def folder(self, number: int) -> str:
        """The name of a task's own folder."""
        return folder_name(self.names, self.values(number), number if self.numbered else 0)

    def tag(self, number: int) -> bytes:
        """What --tag puts in front of each line."""
        return b" ".join(self.values(number)) + b"\t"


def plan(file: str, words: Sequence[str], wanted: Mapping[str, Any]) -> Plan:
    """UsageError, FileMissing for whatever is wrong with the parameters or their placeholders."""
    args, inputs = parameters.split_inputs([os.fsencode(word) for word in words])
    reader = _Reader(_stdin_is_taken(file, wanted))
    axes = list(_option_axes(wanted, reader.read))
    if inputs:
        axes += parameters.parse_inputs(inputs, sum(len(axis.names) for axis in axes))
    if wanted["zip"] and axes:
        axes = [parameters.zip_axes(axes)]
    named = [os.fsdecode(word).partition("=")[0] for word in wanted["parameter"]]
    return Plan(file, args, Table(tuple(axes)), named, str(wanted["stdin"]))


def _option_axes(wanted: Mapping[str, Any], read: Callable[[str], bytes]) -> list[Axis]:
    axes = [_parameter(word, read) for word in wanted["parameter"]]
    for path in wanted["each_line"]:
        position = sum(len(axis.names) for axis in axes) + 1
        axes.append(_about(f"--each-line {path}", lambda: parameters.each_line(str(position), read(path))))  # noqa: B023
    return axes + [parameters.csv_axis(path, read(path)) for path in wanted["csv"]]


def _parameter(word: str, read: Callable[[str], bytes]) -> Axis:
    return _about("-p", lambda: parameters.parse_parameter(os.fsencode(word), read))


def _about(option: str, make: Callable[[], Made]) -> Made:
    try:
        return make()
    except FileMissing:
        raise
    except UsageError as error:
        raise UsageError(f"{option}: {error.message}", error.hint) from error


def halt(wanted: Mapping[str, Any]) -> Halt:
    """Of --halt or --max-fails."""
    text, most = wanted["halt"], wanted["max_fails"]
    if text and most is not None:
        raise UsageError("--max-fails N says the same as a --halt; give one of them", "--halt now,fail=3")
    if most is not None:
        return max_fails(most)
    try:
        return parse_halt(text or "never")
    except UsageError as error:
        raise UsageError(f"--halt: {error.message}", error.hint) from error


# --- files of values -------------------------------------------------------------------------------------------------


def _stdin_is_taken(file: str, wanted: Mapping[str, Any]) -> str:
    if file == "-":
        return "the program"
    return "--stdin" if wanted["stdin"] == "-" else ""


class _Reader:
    """Reads files of values; `-` is standard input, once."""

    def __init__(self, stdin_taken: str) -> None:
        self._taken = stdin_taken

    def read(self, path: str) -> bytes:
        """FileMissing, UsageError when it cannot be read or is larger than a sweep's table may be."""
        try:
            stream = self._stdin() if path == "-" else files.open_binary(path)
            with stream:
                content = _limited(stream.read, path)
        except FileNotFoundError:
            raise FileMissing(f"no such file of values: {path}", f"ls -l {path}") from None
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}", f"ls -l {path}") from error
        return content

    def _stdin(self) -> Any:
        if self._taken:
            raise UsageError(f"standard input is read by {self._taken} already", "put the values into a file")
        self._taken = "another parameter"
        stdin = program.our_stdin()
        if stdin is None:
            raise UsageError("standard input is closed", "put the values into a file")
        return stdin


def _limited(read: Callable[[int], bytes], path: str) -> bytes:
    pieces, size = list[bytes](), 0
    while piece := read(1 << 20):
        pieces.append(piece)
        size += len(piece)
        if size > parameters.MAX_TABLE_BYTES:
            raise UsageError(f"{path} is larger than the table of a sweep may be", "hand over names of files instead")
    return b"".join(pieces)
