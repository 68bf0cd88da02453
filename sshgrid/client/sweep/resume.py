"""What a results folder (or the file beside a joblog) remembers of its sweep, so that --resume can go on with it.

Written before the sweep is submitted, so that whoever is killed in between submits it again under the same key, which
is the same sweep. Refuses what it does not understand and what belongs to another sweep.
"""

from __future__ import annotations

import os

import msgspec

from sshgrid.errors import UsageError
from sshgrid.model import JobId, Struct

NAME = "sweep.json"
SCHEMA = 1
_MOST_BYTES = 64 << 20


class ResumeState(Struct, frozen=True):
    """One sweep of one grid. `digest`: what it runs over which parameters; another one is another sweep."""

    schema: int
    grid: str  # the inventory's path, or where the master is
    key: str  # of its submission
    digest: str
    tasks: int
    chosen: str = ""  # of its submission: those that were recorded before are not among them
    sweep: JobId | None = None  # None until the master has taken it


class ResumeFile:
    """Where it is kept: one name in one folder, which is replaced whole."""

    def __init__(self, folder: int, name: str, shown: str) -> None:
        self._folder, self._name, self.shown = folder, name, shown

    def load(self) -> ResumeState | None:
        """None when there is none. UsageError for what cannot be read."""
        try:
            descriptor = os.open(self._name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._folder)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"{self.shown}: {error.strerror}", f"ls -l {self.shown}") from error
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(_MOST_BYTES)
        try:
            kept = msgspec.json.decode(content, type=ResumeState)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.shown} is not what sshgrid wrote: {error}", "name another folder") from error
        if kept.schema != SCHEMA:
            raise UsageError(f"{self.shown} was written by another version (schema {kept.schema})", "name another")
        return kept

    def load_of(self, digest: str) -> ResumeState | None:
        """The one of this sweep, None when there is none. UsageError when another one is kept there."""
        kept = self.load()
        if kept is not None and kept.digest != digest:
            raise UsageError(
                f"{self.shown} belongs to another sweep: the program, its arguments, flags or parameters were others",
                "name another folder, or give the same FILE, ARGS and parameters as then",
            )
        return kept

    def save(self, kept: ResumeState) -> None:
        """Replaced as a whole. OSError."""
        write_aside(self._folder, self._name, msgspec.json.format(msgspec.json.encode(kept)) + b"\n")

    def forget(self) -> None:
        """There is nothing to go on with."""
        try:
            os.unlink(self._name, dir_fd=self._folder)
        except FileNotFoundError:
            return


def write_aside(folder: int, name: str, content: bytes) -> None:
    """A file of this folder, whole or not at all. OSError."""
    aside = f".{name}.new"
    descriptor = os.open(
        aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=folder
    )
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.replace(aside, name, src_dir_fd=folder, dst_dir_fd=folder)
