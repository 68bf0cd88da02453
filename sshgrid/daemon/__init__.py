"""Daemon: the master as a process with a lock, a Unix socket, an SSH gateway and an inventory file that it follows."""

from __future__ import annotations

IDLE_EXIT = "15m"  # a master that a command has started stops after this time without work


def idle_seconds(text: str) -> float | None:
    """The seconds of a duration; None for "never". Raises UsageError."""
    from sshgrid.notation.quantities import parse_duration

    return None if text == "never" else parse_duration(text)
