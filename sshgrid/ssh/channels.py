"""Channels of one SSH connection: a shell that answers requests, and the streams of an interactive run.

Scripts are sent to the standard input of `exec /bin/sh`, as the command line of ssh is quoted differently by each login
shell. A nonce before and after the output shows that the script ran; the exit status of ssh does not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import re
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from typing import BinaryIO

import asyncssh

from sshgrid.errors import Dropped, NodeUnfit
from sshgrid.model import Node, Struct

GREETING_SECONDS = 15
ANSWER_SECONDS = 30
STREAM_SECONDS = 300  # without a byte: a disk may be slow
FIRST_LINE_SECONDS = 120  # before the size of something large is known
READ_BYTES = 256 * 1024
MOST_LINE_BYTES = 4096
# Some login files read one line of standard input: this one is for them.
PADDING = b"# " + b"." * 60 + b"\n"
_SAFE_WORD = re.compile(r"[A-Za-z0-9._/@:+,-]+")


def check_words(node: str, workdir: str, *words: str) -> None:
    """Check words that become part of a command line: login shells quote in different ways. Raises NodeUnfit."""
    if not all(map(_SAFE_WORD.fullmatch, words)):
        raise NodeUnfit(node, f"the working folder {workdir} has unusual characters")


class RemoteShell:
    """A /bin/sh on the node, fed through its standard input: byte-exact under every login shell."""

    def __init__(self, node: Node, process: asyncssh.SSHClientProcess[bytes], nonce: bytes) -> None:
        self._node = node
        self._process = process
        self._nonce = nonce
        self._lock = asyncio.Lock()
        self._requests = 0

    @classmethod
    async def open(cls, node: Node, connection: asyncssh.SSHClientConnection) -> RemoteShell:
        """Start a shell. Raises NodeUnfit when the account's login shell does not run commands."""
        nonce = secrets.token_hex(8).encode()
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                shell = cls(node, await create(connection, "exec /bin/sh"), nonce)
                with contextlib.suppress(BrokenPipeError):  # it has ended already, and its output is still to be read
                    shell.write(PADDING + b"printf '\\n%s\\n' " + nonce + b"\n")
                await shell._skip_greeting()
        except TimeoutError as error:
            raise NodeUnfit(node.name, f"login takes longer than {GREETING_SECONDS} s") from error
        except asyncssh.ChannelOpenError as error:
            if error.code != asyncssh.OPEN_REQUEST_SESSION_FAILED:
                raise
            raise shell_unfit(node) from error
        return shell

    def write(self, text: bytes) -> None:
        """Send text to the shell's input."""
        self._process.stdin.write(text)

    async def _skip_greeting(self) -> None:
        """Read up to the nonce: what login files print comes before it."""
        first_line = b""
        while line := await self._process.stdout.readline():
            if line.strip() == self._nonce:
                return
            first_line = first_line or line.strip()
        raise shell_unfit(self._node, first_line[:80].decode("utf-8", "replace"))

    async def request(self, command: bytes, seconds: float = ANSWER_SECONDS) -> tuple[int, bytes]:
        """Run a command and return its status and output.

        Raises Dropped when no byte arrives for `seconds`, or the connection ends.
        """
        async with self._lock:
            self._requests += 1
            mark = self._nonce + b"-%d" % self._requests
            # In braces: a shell that reads half a request and then the end of its input runs none of it.
            text = b"{ printf '\\n%s\\n' " + mark + b"\n" + command + b"\n}\nprintf '\\n%s %s\\n' " + mark + b" $?\n"
            try:
                async with asyncio.timeout(seconds) as limit:
                    self.write(text)
                    return await self._answer(mark, limit, seconds)
            except TimeoutError as error:
                raise Dropped(self._node.name, f"no answer for {seconds:g} s") from error

    async def _answer(self, mark: bytes, limit: asyncio.Timeout, seconds: float) -> tuple[int, bytes]:
        """Return the status and the bytes between the marks. The answer of a cancelled request may come before."""
        answer = bytearray()
        begun = False
        while piece := await self._process.stdout.read(READ_BYTES):
            limit.reschedule(asyncio.get_running_loop().time() + seconds)
            answer += piece
            if not begun and (place := answer.find(b"\n" + mark + b"\n")) >= 0:
                begun = True
                del answer[: place + len(mark) + 2]
            if begun and answer.endswith(b"\n"):
                start = answer.rfind(b"\n", max(0, len(answer) - 64), len(answer) - 1)
                last = bytes(answer[start + 1 :]).split()
                if start >= 0 and len(last) == 2 and last[0] == mark:
                    return int(last[1]), bytes(answer[:start])
        raise Dropped(self._node.name, "the connection ended")

    async def run(self, script: bytes, most_bytes: int) -> CommandOutput:
        """Run a script without a time limit. Return its output and what it leaves in $answer. Raises Dropped."""
        mark = self._nonce + b"-run"
        self.write(b"printf '\\n%s\\n' " + mark + b"\n" + script + b"\nprintf '\\n%s %s\\n' " + mark + b' "$answer"\n')
        output = MarkedOutput(mark, most_bytes)
        while piece := await self._process.stdout.read(READ_BYTES):
            if (found := output.feed(piece)) is not None:
                return found
        raise Dropped(self._node.name, "the connection ended")

    async def stream(self, script: bytes) -> AsyncGenerator[bytes, None]:
        """Run a script and yield its output; the shell ends with it. Raises Dropped when the connection ends first."""
        self.write(script)
        self._process.stdin.write_eof()
        try:
            while True:
                async with asyncio.timeout(STREAM_SECONDS):
                    piece = await self._process.stdout.read(READ_BYTES)
                if not piece:
                    break
                yield piece
            await self._process.wait()
        except TimeoutError as error:
            raise Dropped(self._node.name, f"no bytes for {STREAM_SECONDS} s") from error
        if self._process.exit_status is None and self._process.exit_signal is None:
            raise Dropped(self._node.name, "the connection ended")

    async def fetch(self, most_bytes: int, target: BinaryIO) -> str:
        """Read a line "size N" and N bytes into `target`. Return "", or the line when it is another one.

        Raises Dropped.
        """
        try:
            async with asyncio.timeout(FIRST_LINE_SECONDS):
                line = (await self._process.stdout.readline()).decode("utf-8", "replace").strip()
            word, _, number = line.partition(" ")
            if word != "size" or not number.isdecimal() or int(number) > most_bytes:
                return line or "nothing"
            left = int(number)
            while left:
                async with asyncio.timeout(ANSWER_SECONDS):
                    piece = await self._process.stdout.read(min(left, READ_BYTES))
                if not piece:
                    raise Dropped(self._node.name, "the connection ended")
                target.write(piece)
                left -= len(piece)
        except TimeoutError as error:
            raise Dropped(self._node.name, f"no answer for {ANSWER_SECONDS} s") from error
        return ""

    def close(self) -> None:
        self._process.close()

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield every further line until the connection ends. The shell takes no requests then."""
        while line := await self._process.stdout.readline():
            yield line

    async def feed_lines(self, on_line: Callable[[bytes], None]) -> None:
        """As `lines`, but call a function: no task is woken for what every node prints every second."""
        await self._process.redirect_stdout(LineWriter(on_line))
        await self._process.stdout.read(1)  # only the end is left to read, or the error that caused it


class LineWriter(io.BytesIO):
    """A file for asyncssh to write to, which passes on each complete line."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        super().__init__()
        self._on_line = on_line
        self._rest = b""

    def write(self, piece: bytes) -> int:  # type: ignore[override]
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self._rest = self._rest[:MOST_LINE_BYTES]
        for line in lines:
            self._on_line(line)
        return len(piece)


