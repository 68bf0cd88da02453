"""The results folder of a sweep: a folder for each task with `stdout`, `stderr` and `rc`, and `results.csv`.

A task's output is written to temporary files, which are renamed once the task has ended; its row is written last. When
the client is killed at any moment, each row therefore has complete files. A folder that already has results is used
only to resume, and only by one process at a time.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO

from sshgrid.client import files
from sshgrid.client.sweep import record_files
from sshgrid.client.sweep.joblog import NO_STATUS
from sshgrid.client.sweep.record_files import unwritable
from sshgrid.client.sweep.resume import NAME, ResumeFile
from sshgrid.errors import UsageError
from sshgrid.model import PROGRAM_STREAMS
from sshgrid.sweeps.templates import folder_name

if TYPE_CHECKING:
    from sshgrid.protocol.sweep_messages import TaskLine

ROWS = "results.csv"
COLUMNS_BEFORE = ("task",)  # the parameters
COLUMNS_AFTER = ("exit_code", "signal", "seconds", "cpu_seconds", "peak_memory_bytes", "node", "attempt")
PIECE_BYTES = 1 << 20
_PART = ".part-"


class ResultOutput:
    """The output of one task: written while it arrives, read once the task has ended."""

    def __init__(self, out: BinaryIO, err: BinaryIO) -> None:
        self._files = {"stdout": out, "stderr": err}

    def write(self, stream: str, piece: bytes) -> None:
        """Add a piece; the output of the compiler is added to stderr."""
        self._files["stdout" if stream == "stdout" else "stderr"].write(piece)

    def flush(self) -> None:
        for file in self._files.values():
            file.flush()

    def pieces(self, stream: str) -> Iterator[bytes]:
        """All of a stream, from its first byte."""
        file = self._files[stream]
        file.seek(0)
        while piece := file.read(PIECE_BYTES):
            yield piece

    def close(self) -> None:
        for file in self._files.values():
            with contextlib.suppress(OSError):  # buffered bytes that could not be written before cannot be written now
                file.close()


def temporary_output() -> ResultOutput:
    """For a task whose output is not kept: in memory, or in unnamed files when it is large."""
    import tempfile

    return ResultOutput(*(tempfile.SpooledTemporaryFile(PIECE_BYTES) for _ in PROGRAM_STREAMS))  # type: ignore[arg-type]


def header(names: Sequence[str]) -> tuple[str, ...]:
    """The columns of results.csv. A parameter that has the name of another column, as `task`, becomes `param_task`."""
    ours = {*COLUMNS_BEFORE, *COLUMNS_AFTER}
    return (*COLUMNS_BEFORE, *(f"param_{name}" if name in ours else name for name in names), *COLUMNS_AFTER)


def row(task: TaskLine, values: Sequence[bytes]) -> tuple[str, ...]:
    """The row of one task."""
    return (
        str(task.number),
        *(value.decode("utf-8", "surrogateescape") for value in values),
        str(_status(task)),
        str(task.signal or ""),
        f"{task.seconds:.3f}",
        "" if task.cpu_seconds is None else f"{task.cpu_seconds:.3f}",
        str(task.peak_memory or ""),
        task.node,
        str(task.attempt),
    )


def _status(task: TaskLine) -> int:
    return NO_STATUS if task.exit_status is None else task.exit_status


def encoded(rows: Iterable[Sequence[str]]) -> bytes:
    """Rows as CSV; bytes that are not UTF-8 stay as they are."""
    return "".join(map(_record, rows)).encode("utf-8", "surrogateescape")


def _record(fields: Sequence[str]) -> str:
    text = io.StringIO()
    # With this terminator the writer quotes a CR in a value as well; a reader would take it for the end of a row.
    csv.writer(text, lineterminator="\r\n").writerow(fields)
    return text.getvalue().removesuffix("\r\n") + "\n"


def whole_rows(content: bytes) -> bytes:
    """The content without an incomplete last row. A line end inside quotes does not end a row."""
    end, quotes, at = 0, 0, 0
    for text in content.splitlines(keepends=True):
        at += len(text)
        quotes += text.count(b'"')
        if text.endswith(b"\n") and quotes % 2 == 0:
            end = at
    return content[:end]


def parse(shown: str, content: bytes, names: Sequence[str]) -> list[list[str]]:
    """The rows after the header. UsageError when the columns are not those of this sweep."""
    if not content:
        return []
    rows = list(csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""), strict=True))
    columns = list(header(names))
    if rows[0] != columns:
        raise UsageError(f"{shown} does not have the columns {','.join(columns)}", "use another folder")
    for at, each in enumerate(rows[1:], 2):
        if len(each) != len(columns) or not each[0].isdigit() or not each[len(names) + 1].isdigit():
            raise UsageError(f"{shown}: row {at} was not written by sshgrid", "use another folder, or remove that row")
    return rows[1:]


class Results:
    """An open results folder. `failed` tells for each recorded task whether it failed."""

    def __init__(self, path: str, names: Sequence[str], *, numbered: bool) -> None:
        """UsageError when the folder cannot be used, or when another sweep writes to it."""
        self._path, self._names, self._numbered = path, tuple(names), numbered
        self._shown = os.path.join(path, ROWS)
        self._rows = -1
        self.failed: dict[int, bool] = {}
        try:
            self._folder = files.open_folder(path)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror} (--results)", "use a folder that can be written") from error
        try:
            record_files.lock(self._folder, path)
        except BaseException:
            os.close(self._folder)
            raise
        self.resume_file = ResumeFile(self._folder, NAME, os.path.join(path, NAME))

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def has_rows(self) -> bool:
        """Whether results of tasks are recorded in this folder."""
        try:
            descriptor = os.open(ROWS, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise UsageError(f"{self._shown}: {error.strerror}", f"ls -l {self._shown}") from error
        try:
            # A client that was killed before its first task ended leaves a header without rows.
            return record_files.read(descriptor).rstrip(b"\n").count(b"\n") > 0
        finally:
            os.close(descriptor)

    def begin(self, *, resume: bool = True, without_failed: bool = False) -> None:
        """Keep the recorded rows (with `resume`) or drop them, and open for more. Raises Unwritable, UsageError."""
        try:
            self._remove_parts()
            self._open_rows(resume, without_failed)
        except OSError as error:
            raise unwritable(self._path, error) from error

    def _remove_parts(self) -> None:
        for name in os.listdir(self._folder):
            if name.startswith(_PART):
                os.unlink(name, dir_fd=self._folder)

    def _open_rows(self, resume: bool, without_failed: bool) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        self._rows = os.open(ROWS, flags, 0o666, dir_fd=self._folder)
        content = whole_rows(record_files.read(self._rows)) if resume else b""
        rows = parse(self._shown, content, self._names)
        status_at = len(self._names) + len(COLUMNS_BEFORE)
        if without_failed:
            rows = [each for each in rows if each[status_at] == "0"]
            content = encoded([header(self._names), *rows])
            record_files.replace(self._folder, ROWS, content)
            os.close(self._rows)
            self._rows = os.open(ROWS, flags, 0o666, dir_fd=self._folder)
        self.failed = {int(each[0]): each[status_at] != "0" for each in rows}
        os.ftruncate(self._rows, len(content))
        if not content:
            record_files.append(self._rows, encoded([header(self._names)]), self._shown)

    # --- tasks

    def output(self, number: int) -> ResultOutput:
        """Empty files for the output of a task. Raises Unwritable."""
        try:
            return ResultOutput(*(self._open_part(number, stream) for stream in PROGRAM_STREAMS))
        except OSError as error:
            raise unwritable(self._path, error) from error

    def _open_part(self, number: int, stream: str) -> BinaryIO:
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.fdopen(os.open(_part(number, stream), flags, 0o666, dir_fd=self._folder), "w+b")

    def add(self, task: TaskLine, values: Sequence[bytes], output: ResultOutput) -> None:
        """Record a task: its files first, then its row. Unwritable: the row is not in the file."""
        name = folder_name(self._names, tuple(values), task.number if self._numbered else 0)
        try:
            output.flush()
            self._put(task.number, name, b"%d\n" % _status(task))
        except OSError as error:
            raise unwritable(os.path.join(self._path, name), error) from error
        record_files.append(self._rows, encoded([row(task, values)]), self._shown)
        self.failed[task.number] = _status(task) != 0

    def _put(self, number: int, name: str, status: bytes) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=self._folder)
        at = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        try:
            for stream in PROGRAM_STREAMS:
                os.replace(_part(number, stream), stream, src_dir_fd=self._folder, dst_dir_fd=at)
            record_files.replace(at, "rc", status)
        finally:
            os.close(at)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._remove_parts()
        if self._rows >= 0:
            os.close(self._rows)
        os.close(self._folder)


def _part(number: int, stream: str) -> str:
    return f"{_PART}{number}-{stream}"
