"""The input of `run -I`: stdin is sent to the program, in raw mode when it is a terminal, with the size of the window.

In raw mode Ctrl-C goes to the program. As in ssh, Enter `~` `.` leaves: the first time it cancels the job, the second
time it detaches.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sshgrid.client.connection import Connection
from sshgrid.client.follow import Keyboard
from sshgrid.protocol.messages import Input, Resize

READ_BYTES = 64 * 1024
_ENTER = b"\r\n"


class EscapeDetector:
    """Finds `~.` at the start of a line, byte by byte, as a terminal may split its input anywhere."""

    def __init__(self) -> None:
        self._state = "line start"

    def read(self, piece: bytes) -> tuple[bytes, bool]:
        """The input for the program, and whether the user typed `~.`. `~~` is one `~`."""
        out = bytearray()
        for byte in piece:
            letter = bytes([byte])
            if self._state == "tilde":
                self._state = "within"
                if letter == b".":
                    return bytes(out), True
                if letter != b"~":
                    out += b"~"
            elif self._state == "line start" and letter == b"~":
                self._state = "tilde"
                continue
            out += letter
            self._state = "line start" if letter in _ENTER else "within"
        return bytes(out), False


class TerminalInput(Keyboard):
    """Reads descriptor 0, which is a stream or a terminal."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.descriptor = 0
        self._terminal = terminal
        self._escape = EscapeDetector()
        self._connection: Connection | None = None

    def begin(self, connection: Connection) -> None:
        self._connection = connection
        if self._terminal:
            self._send_size()

    def read_input(self, connection: Connection) -> None:
        try:
            piece = os.read(self.descriptor, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self.descriptor = -1
            connection.queue(Input(0))
            return
        typed, leaves = self._escape.read(piece) if self._terminal else (piece, False)
        if typed:
            connection.queue(Input(len(typed)), typed)
        if leaves:
            self.leave()

    def _send_size(self) -> None:
        if self._connection is not None:
            size = os.get_terminal_size(0)
            self._connection.queue(Resize(size.columns, size.lines))
            self._connection.flush_some()

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Set the terminal to raw mode; restore it at the end, also after a signal."""
        if not self._terminal:
            yield
            return
        import termios
        import tty

        before = termios.tcgetattr(0)
        handlers = {number: signal.signal(number, _leave_by_signal) for number in (signal.SIGTERM, signal.SIGHUP)}
        handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda _number, _frame: self._send_size())
        try:
            tty.setraw(0)
            yield
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _leave_by_signal(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
