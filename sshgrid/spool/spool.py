"""The spool: blobs and outputs, which the master keeps beside the queue."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.spool.blobs import Blobs
from sshgrid.spool.disk import private_directory
from sshgrid.spool.outputs import Outputs


class Spool:
    """One folder of one master: the blobs that clients uploaded and the outputs of attempts."""

    def __init__(self, directory: Path, clock: Clock = SYSTEM_CLOCK) -> None:
        private_directory(directory, forbidden=0o077)
        self.directory = directory
        self.blobs = Blobs(directory / "blobs", directory / "incoming", clock)
        self.outputs = Outputs(directory / "out")

    def close(self) -> None:
        self.outputs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
