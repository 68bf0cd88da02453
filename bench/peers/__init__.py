"""Who is measured side by side: each a file here with one class, and all of them with the same three methods.

A peer is used in the best way that is known for it: connections are open, services are up, and starting those is not
measured. Refuses to leave a peer out in silence: one that cannot be installed is a Failed with the reason.
"""

from __future__ import annotations

from typing import Protocol

from bench.work import Work


class Peer(Protocol):
    """`install`, then `run` as often as wanted, then `close`."""

    name: str

    def install(self) -> str:
        """Make it ready to run; its version. Failed when it cannot be had here."""

    def run(self, work: Work) -> float:
        """Seconds until every run has ended and its output is here. Failed when one of them did not go well."""

    def close(self) -> None:
        """Leave no process behind; also after an `install` that failed."""
