"""What the record of a run means. Pure: decides whether the program, its toolchain or the node is at fault.

The exit code comes from the record alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sshgrid.engines.launch import BUILD_LIMIT_SECONDS
from sshgrid.model import (
    CompileFailed,
    Exited,
    HostLost,
    Limits,
    Outcome,
    OutOfMemory,
    OutputLimit,
    ProcessLimit,
    TimedOut,
    ToolchainBroken,
    Usage,
)
from sshgrid.ssh.parsers import RunRecord

BUILD_LOG = "build.log"
BUILD_LOG_BYTES = 1 << 20
WRAPPER_LOG_BYTES = 300
LEASE_ENDED = "its lease ended, as no master renewed it in time"
VANISHED = "the run vanished: its wrapper was killed, or the machine restarted"


class Evidence(NamedTuple):
    """The file of a run folder that explains a failure, and how many of its bytes to read."""

    name: str
    most_bytes: int


def evidence(record: RunRecord, why: str, sizes: Mapping[str, int]) -> Evidence | None:
    """Return the file to read before `outcome` is called; None when the record says enough."""
    if record.stage == "build" and sizes.get(BUILD_LOG, 0):
        return Evidence(BUILD_LOG, min(sizes[BUILD_LOG], BUILD_LOG_BYTES))
    if record.stage == "start" and why != "toolchain" and why not in _BY_REASON:
        return Evidence("wrapper.log", WRAPPER_LOG_BYTES)
    return None


def has_build(record: RunRecord) -> bool:
    """Return whether the node has the run's build: everything up to the program's start succeeded."""
    return record.stage not in ("layout", "build")


def outcome(record: RunRecord, why: str, limits: Limits, language: str, tool: bytes, text: bytes) -> Outcome:
    """Return the outcome of a run. `tool` is the first word of its command, `text` what its evidence holds."""
    if record.stage == "layout":
        what = "the files of the run" if why == "data" else "the build"
        return HostLost(f"no space left for {what}")
    if record.stage == "build":
        return build_outcome(record.code, why, text, language)
    if why == "toolchain":
        return ToolchainBroken(f"{tool.decode(errors='replace')} is no longer there")
    if by_reason := _BY_REASON.get(why):
        return by_reason(limits)
    if record.stage == "start":
        words = " ".join(text.decode(errors="replace").split())
        return HostLost(f"the program could not be started there: {words or record.code}")
    return Exited(record.code)


# What `why` of a run folder names, for a run whose program was to start.
_BY_REASON: Mapping[str, Callable[[Limits], Outcome]] = {
    "wall": lambda limits: TimedOut(limits.wall_seconds or 0.0),
    "memory": lambda limits: OutOfMemory(limits.memory_bytes or 0),
    "output": lambda limits: OutputLimit(limits.output_bytes or 0),
    "processes": lambda limits: ProcessLimit(limits.processes or 0),
    "lease": lambda _: HostLost(LEASE_ENDED),
    "full": lambda _: HostLost("its disk was full when the run ended: what it printed may not be whole"),
}


def build_outcome(code: int, why: str, text: bytes, language: str) -> Outcome:
    """Return the outcome of a failed build: the fault of the program, of the toolchain or of the node."""
    if b"No space left on device" in text:
        return HostLost("no space left for the build")
    if why == "lease":
        return HostLost(LEASE_ENDED)
    if why == "wall":
        return ToolchainBroken(f"the {language} compiler did not end within {BUILD_LIMIT_SECONDS} s")
    if code in (126, 127):
        return ToolchainBroken(f"the {language} compiler could not be started")
    if code >= 128 or b"internal compiler error" in text:
        return ToolchainBroken(f"the {language} compiler crashed (status {code})")
    return CompileFailed(code)


def lost_batch(why: str) -> str:
    """Return why the tasks of a batch that ended without a record are lost."""
    return LEASE_ENDED if why == "lease" else VANISHED


def usage(record: RunRecord) -> Usage:
    """Return the resources that a record reports."""
    return Usage(record.began_uptime, record.ended_uptime, record.cpu_seconds, record.peak_memory_bytes)
