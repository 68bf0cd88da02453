"""What engines and the build cache need from a node: its connection, and how long it has been silent."""

from __future__ import annotations

from typing import Protocol

from sshgrid.ssh.link import Link


class BuildNode(Protocol):
    """A node that builds programs or receives builds."""

    name: str

    async def connected(self, patience_seconds: float) -> Link:
        """Return the live connection. Raises Dropped when there is none for `patience_seconds`."""

    def silent_seconds(self) -> float:
        """Return the seconds since the node's last sign of life."""


class EngineHost(BuildNode, Protocol):
    """A node that runs programs."""

    def uptime_now(self) -> float:
        """Return the node's uptime in seconds, extrapolated from its last load sample."""
