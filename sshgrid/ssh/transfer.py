"""Files to a node and back again, over one connection: objects by their SHA-256, and what a run leaves in its folder.

A large file goes through a channel of its own, and goes on where it was cut; small ones go together as one stream, or
by SFTP where they are few. An object has its name only once its bytes were checked on the node. Refuses to look into
any file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shlex
import tarfile
from collections.abc import AsyncGenerator, Awaitable, Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Protocol

import asyncssh

from sshgrid.errors import Dropped, HostError, NodeUnfit
from sshgrid.model import Facts, Node
from sshgrid.notation.globs import Listing, parse_listing
from sshgrid.ssh.channels import READ_BYTES, CommandOutput, RemoteShell, check_words, create
from sshgrid.ssh.connect import Dialing, blame_in_use
from sshgrid.ssh.openssh import OpensshTransfer, last_word
from sshgrid.ssh.parsers import Found

log = logging.getLogger(__name__)

KEEP_SECONDS = 600  # a slow disk, and a digest of gigabytes
LIST_SECONDS = 600
LIST_BYTES = 32 * 1024 * 1024
SMALL_BYTES = 64 * 1024
FEW = 4  # so many small files are not worth a stream of their own
MOST_TOGETHER = 1000
LARGE_BYTES = 1024 * 1024  # larger files go through a channel of their own
TRIES = 3  # of an upload that arrives otherwise than it was sent, on a connection that works
AGAIN = ("", "corrupt")  # another upload has taken its place, or what had come before was wrong
CARRIED_BYTES = 32 * 1024 * 1024  # worth a login of their own
_FILES = (resources.files("sshgrid") / "remote" / "files.sh").read_bytes()
# Links that were chosen lead to files of the folder. GNU tar would take a backslash in a name for something else, and
# busybox's may not read lists.
_TAR = b"""if tar --no-unquote --version >/dev/null 2>&1; then
  exec tar --no-unquote -c -h -f - -T ../fetch.list 2>../fetch.err
elif tar -c -f /dev/null -T /dev/null >/dev/null 2>&1; then
  exec tar -c -h -f - -T ../fetch.list 2>../fetch.err
fi
set -f
IFS='
'
exec tar -c -h -f - $(cat ../fetch.list) 2>../fetch.err
"""


class Road(Protocol):
    """The connection as its cargo needs it."""

    node: Node
    found: Found
    facts: Facts
    lost: asyncio.Future[HostError]

    @property
    def library(self) -> str: ...

    async def aside(
        self, script: bytes, words: Iterable[str | bytes], seconds: float, most_bytes: int
    ) -> CommandOutput: ...


class Ask(Protocol):
    """What a verb of remote/node.sh answers."""

    async def __call__(self, verb: str, *words: str, seconds: float = ...) -> bytes: ...


class Way(Protocol):
    """A command on the node, fed by a file."""

    async def line(self) -> bytes: ...
    def send(self, source: Path, at: int) -> AsyncGenerator[int, None]: ...
    async def last_word(self) -> bytes: ...
    async def ended_early(self) -> bool: ...
    def abandon(self, _: object) -> None: ...
    async def close(self) -> None: ...


class _Channel:
    """A way through the connection itself."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._process = process

    async def line(self) -> bytes:
        return await self._process.stdout.readline()

    async def send(self, source: Path, at: int) -> AsyncGenerator[int, None]:
        with source.open("rb") as file:
            file.seek(at)
            with contextlib.suppress(BrokenPipeError):  # who no longer reads says why
                while step := file.read(READ_BYTES):
                    self._process.stdin.write(step)
                    await self._process.stdin.drain()
                    yield len(step)
                self._process.stdin.write_eof()

    async def last_word(self) -> bytes:
        return await last_word(self._process.stdout)

    async def ended_early(self) -> bool:
        await self._process.wait()
        return self._process.exit_status is None and self._process.exit_signal is None

    def abandon(self, _: object) -> None:
        """It ends with the connection."""

    async def close(self) -> None:
        self._process.close()


