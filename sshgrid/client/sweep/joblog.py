"""The joblog of a sweep, in the format of GNU parallel: nine tab-separated columns, one line for each ended task.

Both programs can read the file that the other one wrote. A log whose commands differ from those of this sweep, or a
file that is not a joblog, raises UsageError and stays unchanged.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from sshgrid.client import files
from sshgrid.client.sweep import record_files
from sshgrid.errors import UsageError

if TYPE_CHECKING:
    from sshgrid.protocol.sweep_messages import TaskLine

HEADER = b"Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"
NO_STATUS = 125  # written for a task that has no exit status
_LINE = re.compile(rb"([0-9]{1,9})(?:\t[^\t]*){5}\t(-?[0-9]+)\t(-?[0-9]+)\t(.*)", re.DOTALL)


class Entry:
    """A task that is in the log; `failed` as --resume-failed sees it."""

    def __init__(self, command: bytes, *, failed: bool) -> None:
        self.command, self.failed = command, failed


def line(task: TaskLine, command: bytes) -> bytes:
    """The line of one task. A newline in its command becomes a NUL, as in GNU parallel."""
    status = NO_STATUS if task.exit_status is None else task.exit_status
    columns = (
        str(task.number),
        task.node or ":",
        f"{task.started or 0.0:.3f}",
        f"{task.seconds:10.3f}",
        str(task.sent_bytes),
        str(task.stdout_bytes + task.stderr_bytes),
        str(0 if task.signal else status),
        str(task.signal or 0),
    )
    return "\t".join(columns).encode() + b"\t" + command_column(command) + b"\n"


def command_column(command: bytes) -> bytes:
    """A command as it is written in its column."""
    return command.replace(b"\n", b"\0")


def parse(path: str, content: bytes) -> dict[int, Entry]:
    """The tasks of a log; for a task with several lines, the last. `content` ends with a newline. Raises UsageError."""
    if not content:
        return {}
    first, *lines = content.split(b"\n")[:-1]
    if first + b"\n" != HEADER:
        raise UsageError(f"{path} is not a joblog: its first line is not Seq, Host, Starttime ...", "use another file")
    found: dict[int, Entry] = {}
    for number, text in enumerate(lines, 2):
        columns = _LINE.fullmatch(text)
        if columns is None:
            raise UsageError(f"{path}:{number}: not a line of a joblog", "use another file, or remove that line")
        found[int(columns[1])] = Entry(columns[4], failed=int(columns[2]) != 0 or int(columns[3]) != 0)
    return found


def check_commands(path: str, entries: dict[int, Entry], command: Callable[[int], bytes], tasks: int) -> None:
    """UsageError when the command of a task in the log differs from the command of that task now."""
    for number, entry in entries.items():
        now = command_column(command(number)) if 0 < number <= tasks else b""
        if entry.command != now:
            before, text = (each.decode("utf-8", "backslashreplace") for each in (entry.command, now))
            raise UsageError(
                f"{path} belongs to another sweep: its task {number} is `{before}`, here it is `{text or 'none'}`",
                "use another file, or repeat the FILE, ARGS and parameters of that sweep",
            )


class Joblog:
    """An open joblog, to which lines are appended."""

    def __init__(self, path: str, *, resume: bool) -> None:
        """Keep the lines that are there only with `resume`. UsageError: not usable, or in use by another sweep."""
        self._path = path
        try:
            self._file = files.open_to_append(path)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror} (--joblog)", "use a file that can be written") from error
        self.regular = stat.S_ISREG(os.fstat(self._file).st_mode)
        self.entries: dict[int, Entry] = {}
        try:
            self._begin(resume)
        except BaseException:
            self.close()
            raise

    def _begin(self, resume: bool) -> None:
        if self.regular:
            record_files.lock(self._file, self._path)
            content = record_files.whole_lines(record_files.read(self._file))
            self.entries = parse(self._path, content)
            if not resume:
                self.entries, content = {}, b""
            os.ftruncate(self._file, len(content))
        if not self.entries and (not self.regular or not os.fstat(self._file).st_size):
            record_files.append(self._file, HEADER, self._path)

    def add(self, task: TaskLine, command: bytes) -> None:
        """Append the line of a task. Unwritable: nothing of the line is in the file."""
        record_files.append(self._file, line(task, command), self._path)
        self.entries[task.number] = Entry(command_column(command), failed=bool(task.signal or task.exit_status != 0))

    def close(self) -> None:
        os.close(self._file)
