"""Follow one job to its end: events to a screen, Ctrl-C and the terminal back to the master.

A master that goes away is looked for again, and what was already printed is not printed twice. Refuses to guess: when
the replayed output differs from what was printed, it says so and prints it from its first byte.
"""

from __future__ import annotations

import select
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sshgrid.client.connection import Connection, to_error
from sshgrid.errors import MasterGone, SshgridError
from sshgrid.model import JobId, OnDisconnect
from sshgrid.protocol.messages import (
    Cancel,
    Ended,
    Failure,
    JobLine,
    Logs,
    Message,
    Notice,
    Output,
    Progress,
    Request,
    Restarted,
    Seen,
    Waiting,
    Watch,
)
from sshgrid.terminal.screen import Screen

RECONNECT_SECONDS = 30.0
POLL_SECONDS = 1.0  # how long a word that a signal handler could not send may have to wait


class Detached(Exception):
    """The person left (second Ctrl-C, or `~.`); the job goes on."""


class _OutputDiffers(Exception):
    """The replay does not begin with what was printed."""


class PrintedOutput:
    """What of one stream is on the screen: enough to skip it in a replay, and to notice that the replay is another."""

    def __init__(self) -> None:
        self._since_attempt = 0  # output starts again with this attempt
        self._size, self._sum = 0, 0
        self._skip, self._skipped_sum = 0, 0

    def rewind(self) -> None:
        """The master is going to say everything again."""
        self._skip, self._skipped_sum = self._size, 0

    @property
    def missing(self) -> bool:
        """Whether the replay has not yet said all that was printed."""
        return self._skip > 0

    def restarted(self, attempt: int) -> bool:
        """False when this restart is part of a replay."""
        if attempt <= self._since_attempt:
            return False
        self._since_attempt, self._size, self._sum, self._skip = attempt, 0, 0, 0
        return True

    def forget(self) -> None:
        self._size, self._sum, self._skip = 0, 0, 0

    def fresh(self, attempt: int, piece: bytes) -> bytes:
        """The part of `piece` that is new. _OutputDiffers when the old part is not what was printed."""
        if attempt < self._since_attempt:
            return b""
        old, new = piece[: self._skip], piece[self._skip :]
        if old:
            self._skip -= len(old)
            self._skipped_sum = zlib.crc32(old, self._skipped_sum)
            if self._skip == 0 and self._skipped_sum != self._sum:
                raise _OutputDiffers
        self._size += len(new)
        self._sum = zlib.crc32(new, self._sum)
        return new


class Keyboard:
    """What an interactive run adds to following: nothing here, see sshgrid.client.interactive."""

    def __init__(self) -> None:
        self.descriptor = -1  # to be listened to; -1 = nothing to read (any more)
        self.leave: Callable[[], None] = lambda: None  # the person wants out

    @contextmanager
    def raw(self) -> Iterator[None]:
        """The terminal as the program wants it."""
        yield

    def begin(self, connection: Connection) -> None:
        """A (new) connection watches."""

    def typed(self, connection: Connection) -> None:
        """`descriptor` has something to read."""