class Transfer:
    """What travels over one connection; `channels`: so many more than the lasting ones there may be at a time."""

    def __init__(
        self, road: Road, how: Dialing, connection: asyncssh.SSHClientConnection, ask: Ask, channels: asyncio.Semaphore
    ) -> None:
        self._road = road
        self._how = how
        self._ask = ask
        self._channels = channels
        self._node = road.node
        self._connection = connection
        self._sftp: asyncssh.SFTPClient | None = None
        self.has_sftp = True
        self.has_ssh = True  # the system's own reaches the node, too
        self._sending = asyncio.Semaphore(1)

    # --- objects

    async def lacking(self, objects: Sequence[str]) -> list[str]:
        return (await self._ask("have", *objects)).decode().split() if objects else []

    async def upload(self, sha256: str, source: Path) -> int:
        """Send one file into the node's objects; bytes sent. It counts only once size and digest were checked there."""
        return sum([sent async for sent in self._upload(sha256, source)])

    async def _upload(self, sha256: str, source: Path) -> AsyncGenerator[int, None]:
        """The same, step by step."""
        size = source.stat().st_size
        async with self._sending:
            if size <= LARGE_BYTES and self.has_sftp:
                part = f"{sha256[:16]}.{secrets.token_hex(4)}"
                if await self._put(source, part):
                    self._check_kept(await self._ask("keep", part, sha256, str(size), seconds=KEEP_SECONDS))
                    yield size
                    return
            for further in reversed(range(TRIES)):
                async with contextlib.aclosing(self._pour(sha256, source, size)) as steps:
                    async for step in steps:
                        if isinstance(step, int):
                            yield step
                        elif step in AGAIN and further:
                            log.info("%s: %s arrived %s, once more", self._node.name, sha256[:12], step or "nowhere")
                        else:
                            self._check_kept(step.encode())
                            return

    async def upload_all(self, sources: Sequence[tuple[str, Path]]) -> AsyncGenerator[int, None]:
        """Send these files; the bytes of each step. Many small ones are one step."""
        small = [each for each in sources if each[1].stat().st_size <= SMALL_BYTES]
        together = small if len(small) > FEW and "tar" in self._road.facts.helpers else []
        for start in range(0, len(together), MOST_TOGETHER):
            yield await self._upload_together(together[start : start + MOST_TOGETHER])
        for sha256, source in sources:
            if (sha256, source) not in together:
                async with contextlib.aclosing(self._upload(sha256, source)) as steps:
                    async for sent in steps:
                        yield sent

    async def _upload_together(self, sources: Sequence[tuple[str, Path]]) -> int:
        crate = f"crate.{secrets.token_hex(8)}"
        folder = self._object(crate)
        async with self._sending:
            with blame_in_use(self._node):
                command = f"umask 077; mkdir {folder} && cd {folder} && tar -x -o -f - && printf whole >whole"
                sent = await self._feed(command, _archive(sources))
        verdict = await self._ask("unpack_crate", crate, *(sha256 for sha256, _ in sources), seconds=KEEP_SECONDS)
        self._check_kept(verdict)
        return sent

    def _check_kept(self, verdict: bytes) -> None:
        words = verdict.decode(errors="replace").strip()
        if words != "kept":
            raise NodeUnfit(self._node.name, f"an upload arrived {words or 'nowhere'} (disk full?)")

    def _object(self, name: str) -> str:
        return f"{self._road.facts.workdir}/objects/{name}"

    async def _put(self, source: Path, part: str) -> bool:
        """By SFTP; False when the node has none that works."""
        try:
            with blame_in_use(self._node):
                return await self._put_by_sftp(source, self._object(part))
        except NodeUnfit:
            await self._ask("drop", part)
            raise

    async def _put_by_sftp(self, source: Path, target: str) -> bool:
        try:
            if self._sftp is None:
                self._sftp = await self._connection.start_sftp_client()
            await self._sftp.put(str(source), target)
        except asyncssh.SFTPFailure as error:
            raise NodeUnfit(self._node.name, f"upload failed: {error.reason} (disk full?)") from error
        except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
            if self._road.lost.done() or isinstance(error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection):
                self._sftp = None
            log.info("%s: no SFTP (%s), using a channel", self._node.name, error)
            self.has_sftp = False
            return False
        return True

    async def _pour(self, sha256: str, source: Path, size: int) -> AsyncGenerator[int | str, None]:
        """From where an earlier try was cut: bytes of each step, and last what the node said, "" for nothing."""
        facts, nonce = self._road.facts, secrets.token_hex(8)
        words = ("/bin/sh", self._road.library, "receive", facts.workdir, sha256, facts.boot_id, str(size), nonce)
        check_words(self._node.name, self._road.facts.workdir, *words)
        with blame_in_use(self._node):
            way, at = await self._begin(f"exec {' '.join(words)}", nonce, size)
            if at:
                log.info("%s: %s goes on at %d of %d bytes", self._node.name, sha256[:12], at, size)
            self._road.lost.add_done_callback(way.abandon)
            try:
                async with contextlib.aclosing(way.send(source, at)) as steps:
                    async for step in steps:
                        yield step
                said = await self._in_time(way.last_word())
            finally:
                self._road.lost.remove_done_callback(way.abandon)
                await way.close()
        if not said and self._road.lost.done():
            raise Dropped(self._node.name, self._road.lost.result().reason)
        yield said.decode(errors="replace").strip()

    async def _begin(self, command: str, nonce: str, size: int) -> tuple[Way, int]:
        """The way that it goes, and where the node goes on. Raises a HostError."""
        if size >= CARRIED_BYTES and self.has_ssh and (way := await self._carrier(command)):
            if (at := await self._place(way, nonce)) is not None:
                return way, at
            await way.close()
            log.info("%s: the system's ssh does not reach it as we do", self._node.name)
            self.has_ssh = False
        channel = _Channel(await create(self._connection, command))
        if (at := await self._place(channel, nonce)) is not None:
            return channel, at
        if await channel.ended_early():
            raise Dropped(self._node.name, "the connection ended")
        raise NodeUnfit(self._node.name, "it takes no upload: its login shell does not run commands")

    async def _carrier(self, command: str) -> OpensshTransfer | None:
        """None behind a jump host, whose key the connection has checked in its own way."""
        key = self._connection.get_server_host_key()
        if key is None or self._connection.get_extra_info("jump") is not None:
            return None
        return await OpensshTransfer.open(self._node, self._how, key.export_public_key().decode().strip(), command)

    async def _place(self, way: Way, nonce: str) -> int | None:
        """Where the node goes on; None when it does not say. What login files print comes before it.

        Who gives up meanwhile leaves no way open behind.
        """
        try:
            while line := await self._in_time(way.line()):
                match line.decode(errors="replace").split():
                    case [said, "at", number] if said == nonce and number.isdecimal():
                        return int(number)
        except BaseException:
            await way.close()
            raise
        return None

    async def _in_time(self, saying: Awaitable[bytes]) -> bytes:
        try:
            async with asyncio.timeout(KEEP_SECONDS):
                return await saying
        except TimeoutError as error:
            raise Dropped(self._node.name, f"no word of an upload for {KEEP_SECONDS} s") from error

    async def _feed(self, command: str, pieces: Iterable[bytes]) -> int:
        """Bytes to the standard input of a command; how many they were."""
        check_words(self._node.name, self._road.facts.workdir, self._road.facts.workdir)
        process = await create(self._connection, f"exec /bin/sh -c '{command}'")
        sent = 0
        # Who no longer reads has no space left: `keep` will say so.
        with contextlib.suppress(BrokenPipeError):
            for piece in pieces:
                process.stdin.write(piece)
                await process.stdin.drain()
                sent += len(piece)
            process.stdin.write_eof()
        await process.wait()
        return sent

    # --- files of a run

    async def files(self, run: str, where: Sequence[str]) -> Listing:
        """What lies in a run's folder; `where`: words for find. Raises a HostError."""
        folder = f"{self._road.facts.workdir}/runs/{run}/work"
        said = await self._road.aside(_FILES, (folder, *where), LIST_SECONDS, LIST_BYTES)
        if said.answer != "listed":
            raise NodeUnfit(self._node.name, "the run's folder is not there any more")
        return parse_listing(said.output, said.more)

    async def archive(self, run: str, names: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """These files of a run's folder as a tar archive; what tar complains of is in its fetch.err. Raises Dropped."""
        mark = b"NAMES-" + secrets.token_hex(8).encode()
        listed = b"".join(b"./" + os.fsencode(name) + b"\n" for name in names)
        folder = shlex.quote(f"{self._road.facts.workdir}/runs/{run}/work").encode()
        path = shlex.quote(self._road.found.path).encode()
        script = b"PATH=%s\ncd %s && cat >../fetch.list <<'%s' || exit 1\n%s%s\n" % (path, folder, mark, listed, mark)
        async with self._channels:
            with blame_in_use(self._node):
                shell = await RemoteShell.open(self._node, self._connection)
                try:
                    async with contextlib.aclosing(shell.pour(script + _TAR)) as pieces:
                        async for piece in pieces:
                            yield piece
                finally:
                    shell.close()


def _archive(sources: Iterable[tuple[str, Path]]) -> Iterable[bytes]:
    for sha256, source in sources:
        content = source.read_bytes()
        member = tarfile.TarInfo(sha256)
        member.size, member.mode = len(content), 0o600
        yield member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
