"""Follow one job to its end: print events on a screen, and send Ctrl-C and terminal input to the master.

When the master goes away, the client connects to the next one, and output that was already printed is skipped. When
the replayed output differs from it, the screen reports that, and the output is printed again from its first byte.
"""

from __future__ import annotations

import select
import signal
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from sshgrid.client.connection import Connection, to_error
from sshgrid.clock import SYSTEM_CLOCK, Clock
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

T = TypeVar("T")
RECONNECT_SECONDS = 30.0  # how long to try to reach the next master
POLL_SECONDS = 1.0  # the longest delay of a message that a signal handler could not send


class Detached(Exception):
    """The user detached (second Ctrl-C, or `~.`); the job continues."""


class _OutputDiffers(Exception):
    """The replayed output does not start with the bytes that were printed."""


class PrintedOutput:
    """How much of one stream was printed, and its checksum: skips these bytes in a replay and detects other ones."""

    def __init__(self) -> None:
        self._since_attempt = 0  # the output was restarted with this attempt
        self._size, self._checksum = 0, 0
        self._skip, self._skipped_checksum = 0, 0

    def rewind(self) -> None:
        """Prepare for a replay: the master sends the output from its first byte."""
        self._skip, self._skipped_checksum = self._size, 0

    @property
    def missing(self) -> bool:
        """Whether the replay ended before all printed bytes came again."""
        return self._skip > 0

    def restarted(self, attempt: int) -> bool:
        """Start again with this attempt. False when this restart is part of a replay."""
        if attempt <= self._since_attempt:
            return False
        self._since_attempt, self._size, self._checksum, self._skip = attempt, 0, 0, 0
        return True

    def forget(self) -> None:
        """Start again: nothing counts as printed."""
        self._size, self._checksum, self._skip = 0, 0, 0

    def fresh(self, attempt: int, piece: bytes) -> bytes:
        """The bytes of `piece` that were not printed yet. _OutputDiffers when the others differ from what was."""
        if attempt < self._since_attempt:
            return b""
        old, new = piece[: self._skip], piece[self._skip :]
        if old:
            self._skip -= len(old)
            self._skipped_checksum = zlib.crc32(old, self._skipped_checksum)
            if self._skip == 0 and self._skipped_checksum != self._checksum:
                raise _OutputDiffers
        self._size += len(new)
        self._checksum = zlib.crc32(new, self._checksum)
        return new


