"""`sweep --stdin 'inputs/{name}.txt'`: the file that each task reads, sent once however many tasks share it.

What is wrong is said together, before anything runs. Refuses what is missing or unreadable, folders and whatever else
is no file: it must be there again when it is sent.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import io
import stat
from collections.abc import Iterable, Sequence

import msgspec

from sshgrid.client import files
from sshgrid.client.program import SMALL_BYTES, Source
from sshgrid.client.sweep.plan import Plan
from sshgrid.errors import UsageError
from sshgrid.model import SourceFile, Sweep
from sshgrid.sweeps import inputs

_SHOWN = 5


class TaskInputs:
    """What is to be sent: each file once, and the list that says whose it is."""

    def __init__(self, files: Iterable[Source], listed: inputs.Inputs) -> None:
        self._list = Source("inputs", io.BytesIO(inputs.encode(listed)))
        self.sources = (*files, self._list)

    def added_to(self, sweep: Sweep) -> Sweep:
        return msgspec.structs.replace(sweep, inputs=self._list.file)


def read_inputs(planned: Plan, numbers: Sequence[int]) -> TaskInputs:
    """The inputs of these tasks. UsageError with what is wrong with all of them."""
    reading = _Reading()
    given = {number: found for number in numbers if (found := reading.file(planned.stdin(number), number))}
    reading.complain()
    return TaskInputs(reading.sources.values(), inputs.collect(len(planned), given))


class _Reading:
    """Reads each path once, keeps each content once; what is wrong is collected."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}  # by digest
        self._found: dict[str, SourceFile | None] = {}  # by path; None = something is wrong with it
        self._wrong: list[str] = []
        self._keep = SMALL_BYTES

    def file(self, path: str, number: int) -> SourceFile | None:
        if path not in self._found:
            self._found[path] = self._read(path, number)
        return self._found[path]

    def _read(self, path: str, number: int) -> SourceFile | None:
        try:
            source = self._source(path)
        except (OSError, UsageError, ValueError) as error:
            words = error.strerror if isinstance(error, OSError) else str(error)
            self._wrong.append(f"task {number}: {path or '(no name)'}: {words} (--stdin)")
            return None
        return self.sources.setdefault(source.file.sha256, source).file

    def _source(self, path: str) -> Source:
        if not stat.S_ISREG(files.status(path).st_mode):
            raise UsageError("is no file")
        with files.open_binary(path) as stream:
            source = Source("stdin", stream, path=path, keep=self._keep)
        self._keep -= source.file.size if source.kept is not None else 0
        return source

    def complain(self) -> None:
        """Raises what is wrong, if anything is."""
        if not self._wrong:
            return
        shown = self._wrong[:_SHOWN]
        if more := len(self._wrong) - len(shown):
            shown.append(f"and {more} more")
        raise UsageError("\n".join(shown), "" if files.confined() else "make them, or leave out these values")
