"""The tools that sshgrid is compared with: one module and one class for each.

Each tool is used in the best known way: its connections are open and its services run before the measurement. A tool
that cannot be installed raises Failed with the reason.
"""

from __future__ import annotations

from typing import Protocol

from bench.work import Work


class Peer(Protocol):
    """Call `install` once, `run` any number of times, then `close`."""

    name: str

    def install(self) -> str:
        """Prepare the tool; returns its version. Raises Failed when it cannot be installed."""

    def run(self, work: Work) -> float:
        """Seconds until every run has ended and its output is here. Raises Failed when a run fails."""

    def close(self) -> None:
        """End all processes of the tool, also after a failed `install`."""