class Keyboard:
    """The input of a followed job: none here; an interactive run has sshgrid.client.interactive.TerminalInput."""

    def __init__(self) -> None:
        self.descriptor = -1  # to read from; -1 = no input, or its end was reached
        self.leave: Callable[[], None] = lambda: None  # the user wants to leave

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Set the terminal to raw mode while the job runs."""
        yield

    def begin(self, connection: Connection) -> None:
        """Called for each new connection."""

    def read_input(self, connection: Connection) -> None:
        """Read from `descriptor`, which is ready, and queue the input."""


class EventFollower:
    """Follows one job across masters: `reopen` returns a connection to the master that runs now."""

    def __init__(
        self,
        connection: Connection,
        job: JobId,
        reopen: Callable[[], Connection],
        *,
        interrupt_cancels: bool = True,
        keyboard: Keyboard | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._connection, self._job, self._reopen = connection, job, reopen
        self._interrupt_cancels = interrupt_cancels
        self._keyboard = keyboard or Keyboard()
        self._clock = clock
        self.interrupts = 0

    # --- for subclasses

    def _request(self) -> Request:
        """The request that makes the master send the events."""
        raise NotImplementedError

    def _rewind(self) -> None:
        """Called before the next master sends all events again."""

    def _event(self, message: Message, payload: bytes) -> None:
        """Handle an event. Unknown messages, such as the reply to a Cancel, are ignored."""
        raise NotImplementedError

    def _check(self) -> None:
        """Called at the end, to check that everything arrived."""

    def _start_again(self) -> None:
        """Called when the replayed output differs from the output that was printed."""

    # ---

    def until_ended(self) -> JobLine:
        """Follow the job to its end. Detached when the user leaves, MasterGone when no master comes back."""
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
                    # The reader of stdout has closed it; as with a local program, that ends the job.
                    if self._interrupt_cancels:
                        self.cancel("TERM")
                    raise

    def _until_ended(self) -> JobLine:
        """Handle events until the job ends. MasterGone when the connection ends."""
        for message, payload in exchange(self._connection, self._keyboard):
            match message:
                case Ended(job=job):
                    self._check()
                    return job
                case Failure():
                    raise to_error(message)
                case _:
                    self._event(message, payload)
        raise AssertionError("exchange() ends by an exception")

    def cancel(self, signal_name: str) -> None:
        """Send a Cancel. Safe in a signal handler: during another send it is only queued."""
        self._connection.queue(Cancel((self._job,), signal_name))
        self._connection.flush_some()

    def leave(self) -> None:
        """Cancel the job; when called again, detach from it."""
        self.interrupts += 1
        if self.interrupts > 1 or not self._interrupt_cancels:
            raise Detached
        try:
            self.cancel("INT")
        except MasterGone:
            return  # _begin cancels over the next connection

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

        reconnect(self._reopen, begin, self._job, first, self._clock)

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


class JobFollower(EventFollower):
    """Follows one job on a screen."""

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
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        super().__init__(connection, job, reopen, interrupt_cancels=interrupt_cancels, keyboard=keyboard, clock=clock)
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
                if new := self._printed_of(stream).fresh(attempt, payload):
                    self._screen.output(stream, attempt, new)
            case Progress():
                self._screen.progress(message)
            case Waiting():
                self._screen.waiting(message)
            case Notice():
                self._screen.notice(message)
            case Restarted(stream=stream, attempt=attempt):
                if self._printed_of(stream).restarted(attempt):
                    self._screen.restarted(message)

    def _printed_of(self, stream: str) -> PrintedOutput:
        return self._printed.setdefault(stream, PrintedOutput())

    def _check(self) -> None:
        for stream, printed in self._printed.items():
            if printed.missing:
                self._screen.notice(Notice(f"{stream} ended before all of the output that was already printed"))

    def _start_again(self) -> None:
        for stream, printed in self._printed.items():
            if stream != "compile":
                printed.forget()
        self._screen.notice(Notice("the output starts again: it differs from the output that was already printed"))
        self._reconnect(MasterGone("the output is requested again from its first byte"))


def exchange(connection: Connection, keyboard: Keyboard) -> Iterator[tuple[Message, bytes]]:
    """Yield messages as they arrive, and send queued messages and input meanwhile. Ends by MasterGone."""
    poll = select.poll()
    while True:
        yield from connection.buffered()
        all_sent = connection.flush_some()
        poll.register(connection.fileno(), select.POLLIN | (0 if all_sent else select.POLLOUT))
        # Read input only when earlier input has been sent: a slow master must slow the input down.
        listening = keyboard.descriptor >= 0 and all_sent
        if listening:
            poll.register(keyboard.descriptor, select.POLLIN)
        ready = dict(poll.poll(POLL_SECONDS * 1000))
        if listening:
            poll.unregister(keyboard.descriptor)
            if keyboard.descriptor in ready:
                keyboard.read_input(connection)
        if ready.get(connection.fileno(), 0) & ~select.POLLOUT:
            connection.read_once()


def reconnect(
    reopen: Callable[[], Connection],
    begin: Callable[[Connection], None],
    job: JobId,
    first: MasterGone,
    clock: Clock = SYSTEM_CLOCK,
) -> None:
    """Connect to the next master and call `begin`. MasterGone after RECONNECT_SECONDS without a master."""
    deadline, pause = clock.monotonic() + RECONNECT_SECONDS, 0.05
    while True:
        try:
            begin(reopen())
            return
        except MasterGone as error:
            if clock.monotonic() > deadline:
                raise _lost(job, error) from first
        except SshgridError as error:
            raise _lost(job, error) from first
        time.sleep(pause)
        pause = min(pause * 2, 1.0)


def read_from_master(
    connect: Callable[[], Connection], read: Callable[[Connection], T], clock: Clock = SYSTEM_CLOCK
) -> tuple[Connection, T]:
    """Connect, call `read`, return the connection and the result; repeat both when the master goes away meanwhile.

    Raises MasterGone when this still fails after RECONNECT_SECONDS. `read` must not change anything.
    """
    deadline, pause = clock.monotonic() + RECONNECT_SECONDS, 0.05
    while True:
        connection = connect()
        try:
            return connection, read(connection)
        except MasterGone:
            connection.close()
            if clock.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 2, 1.0)


def _lost(job: JobId, error: SshgridError) -> MasterGone:
    return MasterGone(f"the master of job {job} is gone, and the job continues: {error}", f"sshgrid attach {job}")


class ReconnectingReader:
    """Reads the end or the stored output of jobs, and continues with the next master when one goes away."""

    def __init__(self, connection: Connection, reopen: Callable[[], Connection]) -> None:
        self.connection = connection
        self._reopen = reopen

    def __enter__(self) -> ReconnectingReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ended(self, job: JobId, deadline: float | None) -> JobLine | None:
        """The job once it has ended; None when the deadline comes first (in seconds of the monotonic clock)."""
        request = Watch(job, output=False)
        for message, _ in self._messages(lambda: request, job, deadline):
            if isinstance(message, Ended):
                return message.job
        return None

    def logs(self, request: Logs, screen: Screen) -> JobLine:
        """Print stored output, each byte once, and return the job."""
        seen: dict[str, Seen] = {}

        def rest() -> Logs:
            return Logs(
                request.job, request.attempt, request.follow, request.tail_lines, request.streams, tuple(seen.values())
            )

        for message, payload in self._messages(rest, request.job, None):
            match message:
                case Output(stream=stream, attempt=attempt, size=size, offset=offset):
                    screen.output(stream, attempt, payload)
                    seen[stream] = Seen(stream, attempt, offset + size)
                case Restarted():
                    screen.restarted(message)
                case Ended(job=job):
                    return job
                case _:
                    pass  # progress of a running job
        raise AssertionError("_messages() without a deadline ends by an event or an exception")

    def kept(self, job: JobId, attempt: int, stream: str) -> Iterator[bytes]:
        """Yield a kept stream of one attempt, each byte once."""
        seen: list[Seen] = []
        for message, payload in self._messages(
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

    def _messages(
        self, request: Callable[[], Request], job: JobId, deadline: float | None
    ) -> Iterator[tuple[Message, bytes]]:
        """Yield messages until the deadline. Raises the error that a Failure carries."""
        sent = False
        while True:
            try:
                if not sent:
                    self.connection.send(request())
                    sent = True
                for message, payload in self.connection.buffered():
                    if isinstance(message, Failure):
                        raise to_error(message)
                    yield message, payload
                if not self.connection.wait(deadline):
                    return
                self.connection.read_once()
            except MasterGone as error:
                self._reconnect(request, job, error)
                sent = True

    def _reconnect(self, request: Callable[[], Request], job: JobId, first: MasterGone) -> None:
        self.connection.close()

        def begin(connection: Connection) -> None:
            self.connection = connection
            connection.send(request())

        reconnect(self._reopen, begin, job, first)


def exit_status(job: JobLine) -> int:
    """The exit status of a command for this job."""
    return 125 if job.exit_status is None else job.exit_status
