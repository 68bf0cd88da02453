"""States, reasons and exit statuses of jobs, derived from their attempts and verdicts."""

from __future__ import annotations

import signal
from typing import assert_never

from sshgrid.model import (
    Cancelled,
    CompileFailed,
    Crashed,
    Exited,
    GaveUp,
    HostLost,
    Job,
    Outcome,
    OutOfMemory,
    OutputLimit,
    Phase,
    ProcessLimit,
    Superseded,
    SweepDone,
    TimedOut,
    ToolchainBroken,
    Verdict,
)
from sshgrid.notation.quantities import format_duration, format_size

MOST_FAILED = 101  # as in GNU parallel: an exit status of 1 to 100 is the number of failed tasks, 101 = more
HELD_BY_USER = "HeldByUser"


def state(job: Job, disconnected: bool = False) -> str:
    """The state of a job, in Slurm's words. `disconnected` = the host of the running attempt is silent."""
    match job.phase:
        case Phase.QUEUED:
            return "PENDING"
        case Phase.RUNNING:
            return "DISCONNECTED" if disconnected else "RUNNING"
        case Phase.DONE:
            return _ended_state(job.verdict)
        case _:
            assert_never(job.phase)


def _ended_state(verdict: Verdict | None) -> str:
    match verdict:
        case Exited(0) | SweepDone(failed=0):
            return "COMPLETED"
        case Exited() | OutputLimit() | ProcessLimit() | SweepDone() | Crashed() | None:
            return "FAILED"
        case CompileFailed():
            return "COMPILE_ERROR"
        case TimedOut():
            return "TIMEOUT"
        case OutOfMemory():
            return "OUT_OF_MEMORY"
        case Cancelled():
            return "CANCELLED"
        case GaveUp():
            return "NODE_FAIL"
        case _:
            assert_never(verdict)


def exit_status(job: Job) -> int | None:
    """The exit status of `run`, `attach` and `wait` for this job; None = it has not ended."""
    match job.verdict:
        case None:
            return None
        case Exited(code):
            return code
        case TimedOut():
            return 124
        case GaveUp(no_toolchain=True):
            return 127
        case SweepDone(failed=failed):
            return min(failed, MOST_FAILED)
        case GaveUp() | Crashed():
            return 125
        case CompileFailed():
            return 126
        case OutOfMemory() | ProcessLimit():
            return 128 + signal.SIGKILL
        case OutputLimit():
            return 128 + signal.SIGXFSZ
        case Cancelled(by):
            return 128 + cancel_signal(by)
        case _:
            assert_never(job.verdict)


def cancel_signal(by: str) -> int:
    """The number of the signal in Cancelled.by ("INT", "KILL by ana"); SIGTERM when it names none."""
    name = by.split(maxsplit=1)[0].upper() if by.strip() else "TERM"
    found = signal.Signals.__members__.get(f"SIG{name.removeprefix('SIG')}", signal.SIGTERM)
    return int(found)


def signal_of(code: int) -> int | None:
    """The signal N of an exit code 128+N, or None for any other code.

    As in a shell, a program that calls exit(128+N) looks the same as one that signal N ended. Real-time signals (above
    31) are not reported.
    """
    return code - 128 if 129 <= code <= 159 else None


def ended_by_signal(verdict: Verdict | None) -> int | None:
    """The number of the signal that ended the program; None = no signal, or it is not known."""
    match verdict:
        case Exited(code):
            return signal_of(code)
        case OutOfMemory() | ProcessLimit():
            return int(signal.SIGKILL)
        case OutputLimit():
            return int(signal.SIGXFSZ)
        case Cancelled(by):
            return cancel_signal(by)
        case CompileFailed() | TimedOut() | GaveUp() | SweepDone() | Crashed() | None:
            return None
        case _:
            assert_never(verdict)


def reason(job: Job, now: float | None = None) -> str:
    """Why a job waits, or how it ended, for a table cell; "" = no reason. With `now`, a job in backoff has a reason."""
    if job.verdict is not None:
        return outcome_text(job.verdict)
    if job.held:
        return job.held
    if job.phase is Phase.QUEUED and now is not None and job.not_before > now:
        return "Backoff"
    return ""


def outcome_text(outcome: Outcome | Superseded | Verdict) -> str:
    """How an attempt or a job ended, for a table cell; "" for success."""
    match outcome:
        case Exited(0):
            return ""
        case Exited(code):
            number = signal_of(code)
            return f"signal {number}" if number else f"exit code {code}"
        case CompileFailed(code):
            return f"compilation failed (exit code {code})"
        case TimedOut() | OutOfMemory() | OutputLimit() | ProcessLimit():
            return _limit_text(outcome)
        case Cancelled(by):
            return f"cancelled ({by})" if by else "cancelled"
        case HostLost(text) | ToolchainBroken(text) | GaveUp(text):
            return text
        case Superseded(by):
            return f"superseded by attempt {by}"
        case SweepDone():
            return _sweep_text(outcome)
        case Crashed(text):
            return f"a bug in sshgrid: {text}"
        case _:
            assert_never(outcome)


def _limit_text(outcome: TimedOut | OutOfMemory | OutputLimit | ProcessLimit) -> str:
    match outcome:
        case TimedOut(seconds):
            return f"time limit of {format_duration(seconds)}"
        case OutOfMemory(size):
            return f"memory limit of {format_size(size)}" if size else "out of memory"
        case OutputLimit(size):
            return f"output limit of {format_size(size)}"
        case ProcessLimit(count):
            return f"limit of {count} processes"
        case _:
            assert_never(outcome)


def _sweep_text(sweep: SweepDone) -> str:
    parts = [f"{sweep.failed} of {sweep.tasks} tasks failed"] if sweep.failed else []
    parts += [f"{sweep.left} not started"] if sweep.left else []
    return ", ".join(parts)