class CommandOutput(Struct, frozen=True):
    """The output of a script, and what it has left in $answer. `more`: the output was cut."""

    output: bytes
    more: bool
    answer: str


class MarkedOutput:
    """Collects the output between two marks, up to a number of bytes."""

    def __init__(self, mark: bytes, most_bytes: int) -> None:
        self._begin = b"\n" + mark + b"\n"
        self._end = re.compile(rb"\n" + re.escape(mark) + rb" ([^\n]*)\n")
        self._most_bytes = most_bytes
        self._begun = False
        self._more = False
        self._kept = bytearray()
        self._seen = bytearray()  # may end with a part of a mark

    def feed(self, piece: bytes) -> CommandOutput | None:
        """Add a piece. Return the whole output once the second mark has arrived."""
        self._seen += piece
        if not self._begun:
            place = self._seen.find(self._begin)
            if place < 0:
                return None
            self._begun = True
            del self._seen[: place + len(self._begin)]
        if found := self._end.search(self._seen):
            answer = found[1].decode("utf-8", "replace")  # before `_keep` changes the buffer that the match refers to
            self._keep(found.start())
            return CommandOutput(bytes(self._kept), self._more, answer)
        self._keep(max(0, len(self._seen) - len(self._begin) - 256))
        return None

    def _keep(self, count: int) -> None:
        room = self._most_bytes - len(self._kept)
        self._kept += self._seen[: min(count, room)]
        self._more = self._more or count > room
        del self._seen[:count]


def shell_unfit(node: Node, first_line: str = "") -> NodeUnfit:
    """Return the error for an account whose login shell runs no commands, with the first line that it has printed."""
    return NodeUnfit(
        node.name,
        "its login shell does not run commands" + (f" (first line was {first_line!r})" if first_line else ""),
        "give the account an ordinary shell, and let its start-up files neither exit nor replace the shell",
    )


class Conversation:
    """The two directions of an interactive run."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._process = process
        self.stdout = _pieces(process.stdout)
        self.stderr = _pieces(process.stderr)

    @classmethod
    async def begin(cls, process: asyncssh.SSHClientProcess[bytes], nonce: bytes, *, terminal: bool) -> Conversation:
        """Skip what login files print on either stream before the nonce, as it is not output of the program."""
        # A terminal has one stream for both.
        streams = (process.stdout,) if terminal else (process.stdout, process.stderr)
        for stream in streams:
            while line := await stream.readline():
                if line.strip() == nonce:
                    break
        return cls(process)

    async def type(self, piece: bytes) -> None:
        """Send input. Does nothing when the program has closed its input."""
        with contextlib.suppress(BrokenPipeError, asyncssh.Error):
            self._process.stdin.write(piece)
            await self._process.stdin.drain()

    def end_input(self) -> None:
        self._process.stdin.write_eof()

    def resize(self, columns: int, rows: int) -> None:
        self._process.change_terminal_size(columns, rows)


async def _pieces(reader: asyncssh.SSHReader[bytes]) -> AsyncIterator[bytes]:
    while piece := await reader.read(READ_BYTES):
        yield piece


async def create(connection: asyncssh.SSHClientConnection, command: str) -> asyncssh.SSHClientProcess[bytes]:
    """Open a channel that runs `command`: bytes in and out, its standard error dropped."""
    with early_end():
        return await connection.create_process(command, encoding=None, stderr=asyncssh.DEVNULL)


@contextlib.contextmanager
def early_end() -> Iterator[None]:
    """Raise ChannelOpenError for a channel that has ended before it was confirmed: asyncssh 2.24 fails otherwise."""
    try:
        yield
    except AttributeError as error:
        if error.name != "session_started":
            raise
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_REQUEST_SESSION_FAILED, "it ended at once") from error
