"""Channels of one SSH connection: a shell that answers framed questions, and the streams of an interactive run.

Scripts travel on the standard input of `exec /bin/sh`, a nonce first and nonce and status last: the one form that is
exact in every login shell. Refuses to take an exit status of ssh for an answer: without the nonce, nothing of ours ran.
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
POUR_SECONDS = 300  # a disk may be slow to give the first byte
GATHER_SECONDS = 120  # before the first byte of something large
READ_BYTES = 256 * 1024
MOST_LINE_BYTES = 4096
# Some login files read one line of standard input: let it be this one.
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
        self._turn = asyncio.Lock()
        self._asked = 0

    @classmethod
    async def open(cls, node: Node, connection: asyncssh.SSHClientConnection) -> RemoteShell:
        """Raises NodeUnfit when what logs in there does not run commands."""
        nonce = secrets.token_hex(8).encode()
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                shell = cls(node, await create(connection, "exec /bin/sh"), nonce)
                with contextlib.suppress(
                    BrokenPipeError
                ):  # it has ended already: what it said, if anything, is to be read
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
        self._process.stdin.write(text)

    async def _skip_greeting(self) -> None:
        """What login files print comes before the nonce; without the nonce nothing of ours ran, whatever the status."""
        junk = b""
        while line := await self._process.stdout.readline():
            if line.strip() == self._nonce:
                return
            junk = junk or line.strip()
        raise shell_unfit(self._node, junk[:80].decode("utf-8", "replace"))

    async def ask(self, command: bytes, seconds: float = ANSWER_SECONDS) -> tuple[int, bytes]:
        """(status, output) of a command. Raises Dropped when nothing comes for so long, or the connection ends."""
        async with self._turn:
            self._asked += 1
            mark = self._nonce + b"-%d" % self._asked
            # In braces: a shell that reads half a question and then the end of its input runs none of it.
            question = (
                b"{ printf '\\n%s\\n' " + mark + b"\n" + command + b"\n}\nprintf '\\n%s %s\\n' " + mark + b" $?\n"
            )
            try:
                async with asyncio.timeout(seconds) as limit:
                    self.write(question)
                    return await self._answer(mark, limit, seconds)
            except TimeoutError as error:
                raise Dropped(self._node.name, f"no answer for {seconds:g} s") from error

    async def _answer(self, mark: bytes, limit: asyncio.Timeout, seconds: float) -> tuple[int, bytes]:
        """What comes between the mark and the mark with the status. Who asked before may have left without theirs."""
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
        """A script's output and what it leaves in $answer, however long it takes. Raises Dropped."""
        mark = self._nonce + b"-run"
        self.write(b"printf '\\n%s\\n' " + mark + b"\n" + script + b"\nprintf '\\n%s %s\\n' " + mark + b' "$answer"\n')
        ears = Listener(mark, most_bytes)
        while piece := await self._process.stdout.read(READ_BYTES):
            if (spoken := ears.hear(piece)) is not None:
                return spoken
        raise Dropped(self._node.name, "the connection ended")

    async def pour(self, script: bytes) -> AsyncGenerator[bytes, None]:
        """What a script writes, to its end, which is the shell's too. Raises Dropped when that was not its own end."""
        self.write(script)
        self._process.stdin.write_eof()
        try:
            while True:
                async with asyncio.timeout(POUR_SECONDS):
                    piece = await self._process.stdout.read(READ_BYTES)
                if not piece:
                    break
                yield piece
            await self._process.wait()
        except TimeoutError as error:
            raise Dropped(self._node.name, f"no bytes for {POUR_SECONDS} s") from error
        if self._process.exit_status is None and self._process.exit_signal is None:
            raise Dropped(self._node.name, "the connection ended")

    async def fetch(self, most_bytes: int, target: BinaryIO) -> str:
        """A line "size N" and so many bytes, into `target`; "" or what it said instead. Raises Dropped."""
        try:
            async with asyncio.timeout(GATHER_SECONDS):
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
        """Say goodbye; nothing more is asked."""
        self._process.close()

    async def lines(self) -> AsyncIterator[bytes]:
        """Every further line, for a shell that is no longer asked. Ends with the connection."""
        while line := await self._process.stdout.readline():
            yield line

    async def hear(self, hear: Callable[[bytes], None]) -> None:
        """As `lines`, for what every node says every second: no task is woken for it. Ends with the connection."""
        await self._process.redirect_stdout(LineListener(hear))
        await self._process.stdout.read(1)  # there is nothing left to read but the end, or the error that caused it


class LineListener(io.BytesIO):
    """What asyncssh takes for a file: hands on each whole line."""

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        super().__init__()
        self._hear = hear
        self._rest = b""

    def write(self, piece: bytes) -> int:  # type: ignore[override]
        *lines, self._rest = (self._rest + piece).split(b"\n")
        self._rest = self._rest[:MOST_LINE_BYTES]
        for line in lines:
            self._hear(line)
        return len(piece)


class CommandOutput(Struct, frozen=True):
    """What a script has said; `more`: that was not all, the rest was dropped."""

    output: bytes
    more: bool
    answer: str


class Listener:
    """What comes between two marks, kept up to so many bytes."""

    def __init__(self, mark: bytes, most_bytes: int) -> None:
        self._begin = b"\n" + mark + b"\n"
        self._end = re.compile(rb"\n" + re.escape(mark) + rb" ([^\n]*)\n")
        self._most_bytes = most_bytes
        self._begun = False
        self._more = False
        self._kept = bytearray()
        self._seen = bytearray()  # it may hold a part of a mark

    def hear(self, piece: bytes) -> CommandOutput | None:
        """None until the second mark has come."""
        self._seen += piece
        if not self._begun:
            place = self._seen.find(self._begin)
            if place < 0:
                return None
            self._begun = True
            del self._seen[: place + len(self._begin)]
        if found := self._end.search(self._seen):
            answer = found[1].decode("utf-8", "replace")  # now: a match looks into the buffer it was found in
            self._keep(found.start())
            return CommandOutput(bytes(self._kept), self._more, answer)
        self._keep(max(0, len(self._seen) - len(self._begin) - 256))
        return None

    def _keep(self, count: int) -> None:
        room = self._most_bytes - len(self._kept)
        self._kept += self._seen[: min(count, room)]
        self._more = self._more or count > room
        del self._seen[:count]


def shell_unfit(node: Node, words: str = "") -> NodeUnfit:
    """The error for an account whose login runs no commands; `words` is what it said instead."""
    return NodeUnfit(
        node.name,
        "its login shell does not run commands" + (f" (first line was {words!r})" if words else ""),
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
        """What login files print, on either stream, comes before the nonce and is not the program's."""
        # A terminal has one stream for both.
        streams = (process.stdout,) if terminal else (process.stdout, process.stderr)
        for stream in streams:
            while line := await stream.readline():
                if line.strip() == nonce:
                    break
        return cls(process)

    async def type(self, piece: bytes) -> None:
        with contextlib.suppress(BrokenPipeError, asyncssh.Error):  # the program no longer reads: that is its right
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
    """A channel that runs `command`: bytes in and out, its stderr dropped."""
    with early_end():
        return await connection.create_process(command, encoding=None, stderr=asyncssh.DEVNULL)


@contextlib.contextmanager
def early_end() -> Iterator[None]:
    """asyncssh 2.24 trips over a channel that has ended before it was told that it began: there is no session then."""
    try:
        yield
    except AttributeError as error:
        if error.name != "session_started":
            raise
        raise asyncssh.ChannelOpenError(asyncssh.OPEN_REQUEST_SESSION_FAILED, "it ended at once") from error
