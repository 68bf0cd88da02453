"""The plan of a sweep: its tasks, and the arguments, standard input and folder of each.

All errors in parameters are found here, before anything is sent. Standard input can be used only once, and files of
values are limited to the size that a table can have.
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

T = TypeVar("T")


class Plan:
    """A table of parameters and the templates that each of its rows fills. `stdin` is the value of --stdin."""

    def __init__(self, file: str, args: Sequence[bytes], table: Table, named: Sequence[str], stdin: str) -> None:
        self.file, self.args, self.table = file, tuple(args), table
        self.names = table.names
        self._stdin = _naming("--stdin", lambda: Word(os.fsencode(stdin), self.names))
        # A parameter that --stdin uses is not appended to the arguments.
        self.template = Template(self.args, self.names, set(named) - self._stdin.used)
        # When two rows are equal, the result folders are told apart by the number of the task.
        self.numbered = folders_clash(table)

    def __len__(self) -> int:
        return len(self.table)

    def values(self, number: int) -> Row:
        return self.table.row(number)

    @property
    def has_task_stdin(self) -> bool:
        """Whether the tasks read different files from standard input."""
        return self._stdin.varies

    def stdin(self, number: int) -> str:
        """The file that a task reads, when tasks read different files."""
        return os.fsdecode(self._stdin.expand(self.values(number), number))

    def command(self, number: int) -> bytes:
        """The command line of a task, quoted for a shell; for --dry-run and the joblog."""
        argv = self.template.expand(self.values(number), number)
        text = shlex.join([self.file, *map(os.fsdecode, argv)])
        return os.fsencode(f"{text} < {shlex.quote(self.stdin(number))}" if self.has_task_stdin else text)

    def folder(self, number: int) -> str:
        """The name of a task's folder."""
        return folder_name(self.names, self.values(number), number if self.numbered else 0)

    def tag(self, number: int) -> bytes:
        """The prefix that --tag puts before each line."""
        return b" ".join(self.values(number)) + b"\t"


def make_plan(file: str, argv: Sequence[str], options: Mapping[str, Any]) -> Plan:
    """Read the parameters and check their placeholders. Raises UsageError, FileMissing."""
    args, inputs = parameters.split_inputs([os.fsencode(each) for each in argv])
    reader = _ValueReader(_user_of_stdin(file, options))
    axes = list(_option_axes(options, reader.read))
    if inputs:
        axes += parameters.parse_inputs(inputs, sum(len(axis.names) for axis in axes))
    if options["zip"] and axes:
        axes = [parameters.zip_axes(axes)]
    named = [os.fsdecode(setting).partition("=")[0] for setting in options["parameter"]]
    return Plan(file, args, Table(tuple(axes)), named, str(options["stdin"]))


def _option_axes(options: Mapping[str, Any], read: Callable[[str], bytes]) -> list[Axis]:
    axes = [_parameter(setting, read) for setting in options["parameter"]]
    for path in options["each_line"]:
        position = sum(len(axis.names) for axis in axes) + 1
        axes.append(_naming(f"--each-line {path}", lambda: parameters.each_line(str(position), read(path))))  # noqa: B023
    return axes + [parameters.csv_axis(path, read(path)) for path in options["csv"]]


def _parameter(setting: str, read: Callable[[str], bytes]) -> Axis:
    return _naming("-p", lambda: parameters.parse_parameter(os.fsencode(setting), read))


def _naming(option: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except FileMissing:
        raise
    except UsageError as error:
        raise UsageError(f"{option}: {error.message}", error.hint) from error


def halt_of(options: Mapping[str, Any]) -> Halt:
    """The value of --halt or --max-fails. Raises UsageError."""
    text, most = options["halt"], options["max_fails"]
    if text and most is not None:
        raise UsageError("--max-fails and --halt exclude each other", "--halt now,fail=3")
    if most is not None:
        return max_fails(most)
    try:
        return parse_halt(text or "never")
    except UsageError as error:
        raise UsageError(f"--halt: {error.message}", error.hint) from error


# --- files of values -------------------------------------------------------------------------------------------------


def _user_of_stdin(file: str, options: Mapping[str, Any]) -> str:
    if file == "-":
        return "the program"
    return "--stdin" if options["stdin"] == "-" else ""


class _ValueReader:
    """Reads files of values; `-` is standard input, which can be read only once."""

    def __init__(self, user_of_stdin: str) -> None:
        self._user_of_stdin = user_of_stdin

    def read(self, path: str) -> bytes:
        """The content of a file. FileMissing; UsageError when it cannot be read or is too large."""
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
        if self._user_of_stdin:
            raise UsageError(f"standard input is already read by {self._user_of_stdin}", "put the values into a file")
        self._user_of_stdin = "another parameter"
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
            raise UsageError(f"{path} is too large for the table of a sweep", "use file names as parameters instead")
    return b"".join(pieces)
