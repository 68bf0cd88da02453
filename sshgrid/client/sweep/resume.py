"""The state that --resume continues from: a file in the results folder, or beside the joblog.

It is written before the sweep is submitted: a client that is killed in between submits again under the same key, which
names the same sweep. A file that cannot be understood or belongs to another sweep raises UsageError.
"""

from __future__ import annotations

import os

import msgspec

from sshgrid.client.sweep import record_files
from sshgrid.errors import UsageError
from sshgrid.model import JobId, Struct

NAME = "sweep.json"
SCHEMA = 1
_MAX_BYTES = 64 << 20


class ResumeState(Struct, frozen=True):
    """One sweep of one grid. Sweeps with another `digest` (of the program and its parameters) are other sweeps."""

    schema: int
    grid: str  # the path of the inventory, or the address of the master
    key: str  # of the submission
    digest: str
    tasks: int
    chosen: str = ""  # tasks of the submission; "" = all. Tasks that were recorded before are not among them
    sweep: JobId | None = None  # None until the master has accepted it


class ResumeFile:
    """One file name in one folder; `shown` is its path in messages."""

    def __init__(self, folder: int, name: str, shown: str) -> None:
        self._folder, self._name, self.shown = folder, name, shown

    def load(self) -> ResumeState | None:
        """The state, or None without a file. UsageError when the file cannot be read."""
        try:
            descriptor = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"{self.shown}: {error.strerror}", f"ls -l {self.shown}") from error
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(_MAX_BYTES)
        try:
            state = msgspec.json.decode(content, type=ResumeState)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.shown} was not written by sshgrid: {error}", "use another folder") from error
        if state.schema != SCHEMA:
            raise UsageError(
                f"{self.shown} was written by another version (schema {state.schema})", "use another folder"
            )
        return state

    def load_for(self, digest: str) -> ResumeState | None:
        """The state of the sweep with this digest, or None without a file. UsageError when it has another digest."""
        state = self.load()
        if state is not None and state.digest != digest:
            raise UsageError(
                f"{self.shown} belongs to another sweep: the program, its arguments, flags or parameters differ",
                "use another folder, or repeat the FILE, ARGS and parameters of that sweep",
            )
        return state

    def save(self, state: ResumeState) -> None:
        """Replace the file as a whole. Raises OSError."""
        record_files.replace(self._folder, self._name, msgspec.json.format(msgspec.json.encode(state)) + b"\n")

    def remove(self) -> None:
        """Remove the file: there is nothing to resume."""
        try:
            os.unlink(self._name, dir_fd=self._folder)
        except FileNotFoundError:
            return
