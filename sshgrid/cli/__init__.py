"""The command line: parses arguments, calls the client, prints results.

`main` is the entry point of the `sshgrid` command. The commands are in sshgrid.cli.verbs; `run` with its usual options
takes a shorter path through sshgrid.cli.fast_run, without click. A traceback is shown only with -vv.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sshgrid.client.session import Session

FAILED = 125


def main() -> None:
    """The `sshgrid` command."""
    # Imports create no garbage; without this the collector would run ten times, which takes 3 ms.
    gc.set_threshold(50_000)
    sys.excepthook = _print_bug
    stdout_closed = sys.stdout is None
    _open_standard_descriptors()
    from sshgrid.client.session import Session, report_error

    session = Session()
    if stdout_closed:
        from sshgrid.errors import SshgridError

        leave(report_error(session, SshgridError("standard output is closed", "sshgrid ... >/dev/null")))
    leave(_run(sys.argv[1:], session))


def _run(argv: Sequence[str], session: Session) -> int:
    from sshgrid.cli import fast_run

    _import_msgspec()
    if parsed := fast_run.parse(argv):
        return fast_run.run(parsed, session)
    from sshgrid.cli.verbs import invoke

    return invoke(argv, session)


def _import_msgspec() -> None:
    """Import msgspec without typing_extensions, which is optional, takes 8 ms and is not needed here."""
    name = "typing_extensions"
    if name in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules[name]


def _open_standard_descriptors() -> None:
    """Open closed descriptors below 3, so that output never goes to a socket that got such a number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def leave(status: int) -> None:
    """Flush the output and exit without the cleanup of the interpreter, which takes 5 ms."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                status = status or FAILED
    os._exit(status)


def _print_bug(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    from sshgrid.terminal import render

    if "-vv" in sys.argv or sys.argv.count("-v") > 1:
        sys.__excepthook__(kind, error, at)
    render.write_err(
        f"error: internal error: {kind.__name__}: {error}\nhint: repeat the command with -vv to see the traceback\n"
    )
    os._exit(FAILED)
