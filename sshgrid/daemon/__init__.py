"""The master as a process: its lock, its Unix socket, and the inventory file that it follows."""

from __future__ import annotations

IDLE_EXIT = "15m"  # a master that was started by a command ends after so long without work


def idle_seconds(text: str) -> float | None:
    """None = never. Raises UsageError."""
    from sshgrid.notation.quantities import parse_duration

    return None if text == "never" else parse_duration(text)
