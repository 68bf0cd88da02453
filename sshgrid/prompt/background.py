"""Jobs that are followed beside the prompt: complete lines of their output appear above it, after the job's number.

While another command runs, nothing is printed or read: the output stays where it is kept. Control characters are
escaped, as they would change the line that the user is typing.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sshgrid.client.connection import Connection
from sshgrid.client.follow import ReconnectingReader
from sshgrid.errors import SshgridError
from sshgrid.model import JobId
from sshgrid.protocol.messages import JobLine, Logs, Notice, Progress, Restarted, Waiting
from sshgrid.terminal import render
from sshgrid.terminal.render import escape

PAUSE_SECONDS = 0.1  # after each piece, so that fast output does not pile up before a slow terminal
MAX_LINE_BYTES = 16 * 1024


class Background:
    """Follows jobs in threads. `connect` must not print."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._prompting = threading.Condition()
        self._is_prompting = False
        self._followed: dict[JobId, _AbovePrompt] = {}

    @property
    def jobs(self) -> tuple[JobId, ...]:
        return tuple(self._followed)

    def watch(self, job: JobId) -> None:
        """Show all output of a job, unless it is already shown."""
        if job not in self._followed:
            self._followed[job] = screen = _AbovePrompt(job, self._print)
            threading.Thread(target=self._follow, args=(job, screen), name=f"job {job}", daemon=True).start()

    def unwatch(self, job: JobId) -> None:
        """Stop showing the output of a job."""
        if screen := self._followed.pop(job, None):
            screen.unwatched = True

    @contextmanager
    def shown_above(self) -> Iterator[None]:
        """While the prompt is open, print above it."""
        from prompt_toolkit.patch_stdout import patch_stdout

        with patch_stdout():
            with self._prompting:
                self._is_prompting = True
                self._prompting.notify_all()
            try:
                yield
            finally:
                with self._prompting:
                    self._is_prompting = False

    def _print(self, text: str) -> None:
        """Print once the prompt is open."""
        with self._prompting:
            self._prompting.wait_for(lambda: self._is_prompting)
            sys.stdout.write(text)
            sys.stdout.flush()

    def _follow(self, job: JobId, screen: _AbovePrompt) -> None:
        request = Logs(job, follow=True, streams=("compile", "stdout", "stderr"))
        try:
            with ReconnectingReader(self._connect(), self._connect) as following:
                screen.ended(following.logs(request, screen), interrupted=False)
        except _Unwatched:
            return
        except (OSError, SshgridError) as error:
            self._print(f"[{job}] {escape(str(error))}\n")
        self._followed.pop(job, None)


class _Unwatched(Exception):
    """The user stopped watching the job."""


class _AbovePrompt:
    """A Screen that prefixes each line with the number of the job."""

    def __init__(self, job: JobId, print_text: Callable[[str], None]) -> None:
        self._job, self._print = job, print_text
        self._partial: dict[str, bytearray] = {}  # lines without an end, by stream
        self._pause = threading.Event()
        self.unwatched = False

    def output(self, stream: str, attempt: int, piece: bytes) -> None:
        partial = self._partial.setdefault(stream, bytearray())
        partial += piece
        *whole, rest = bytes(partial).split(b"\n")
        if len(rest) > MAX_LINE_BYTES:
            whole, rest = [*whole, rest], b""
        self._partial[stream] = bytearray(rest)
        self._show(whole)

    def _show(self, lines: list[bytes]) -> None:
        if self.unwatched:
            raise _Unwatched
        if lines:
            texts = (escape(line.decode("utf-8", "replace").removesuffix("\r")) for line in lines)
            self._print("".join(f"{self._job}: {each}\n" for each in texts))
            self._pause.wait(PAUSE_SECONDS)

    def restarted(self, event: Restarted) -> None:
        self._partial.pop(event.stream, None)
        self._print(f"[{self._job}] {event.stream} restarts: attempt {event.attempt}\n")

    def ended(self, job: JobLine, interrupted: bool) -> None:
        self._show([bytes(rest) for rest in self._partial.values() if rest])
        if self.unwatched:
            raise _Unwatched
        reason = f": {escape(job.reason)}" if job.reason else ""
        self._print(f"[{job.id}] {job.state} {render.exit_text(job)}{reason}\n")
        if job.fetched and job.fetched.files:
            self._print(f"[{job.id}] {job.fetched.files} files to fetch: attach {job.id} --into DIR\n")

    def fetched(self, name: str, size: int, replaced: bool) -> None:
        """Print nothing: files stay with the master."""

    def accepted(self, job: int) -> None:
        """Print nothing: the number was printed on submission."""

    def progress(self, event: Progress) -> None:
        """Print nothing: the bottom line counts running jobs."""

    def waiting(self, event: Waiting) -> None:
        """Print nothing: the bottom line counts waiting jobs."""

    def notice(self, event: Notice) -> None:
        self._print(f"[{self._job}] {escape(event.text)}\n")
