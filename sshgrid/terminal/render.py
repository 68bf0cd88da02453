"""What the command line prints: tables without borders, JSON, colours, times, and the `error:` and `hint:` lines.

Pure functions, but for `TextStyle.detect`, which asks about the terminal, and the two `write` functions. On a terminal,
control characters in text from others (names, reasons) are shown escaped, so that a job's name cannot change the
screen. The output of programs does not pass through this module.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from sshgrid.errors import SshgridError
from sshgrid.model import JobId, is_task, job_text
from sshgrid.notation.quantities import format_duration, format_size
from sshgrid.protocol.messages import AttemptLine, ClientLine, JobLine, NodeLine, NodeReason
from sshgrid.protocol.sweep_messages import SweepProgress, TaskLine

SCHEMA = 1
_COLOURS = {"red": "31", "green": "32", "yellow": "33", "cyan": "36", "dim": "2", "bold": "1"}
STATE_COLOURS = {
    "RUNNING": "cyan",
    "COMPLETED": "green",
    "FAILED": "red",
    "COMPILE_ERROR": "red",
    "TIMEOUT": "red",
    "NODE_FAIL": "red",
    "OUT_OF_MEMORY": "red",
    "DISCONNECTED": "yellow",
    "CANCELLED": "dim",
    "IDLE": "green",
    "MIXED": "cyan",
    "ALLOCATED": "cyan",
    "DRAINING": "yellow",
    "DRAINED": "yellow",
    "DOWN": "red",
    "UNKNOWN": "dim",
}


class TextStyle(msgspec.Struct, frozen=True):
    """How text is printed on a stream."""

    colour: bool = False
    terminal: bool = False
    columns: int = 0  # 0 = lines are not cut
    escapes: bool = False  # escape control characters even without a terminal

    @classmethod
    def detect(cls, descriptor: int, colour: str, environ: Mapping[str, str], *, escapes: bool = False) -> TextStyle:
        terminal = _is_terminal(descriptor)
        plain = bool(environ.get("NO_COLOR")) or environ.get("TERM") == "dumb"
        coloured = colour == "always" or (colour == "auto" and terminal and not plain)
        return cls(coloured, terminal, _columns(descriptor) if terminal else 0, escapes)

    def paint(self, text: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.colour and colour and text else text

    def safe(self, text: str) -> str:
        return escape(text) if self.terminal or self.escapes else text


def _is_terminal(descriptor: int) -> bool:
    try:
        return os.isatty(descriptor)
    except OSError:
        return False


def _columns(descriptor: int) -> int:
    try:
        return os.get_terminal_size(descriptor).columns
    except OSError:
        return 80


def escape(text: str) -> str:
    """The text with control characters as \\x1b and the like; newlines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in "\n\t" else _escaped(letter) for letter in text)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


# --- tables ----------------------------------------------------------------------------------------------------------


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    style: TextStyle,
    *,
    right: frozenset[str] = frozenset(),
    with_header: bool = True,
) -> str:
    """Rows with two spaces between columns; on a terminal, lines are cut at its width."""
    cells = [[style.safe(cell).replace("\n", " ") for cell in row] for row in rows]
    top = [list(header)] if with_header else []
    widths = [max((len(row[column]) for row in [*top, *cells]), default=0) for column in range(len(header))]
    lines = [_line(row, header, widths, style, right) for row in top]
    lines += [_painted(_line(row, header, widths, style, right), row, style) for row in cells]
    return "".join(f"{line}\n" for line in lines)


def _line(
    row: Sequence[str], header: Sequence[str], widths: Sequence[int], style: TextStyle, right: frozenset[str]
) -> str:
    padded = [
        cell.rjust(width) if name in right else cell.ljust(width)
        for cell, width, name in zip(row, widths, header, strict=True)
    ]
    line = "  ".join(padded).rstrip()
    if style.columns and len(line) > style.columns:
        line = line[: style.columns - 1] + "…"
    return line


