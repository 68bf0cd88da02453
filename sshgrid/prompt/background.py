"""Jobs that are followed beside the prompt: each whole line of their output appears above it, behind the job's number.

While a command of the person's own runs nothing is shown, and nothing is read either: the output waits where it is
kept. Refuses to let control characters through, as they would act upon the line that is being typed.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sshgrid.client.connection import Connection
from sshgrid.client.follow import JobReader
from sshgrid.errors import SshgridError
from sshgrid.model import JobId
from sshgrid.protocol.messages import JobLine, Logs, Notice, Progress, Restarted, Waiting
from sshgrid.terminal import render
from sshgrid.terminal.render import escape

BREATH_SECONDS = 0.1  # after each piece, so that a torrent cannot pile up in front of a slow terminal
LONGEST_LINE = 16 * 1024


class Background:
    """What is followed. `connect` must say nothing."""

    def __init__(self, connect: Callable[[], Connection]) -> None:
        self._connect = connect
        self._prompting = threading.Condition()
        self._is_prompting = False
        self._followed: dict[JobId, _Above] = {}

    @property
    def jobs(self) -> tuple[JobId, ...]:
        return tuple(self._followed)

    def watch(self, job: JobId) -> None:
        """From its first byte to its end; once is enough."""
        if job not in self._followed:
            self._followed[job] = screen = _Above(job, self._say)
            threading.Thread(target=self._follow, args=(job, screen), name=f"job {job}", daemon=True).start()

    def unwatch(self, job: JobId) -> None:
        """Nothing more of it is shown."""
        if screen := self._followed.pop(job, None):
            screen.left = True

    @contextmanager
    def shown_above(self) -> Iterator[None]:
        """While a prompt is open: what is printed goes above it."""
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

    def _say(self, text: str) -> None:
        """As soon as there is a prompt to stand above."""
        with self._prompting:
            self._prompting.wait_for(lambda: self._is_prompting)
            sys.stdout.write(text)
            sys.stdout.flush()

    def _follow(self, job: JobId, screen: _Above) -> None:
        request = Logs(job, follow=True, streams=("compile", "stdout", "stderr"))
        try:
            with JobReader(self._connect(), self._connect) as following:
                screen.ended(following.logs(request, screen), interrupted=False)
        except _Left:
            return
        except (OSError, SshgridError) as error:
            self._say(f"[{job}] {escape(str(error))}\n")
        self._followed.pop(job, None)


class _Left(Exception):
    """The person does not want to see it any more."""


class _Above:
    """A Screen whose lines begin with the number of their job."""

    def __init__(self, job: JobId, say: Callable[[str], None]) -> None:
        self._job, self._say = job, say
        self._begun: dict[str, bytearray] = {}  # lines without an end yet
        self._breath = threading.Event()
        self.left = False

    def output(self, stream: str, attempt: int, piece: bytes) -> None:
        begun = self._begun.setdefault(stream, bytearray())
        begun += piece
        *whole, rest = bytes(begun).split(b"\n")
        if len(rest) > LONGEST_LINE:
            whole, rest = [*whole, rest], b""
        self._begun[stream] = bytearray(rest)
        self._show(whole)

    def _show(self, lines: list[bytes]) -> None:
        if self.left:
            raise _Left
        if lines:
            words = (escape(line.decode("utf-8", "replace").removesuffix("\r")) for line in lines)
            self._say("".join(f"{self._job}: {each}\n" for each in words))
            self._breath.wait(BREATH_SECONDS)

    def restarted(self, event: Restarted) -> None:
        self._begun.pop(event.stream, None)
        self._say(f"[{self._job}] {event.stream} starts again: attempt {event.attempt}\n")

    def ended(self, job: JobLine, interrupted: bool) -> None:
        self._show([bytes(rest) for rest in self._begun.values() if rest])
        if self.left:
            raise _Left
        reason = f": {escape(job.reason)}" if job.reason else ""
        self._say(f"[{job.id}] {job.state} {render.exit_text(job)}{reason}\n")
        if job.fetched and job.fetched.files:
            self._say(f"[{job.id}] {job.fetched.files} files wait: attach {job.id} --into DIR\n")

    def fetched(self, name: str, size: int, replaced: bool) -> None:
        """They are left with the master: nobody has said that this is the moment to write them."""

    def accepted(self, job: int) -> None:
        """Its number was printed when it was submitted."""

    def progress(self, event: Progress) -> None:
        """The bottom line says how many run."""

    def waiting(self, event: Waiting) -> None:
        """As above."""

    def notice(self, event: Notice) -> None:
        self._say(f"[{self._job}] {escape(event.text)}\n")
