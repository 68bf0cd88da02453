"""The command line: parses arguments, calls the client, prints results.

`main` is the entry point of the `sshgrid` command. The commands are in sshgrid.cli.verbs; `run` with its usual options
takes a shorter path through sshgrid.cli.fast_run, without click. A traceback is shown only with -vv.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

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
    # What an import makes is no garbage: looking through it ten times costs 3 ms of those that people wait for.
    gc.set_threshold(50_000)
    sys.excepthook = _say_bug
    stdout_closed = sys.stdout is None
    _open_standard_descriptors()
    from sshgrid.client.session import Session, report_error

    session = Session()
    if stdout_closed:
        from sshgrid.errors import SshgridError

        leave(report_error(session, SshgridError("standard output is closed", "sshgrid ... >/dev/null")))
    leave(_status(sys.argv[1:], session))


def _status(words: Sequence[str], session: Session) -> int:
    from sshgrid.cli import fast_run

    _import_msgspec()
    if parsed := fast_run.parse(words):
        return fast_run.run(parsed, session)
    from sshgrid.cli.verbs import invoke

    return invoke(words, session)


def _import_msgspec() -> None:
    """Without typing_extensions, as where that is not installed: it costs 8 ms and brings nothing that is used here."""
    name = "typing_extensions"
    if name in sys.modules:
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        import msgspec  # noqa: F401
    finally:
        del sys.modules[name]


def _open_standard_descriptors() -> None:
    """A closed 0, 1 or 2 would be given to the next thing opened, and output would go into the master's socket."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)


def leave(status: int) -> None:
    """Flush and go, without the 5 ms an interpreter takes to tidy up what the system tidies up anyway."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            try:
                stream.flush()
            except (OSError, ValueError):
                status = status or FAILED
    os._exit(status)


def _say_bug(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    from sshgrid.terminal import render

    if "-vv" in sys.argv or sys.argv.count("-v") > 1:
        sys.__excepthook__(kind, error, at)
    render.write_err(f"error: internal error: {kind.__name__}: {error}\nhint: the same command with -vv shows where\n")
    os._exit(FAILED)