def _painted(line: str, row: Sequence[str], style: TextStyle) -> str:
    """Add colour after cutting: escape codes have no width, and a cut must not remove the one that ends the colour."""
    if not style.colour:
        return line
    for cell in row:
        if colour := STATE_COLOURS.get(cell.partition("*")[0], ""):
            return line.replace(cell, style.paint(cell, colour), 1)
    return line


# --- jobs and nodes --------------------------------------------------------------------------------------------------

JOB_HEADER = ("ID", "USER", "STATE", "NODE", "TIME", "TRY", "EXIT", "PROGRAM", "REASON")
JOB_RIGHT = frozenset({"ID", "TIME", "TRY"})
NODE_HEADER = ("NAME", "STATE", "CPU", "LOAD", "MEMORY", "RUNNING", "REASON", "TOOLCHAINS")
NODE_RIGHT = frozenset({"CPU", "LOAD", "MEMORY", "RUNNING"})


def job_row(job: JobLine) -> tuple[str, ...]:
    """The cells of a job in `ps`."""
    return (
        job_text(job.id),
        job.user,
        job.state,
        job.node or "-",
        format_duration(job.seconds),
        f"{job.attempt}/{job.attempts_allowed}" if job.attempt else "-",
        exit_text(job),
        f"{job.name}: {job.program}" if job.name else job.program,
        job.phase if job.state == "RUNNING" and job.phase != "running" and not job.reason else job.reason,
    )


def sweep_text(sweep: SweepProgress) -> str:
    """The progress of a sweep in one line, for `info`."""
    parts = [f"{sweep.ended} of {sweep.tasks} done", f"{sweep.failed} failed", f"{sweep.running} running"]
    if sweep.waiting:
        parts.append(f"{sweep.waiting} waiting")
    if sweep.left:
        parts.append(f"{sweep.left} not started")
    if sweep.eta_seconds is not None and sweep.waiting + sweep.running:
        parts.append(f"about {format_duration(round(sweep.eta_seconds))} left")
    return ", ".join(parts)


def exit_text(job: JobLine) -> str:
    """The exit as code:signal, as in Slurm; "-" before the end."""
    if job.exit_code is None and job.signal is None:
        return "-"
    return f"{job.exit_code or 0}:{job.signal or 0}" if not job.signal else f"0:{job.signal}"


def attempt_row(attempt: AttemptLine) -> tuple[str, ...]:
    """The cells of an attempt in `info`."""
    ended = time.time() if attempt.ended is None else attempt.ended
    return (
        f"{attempt.number} (speculative)" if attempt.speculative else str(attempt.number),
        attempt.node,
        attempt.outcome or "-",
        format_duration(max(ended - attempt.started, 0.0)),
        format_size(attempt.uploaded_bytes),
        {None: "-", True: "yes", False: "no"}[attempt.compiled],
        "-" if attempt.cpu_seconds is None else format_duration(attempt.cpu_seconds),
        "-" if attempt.peak_memory is None else format_size(attempt.peak_memory),
        attempt.toolchain or "-",
        attempt.isolation or "-",
    )


def node_row(node: NodeLine) -> tuple[str, ...]:
    """The cells of a node in `nodes`."""
    reason = node.reason
    if node.next_try_seconds is not None:
        reason = f"{reason}, next try in {format_duration(max(node.next_try_seconds, 0.0))}".lstrip(", ")
    return (
        node.name,
        str(node.state),
        "-" if node.cpu is None else f"{node.cpu:.0%}",
        "-" if node.load is None else f"{node.load:.2f}",
        "-" if node.memory_free is None else format_size(node.memory_free),
        f"{node.running}/{'-' if node.slots is None else node.slots}",
        reason or "-",
        ",".join(node.toolchains) or "-",
    )


def pairs(rows: Iterable[tuple[str, str]], style: TextStyle) -> str:
    """Lines of `label  value`; empty values are left out."""
    known = [(label, style.safe(value)) for label, value in rows if value]
    width = max((len(label) for label, _ in known), default=0)
    return "".join(f"{style.paint(label.ljust(width), 'dim')}  {value}\n" for label, value in known)


# --- JSON ------------------------------------------------------------------------------------------------------------


