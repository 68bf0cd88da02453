"""The joblog of a sweep, in GNU parallel's format: nine columns between tabs, one line for each task that has ended.

What it says can be read by that program, and so can what that program wrote be read here. Refuses to go on from a log
whose commands are not those of this sweep, and to write over a file that is no joblog.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING

from sshgrid.client import files
from sshgrid.errors import SshgridError, UsageError

if TYPE_CHECKING:
    from sshgrid.protocol.sweep_messages import TaskLine

HEADER = b"Seq\tHost\tStarttime\tJobRuntime\tSend\tReceive\tExitval\tSignal\tCommand\n"
_LINE = re.compile(rb"([0-9]{1,9})(?:\t[^\t]*){5}\t(-?[0-9]+)\t(-?[0-9]+)\t(.*)", re.DOTALL)
NO_STATUS = 125


class Unwritable(SshgridError):
    """Our own disk does not take what a task has left; the sweep itself goes on."""

    code = "unwritable"


def unwritable(path: str, error: OSError) -> Unwritable:
    """The sentence for this path."""
    message = f"{path}: {error.strerror or error}; the sweep goes on, and what is recorded so far is whole"
    return Unwritable(message, "make room, then the same command with --resume fetches the rest")


class Entry:
    """A task that a log knows; `failed` as --resume-failed sees it."""

    def __init__(self, command: bytes, *, failed: bool) -> None:
        self.command, self.failed = command, failed


def line(task: TaskLine, command: bytes) -> bytes:
    """Of one task. A newline in its command is a NUL, as GNU parallel writes it."""
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
    return "\t".join(columns).encode() + b"\t" + written(command) + b"\n"


def written(command: bytes) -> bytes:
    """A command as it stands in its column."""
    return command.replace(b"\n", b"\0")


def parse(path: str, content: bytes) -> dict[int, Entry]:
    """Its tasks; of one that ran again, the last line. `content` ends with a newline. UsageError: it is no joblog."""
    if not content:
        return {}
    first, *lines = content.split(b"\n")[:-1]
    if first + b"\n" != HEADER:
        raise UsageError(f"{path} is no joblog: its first line is not Seq, Host, Starttime ...", "name another file")
    found: dict[int, Entry] = {}
    for at, text in enumerate(lines, 2):
        columns = _LINE.fullmatch(text)
        if columns is None:
            raise UsageError(f"{path}:{at}: not a line of a joblog", "name another file, or remove that line")
        found[int(columns[1])] = Entry(columns[4], failed=int(columns[2]) != 0 or int(columns[3]) != 0)
    return found


def check_agrees(path: str, entries: dict[int, Entry], command: Callable[[int], bytes], tasks: int) -> None:
    """UsageError when a task of the log is another one here."""
    for number, entry in entries.items():
        now = written(command(number)) if 0 < number <= tasks else b""
        if entry.command != now:
            before, text = (each.decode("utf-8", "backslashreplace") for each in (entry.command, now))
            raise UsageError(
                f"{path} is of another sweep: its task {number} is `{before}`, here it is `{text or 'none'}`",
                "name another file, or give the same FILE, ARGS and parameters as then",
            )


class Joblog:
    """An open joblog, which grows by a line at a time."""

    def __init__(self, path: str, *, resume: bool) -> None:
        """Empty unless `resume`. UsageError when it cannot be opened, is no joblog, or another sweep writes there."""
        self._path = path
        try:
            self._file = files.open_to_append(path)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror} (--joblog)", "name a file that can be written") from error
        self.regular = stat.S_ISREG(os.fstat(self._file).st_mode)
        self.entries: dict[int, Entry] = {}
        try:
            self._begin(resume)
        except BaseException:
            self.close()
            raise

    def _begin(self, resume: bool) -> None:
        if self.regular:
            lock(self._file, self._path)
            content = whole_lines(read(self._file))
            self.entries = parse(self._path, content)
            if not resume:
                self.entries, content = {}, b""
            os.ftruncate(self._file, len(content))
        if not self.entries and (not self.regular or not os.fstat(self._file).st_size):
            append(self._file, HEADER, self._path)

    def add(self, task: TaskLine, command: bytes) -> None:
        """On its way to the disk when it returns. Unwritable: nothing of the line is there."""
        append(self._file, line(task, command), self._path)
        self.entries[task.number] = Entry(written(command), failed=bool(task.signal or task.exit_status != 0))

    def close(self) -> None:
        os.close(self._file)


# --- files that grow -------------------------------------------------------------------------------------------------


def lock(descriptor: int, path: str) -> None:
    """Until it is closed. UsageError when somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"another sshgrid writes {path} now", "wait until it has ended, or name another") from None
    except OSError:
        return  # a file system without locks


def read(descriptor: int) -> bytes:
    """All of it."""
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as file:
        file.seek(0)
        return file.read()


def whole_lines(content: bytes) -> bytes:
    """Without the line that a kill has cut."""
    return content[: content.rfind(b"\n") + 1]


def append(descriptor: int, piece: bytes, path: str) -> None:
    """Whole or not at all, as far as the disk lets us. Unwritable says why not."""
    size = os.fstat(descriptor).st_size
    rest = memoryview(piece)
    try:
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError as error:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.ftruncate(descriptor, size)
        raise unwritable(path, error) from error
