"""`sweep --stdin 'inputs/{name}.txt'`: the files that the tasks read, each sent once however many tasks share it.

All errors are reported together, before anything runs. Only regular files are accepted, as a file is read again when
it is sent.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

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

_MAX_SHOWN = 5


class TaskInputs:
    """The files to send, each once, and the list that assigns them to tasks."""

    def __init__(self, files: Iterable[Source], assignment: inputs.Inputs) -> None:
        self._list = Source("inputs", io.BytesIO(inputs.encode(assignment)))
        self.sources = (*files, self._list)

    def added_to(self, sweep: Sweep) -> Sweep:
        """The sweep with these inputs."""
        return msgspec.structs.replace(sweep, inputs=self._list.file)


def read_inputs(plan: Plan, numbers: Sequence[int]) -> TaskInputs:
    """The inputs of these tasks. UsageError names everything that is wrong with any of them."""
    reading = _Reading()
    given = {number: found for number in numbers if (found := reading.file(plan.stdin(number), number))}
    reading.raise_errors()
    return TaskInputs(reading.sources.values(), inputs.collect(len(plan), given))


class _Reading:
    """Reads each path once and keeps each content once; collects errors."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}  # by digest
        self._found: dict[str, SourceFile | None] = {}  # by path; None = it cannot be used
        self._errors: list[str] = []
        self._keep = SMALL_BYTES

    def file(self, path: str, number: int) -> SourceFile | None:
        if path not in self._found:
            self._found[path] = self._read(path, number)
        return self._found[path]

    def _read(self, path: str, number: int) -> SourceFile | None:
        try:
            source = self._source(path)
        except (OSError, UsageError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self._errors.append(f"task {number}: {path or '(no name)'}: {reason} (--stdin)")
            return None
        return self.sources.setdefault(source.file.sha256, source).file

    def _source(self, path: str) -> Source:
        if not stat.S_ISREG(files.status(path).st_mode):
            raise UsageError("is not a file")
        with files.open_binary(path) as stream:
            source = Source("stdin", stream, path=path, keep=self._keep)
        self._keep -= source.file.size if source.kept is not None else 0
        return source

    def raise_errors(self) -> None:
        """UsageError when a file cannot be used."""
        if not self._errors:
            return
        shown = self._errors[:_MAX_SHOWN]
        if more := len(self._errors) - len(shown):
            shown.append(f"and {more} more")
        raise UsageError("\n".join(shown), "" if files.confined() else "create the files, or leave out these values")