def to_json(value: object) -> str:
    """JSON in one line."""
    return msgspec.json.encode(value).decode("utf-8")


def iso(at: float | None) -> str | None:
    """ISO 8601, UTC, milliseconds, with Z."""
    if at is None:
        return None
    whole, millis = divmod(round(at * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{millis:03d}Z"


def local_time(at: float | None) -> str:
    """The local time; "" for None."""
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def bytes_object(piece: bytes) -> dict[str, object]:
    """A program's output for --json: as text, or as base64 if it is not UTF-8."""
    try:
        return {"text": piece.decode("utf-8")}
    except UnicodeDecodeError:
        import base64

        return {"base64": base64.b64encode(piece).decode("ascii")}


def job_object(job: JobLine, *, full: bool = True) -> dict[str, object]:
    """A job for --json; `full` adds its attempts, and why it waits."""
    value: dict[str, object] = msgspec.to_builtins(job)
    value |= {"schema": SCHEMA, "submitted": iso(job.submitted), "started": iso(job.started)}
    del value["attempts"], value["why"]
    if is_task(job.id):
        value["id"] = job_text(job.id)
    if job.sweep is None:
        del value["sweep"]
    else:
        value["sweep"] = progress_object(job.sweep)
    if full:
        value["attempts"] = [_attempt_object(attempt) for attempt in job.attempts]
        if job.why or job.state == "PENDING":
            value["why"] = why_objects(job.why)
    return value


def _attempt_object(attempt: AttemptLine) -> dict[str, object]:
    value: dict[str, object] = msgspec.to_builtins(attempt)
    return value | {"schema": SCHEMA, "started": iso(attempt.started), "ended": iso(attempt.ended)}


def why_objects(why: Iterable[NodeReason]) -> list[dict[str, object]]:
    """Why each node does not take a job, for --json."""
    return [{"schema": SCHEMA, "node": each.node, "reason": each.reason} for each in why]


def node_object(node: NodeLine) -> dict[str, object]:
    """A node for --json."""
    value: dict[str, object] = msgspec.to_builtins(node)
    if not node.cpu_minute:
        del value["cpu_minute"]
    return value | {"schema": SCHEMA, "last_seen": iso(node.last_seen)}


def task_object(sweep: JobId, task: TaskLine) -> dict[str, object]:
    """A task for --json."""
    value: dict[str, object] = msgspec.to_builtins(task)
    return {"schema": SCHEMA, "id": f"{sweep}.{task.number}", **value, "started": iso(task.started)}


def progress_object(progress: SweepProgress) -> dict[str, object]:
    """The progress of a sweep, for --json."""
    value: dict[str, object] = msgspec.to_builtins(progress)
    del value["type"]
    slowest = progress.slowest
    value["slowest"] = None if slowest is None else task_object(progress.job, slowest)
    return {"schema": SCHEMA, **value}


def client_object(client: ClientLine) -> dict[str, object]:
    """A client for --json."""
    value: dict[str, object] = msgspec.to_builtins(client)
    return value | {"schema": SCHEMA, "since": iso(client.since)}


def error_object(error: SshgridError) -> dict[str, object]:
    """A failure for --json."""
    inner = {"code": error.code, "message": error.message, "hint": error.hint}
    return {"schema": SCHEMA, "error": inner}


# --- errors ----------------------------------------------------------------------------------------------------------


def error_text(error: SshgridError, style: TextStyle) -> str:
    """The lines `error: ...` and, if there is a hint, `hint: ...`."""
    text = f"{style.paint('error:', 'red')} {style.safe(error.message)}\n"
    return text + (f"{style.paint('hint:', 'cyan')} {style.safe(error.hint)}\n" if error.hint else "")


def write_out(text: str) -> None:
    """Write to stdout and flush; bytes of file names that are not UTF-8 stay as they are."""
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()


def write_err(text: str) -> None:
    """Write to stderr and flush; errors are ignored."""
    if sys.stderr is None:
        return
    try:
        sys.stderr.buffer.write(text.encode("utf-8", "backslashreplace"))
        sys.stderr.buffer.flush()
    except (OSError, ValueError):
        return