class Follower:
    """A conversation about one job that outlives masters: `reopen` gives a new connection to the (perhaps new) one."""

    def __init__(
        self,
        connection: Connection,
        job: JobId,
        reopen: Callable[[], Connection],
        *,
        interrupt_cancels: bool = True,
        keyboard: Keyboard | None = None,
    ) -> None:
        self._connection, self._job, self._reopen = connection, job, reopen
        self._interrupt_cancels = interrupt_cancels
        self._keyboard = keyboard or Keyboard()
        self.interrupts = 0

    # --- what is asked, and what is made of the answers

    def _request(self) -> Request:
        raise NotImplementedError

    def _rewind(self) -> None:
        """The next master is going to say everything again."""

    def _event(self, message: Message, payload: bytes) -> None:
        """Something that was said; what is not known is the answer to a Cancel."""
        raise NotImplementedError

    def _check(self) -> None:
        """The end has come: is everything there?"""

    def _start_again(self) -> None:
        """What is said now is not what was said before."""

    # ---

    def until_ended(self) -> JobLine:
        """Everything the job says, to the screen. Detached: the person left. MasterGone: no master came back."""
        with self._interruptible():
            try:
                self._begin()
            except MasterGone as error:
                self._reconnect(error)
            while True:
                try:
                    return self._until_ended()
                except MasterGone as error:
                    self._reconnect(error)
                except _OutputDiffers:
                    self._start_again()
                except BrokenPipeError:
                    # Nobody reads the output: as with a local program, that ends it.
                    if self._interrupt_cancels:
                        self.cancel("TERM")
                    raise

    def _until_ended(self) -> JobLine:
        """Ends by an exception when the master goes."""
        for message, payload in conversation(self._connection, self._keyboard):
            match message:
                case Ended(job=job):
                    self._check()
                    return job
                case Failure():
                    raise to_error(message)
                case _:
                    self._event(message, payload)
        raise AssertionError("a conversation ends by an exception")

    def cancel(self, signal_name: str) -> None:
        """Also from a signal handler: queued when a send is under way."""
        self._connection.queue(Cancel((self._job,), signal_name))
        self._connection.flush_some()

    def leave(self) -> None:
        """First cancel, then, asked again, leave the job alone."""
        self.interrupts += 1
        if self.interrupts > 1 or not self._interrupt_cancels:
            raise Detached
        try:
            self.cancel("INT")
        except MasterGone:
            return  # said again to the next connection

    def _begin(self) -> None:
        self._connection.send(self._request())
        if self.interrupts and self._interrupt_cancels:
            self._connection.send(Cancel((self._job,), "INT"))
        self._keyboard.begin(self._connection)

    def _reconnect(self, first: MasterGone) -> None:
        self._connection.close()

        def begin(connection: Connection) -> None:
            self._connection = connection
            self._rewind()
            self._begin()

        reconnect(self._reopen, begin, self._job, first)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        def on_interrupt(_number: int, _frame: FrameType | None) -> None:
            self.leave()

        before = signal.signal(signal.SIGINT, on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
            self._connection.close()


class JobFollower(Follower):
    """One followed job, on a screen."""

    def __init__(
        self,
        connection: Connection,
        job: JobId,
        screen: Screen,
        reopen: Callable[[], Connection],
        *,
        on_disconnect: OnDisconnect = OnDisconnect.KEEP,
        interrupt_cancels: bool = True,
        keyboard: Keyboard | None = None,
    ) -> None:
        super().__init__(connection, job, reopen, interrupt_cancels=interrupt_cancels, keyboard=keyboard)
        self._screen = screen
        self._watch = Watch(job, on_disconnect=on_disconnect)
        self._printed: dict[str, PrintedOutput] = {}

    def _request(self) -> Request:
        return self._watch

    def _rewind(self) -> None:
        for printed in self._printed.values():
            printed.rewind()

    def _event(self, message: Message, payload: bytes) -> None:
        match message:
            case Output(stream=stream, attempt=attempt):
                if new := self._of(stream).fresh(attempt, payload):
                    self._screen.output(stream, attempt, new)
            case Progress():
                self._screen.progress(message)
            case Waiting():
                self._screen.waiting(message)
            case Notice():
                self._screen.notice(message)
            case Restarted(stream=stream, attempt=attempt):
                if self._of(stream).restarted(attempt):
                    self._screen.restarted(message)

    def _of(self, stream: str) -> PrintedOutput:
        return self._printed.setdefault(stream, PrintedOutput())

    def _check(self) -> None:
        for stream, printed in self._printed.items():
            if printed.missing:
                self._screen.notice(Notice(f"{stream} ended shorter than what was printed before"))

    def _start_again(self) -> None:
        for stream, printed in self._printed.items():
            if stream != "compile":
                printed.forget()
        self._screen.notice(Notice("the output starts again: it is not the one that was printed before"))
        self._reconnect(MasterGone("the output is asked for from its beginning"))


def conversation(connection: Connection, keyboard: Keyboard) -> Iterator[tuple[Message, bytes]]:
    """Messages as they come, while what is typed or queued goes out. Ends by MasterGone."""
    poll = select.poll()
    while True:
        yield from connection.buffered()
        clear = connection.flush_some()
        poll.register(connection.fileno(), select.POLLIN | (0 if clear else select.POLLOUT))
        # Read the keyboard only when what was typed before has left: the master's pace is ours.
        listening = keyboard.descriptor >= 0 and clear
        if listening:
            poll.register(keyboard.descriptor, select.POLLIN)
        ready = dict(poll.poll(POLL_SECONDS * 1000))
        if listening:
            poll.unregister(keyboard.descriptor)
            if keyboard.descriptor in ready:
                keyboard.typed(connection)
        if ready.get(connection.fileno(), 0) & ~select.POLLOUT:
            connection.read_once()


def reconnect(
    reopen: Callable[[], Connection], begin: Callable[[Connection], None], job: JobId, first: MasterGone
) -> None:
    """To the master that comes after the one that went, with which the conversation begins anew."""
    deadline, pause = time.monotonic() + RECONNECT_SECONDS, 0.05
    while True:
        try:
            begin(reopen())
            return
        except MasterGone as error:
            if time.monotonic() > deadline:
                raise _lost(job, error) from first
        except SshgridError as error:
            raise _lost(job, error) from first
        time.sleep(pause)
        pause = min(pause * 2, 1.0)


def _lost(job: JobId, error: SshgridError) -> MasterGone:
    return MasterGone(f"job {job} goes on, but its master is gone: {error}", f"sshgrid attach {job}")


class JobReader:
    """Requests about jobs, asked again of the next master when one goes: `wait` and `logs`."""

    def __init__(self, connection: Connection, reopen: Callable[[], Connection]) -> None:
        self.connection = connection
        self._reopen = reopen

    def __enter__(self) -> JobReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ended(self, job: JobId, deadline: float | None) -> JobLine | None:
        """The job as it ended; None when the deadline came first."""
        request = Watch(job, output=False)
        for message, _ in self._answers(lambda: request, job, deadline):
            if isinstance(message, Ended):
                return message.job
        return None

    def logs(self, request: Logs, screen: Screen) -> JobLine:
        """The kept output, each byte once."""
        seen: dict[str, Seen] = {}

        def rest() -> Logs:
            return Logs(
                request.job, request.attempt, request.follow, request.tail_lines, request.streams, tuple(seen.values())
            )

        for message, payload in self._answers(rest, request.job, None):
            match message:
                case Output(stream=stream, attempt=attempt, size=size, offset=offset):
                    screen.output(stream, attempt, payload)
                    seen[stream] = Seen(stream, attempt, offset + size)
                case Restarted():
                    screen.restarted(message)
                case Ended(job=job):
                    return job
                case _:
                    pass  # progress of a job that goes on
        raise AssertionError("without a deadline it ends by an event or an exception")

    def kept(self, job: JobId, attempt: int, stream: str) -> Iterator[bytes]:
        """A kept stream of one attempt, each byte once, as fast as it is taken."""
        seen: list[Seen] = []
        for message, payload in self._answers(
            lambda: Logs(job, attempt, streams=(stream,), seen=tuple(seen)), job, None
        ):
            match message:
                case Output(stream=stream, attempt=attempt, size=size, offset=offset):
                    yield payload
                    seen[:] = [Seen(stream, attempt, offset + size)]
                case Ended():
                    return
                case _:
                    pass

    def _answers(
        self, request: Callable[[], Request], job: JobId, deadline: float | None
    ) -> Iterator[tuple[Message, bytes]]:
        """Until the deadline. Raises the error that a Failure carries."""
        begun = False
        while True:
            try:
                if not begun:
                    self.connection.send(request())
                    begun = True
                for message, payload in self.connection.buffered():
                    if isinstance(message, Failure):
                        raise to_error(message)
                    yield message, payload
                if not self.connection.wait(deadline):
                    return
                self.connection.read_once()
            except MasterGone as error:
                self._reconnect(request, job, error)
                begun = True

    def _reconnect(self, request: Callable[[], Request], job: JobId, first: MasterGone) -> None:
        self.connection.close()

        def begin(connection: Connection) -> None:
            self.connection = connection
            connection.send(request())

        reconnect(self._reopen, begin, job, first)


def exit_status(job: JobLine) -> int:
    """What the command exits with for this job."""
    return 125 if job.exit_status is None else job.exit_status
