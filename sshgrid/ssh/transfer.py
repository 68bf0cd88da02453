"""Files to a node and back over one connection: objects by their SHA-256, and files that a run has written.

A large file goes through a channel of its own, and continues where an earlier upload was cut. Many small ones go
together as one stream; a few go by SFTP. An object gets its name only after the node has checked its size and digest.
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
from pathlib import Path
from typing import Protocol

import asyncssh

from sshgrid.errors import Dropped, NodeUnfit
from sshgrid.notation.globs import Listing, parse_listing
from sshgrid.ssh.channels import READ_BYTES, check_words, create
from sshgrid.ssh.commands import Commands
from sshgrid.ssh.connect import Dialing, blame_in_use
from sshgrid.ssh.control import Control
from sshgrid.ssh.library import read_script
from sshgrid.ssh.openssh import OpensshUpload, read_rest

log = logging.getLogger(__name__)

CHECK_SECONDS = 600  # a slow disk, and a digest of gigabytes
LIST_SECONDS = 600
LIST_BYTES = 32 * 1024 * 1024
SMALL_BYTES = 64 * 1024
FEW_FILES = 4  # up to this number of small files, a stream of their own costs more than it saves
MAX_FILES_PER_STREAM = 1000
SFTP_BYTES = 1024 * 1024  # larger files go through a channel of their own
TRIES = 3  # for an upload that arrives damaged on a connection that works
# The node's answers after which an upload is tried again: another upload has replaced it, or earlier bytes were wrong.
RETRIED = ("", "corrupt")
OPENSSH_BYTES = 32 * 1024 * 1024  # from this size on, a login for the system's ssh is worth its time
_LIST = read_script("files.sh")
# -h: symbolic links that were chosen lead to files of the folder. GNU tar would interpret a backslash in a name, and
# the tar of busybox may be unable to read a list.
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


class UploadChannel(Protocol):
    """A command on the node whose input is a file: on the SSH connection, or by the system's ssh."""

    async def readline(self) -> bytes:
        """Return the next line that the command prints; b"" at the end."""

    def send(self, source: Path, offset: int) -> AsyncGenerator[int, None]:
        """Send the file from this offset, then the end of input. Yield the number of bytes of each step."""

    async def read_rest(self) -> bytes:
        """Return what the command prints until it ends."""

    async def connection_ended(self) -> bool:
        """Wait for the end. Return whether the connection ended before the command did."""

    def abandon(self, _: object) -> None:
        """End the channel because the link is lost."""

    async def close(self) -> None: ...


class _ConnectionUpload:
    """An UploadChannel on the SSH connection itself."""

    def __init__(self, process: asyncssh.SSHClientProcess[bytes]) -> None:
        self._process = process

    async def readline(self) -> bytes:
        return await self._process.stdout.readline()

    async def send(self, source: Path, offset: int) -> AsyncGenerator[int, None]:
        with source.open("rb") as file:
            file.seek(offset)
            with contextlib.suppress(BrokenPipeError):  # the command has stopped reading, and says why
                while step := file.read(READ_BYTES):
                    self._process.stdin.write(step)
                    await self._process.stdin.drain()
                    yield len(step)
                self._process.stdin.write_eof()

    async def read_rest(self) -> bytes:
        return await read_rest(self._process.stdout)

    async def connection_ended(self) -> bool:
        await self._process.wait()
        return self._process.exit_status is None and self._process.exit_signal is None

    def abandon(self, _: object) -> None:
        """The channel ends with the connection."""

    async def close(self) -> None:
        self._process.close()


class Transfer:
    """Uploads and downloads of one connection. One upload at a time; failures raise HostError."""

    def __init__(self, control: Control, commands: Commands, dialing: Dialing) -> None:
        self._control = control
        self._commands = commands
        self._dialing = dialing
        self._node = control.node
        self._sftp: asyncssh.SFTPClient | None = None
        self.has_sftp = True  # until it fails
        self.has_openssh = True  # until the system's ssh fails to reach the node
        self._sending = asyncio.Semaphore(1)

    # --- objects

    async def missing(self, objects: Sequence[str]) -> list[str]:
        """Return those of these digests that the node does not have."""
        return (await self._control.request("missing_objects", *objects)).decode().split() if objects else []

    async def upload(self, sha256: str, source: Path) -> int:
        """Send one file to the node's objects. Return the number of bytes sent, after the node has checked them."""
        return sum([sent async for sent in self._upload(sha256, source)])

    async def _upload(self, sha256: str, source: Path) -> AsyncGenerator[int, None]:
        """As `upload`, but yield the number of bytes of each step."""
        size = source.stat().st_size
        async with self._sending:
            if size <= SFTP_BYTES and self.has_sftp:
                part = f"{sha256[:16]}.{secrets.token_hex(4)}"
                if await self._put(source, part):
                    answer = await self._control.request("store_object", part, sha256, str(size), seconds=CHECK_SECONDS)
                    self._check_kept(answer)
                    yield size
                    return
            for further in reversed(range(TRIES)):
                async with contextlib.aclosing(self._stream(sha256, source, size)) as steps:
                    async for step in steps:
                        if isinstance(step, int):
                            yield step
                        elif step in RETRIED and further:
                            log.info("%s: upload of %s ended %r, trying again", self._node.name, sha256[:12], step)
                        else:
                            self._check_kept(step.encode())
                            return

    async def upload_all(self, sources: Sequence[tuple[str, Path]]) -> AsyncGenerator[int, None]:
        """Send these files. Yield the number of bytes of each step; many small files are one step."""
        small = [each for each in sources if each[1].stat().st_size <= SMALL_BYTES]
        together = small if len(small) > FEW_FILES and "tar" in self._control.facts.helpers else []
        for start in range(0, len(together), MAX_FILES_PER_STREAM):
            yield await self._upload_together(together[start : start + MAX_FILES_PER_STREAM])
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
        digests = (sha256 for sha256, _ in sources)
        self._check_kept(await self._control.request("unpack_small_objects", crate, *digests, seconds=CHECK_SECONDS))
        return sent

    def _check_kept(self, answer: bytes) -> None:
        words = answer.decode(errors="replace").strip()
        if words != "kept":
            raise NodeUnfit(self._node.name, f"upload failed: {words or 'no answer'} (disk full?)")

    def _object(self, name: str) -> str:
        return f"{self._control.facts.workdir}/objects/{name}"

    async def _put(self, source: Path, part: str) -> bool:
        """Send a file by SFTP. Return False when the node has no SFTP that works."""
        try:
            with blame_in_use(self._node):
                return await self._put_by_sftp(source, self._object(part))
        except NodeUnfit:
            await self._control.request("remove_part", part)
            raise

    async def _put_by_sftp(self, source: Path, target: str) -> bool:
        try:
            if self._sftp is None:
                self._sftp = await self._control.connection.start_sftp_client()
            await self._sftp.put(str(source), target)
        except asyncssh.SFTPFailure as error:
            raise NodeUnfit(self._node.name, f"upload failed: {error.reason} (disk full?)") from error
        except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
            lost = isinstance(error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection)
            if lost or self._control.lost.done():
                self._sftp = None
            log.info("%s: no SFTP (%s), using a channel", self._node.name, error)
            self.has_sftp = False
            return False
        return True

    # --- large files

    async def _stream(self, sha256: str, source: Path, size: int) -> AsyncGenerator[int | str, None]:
        """Send a file from where an earlier try was cut. Yield the bytes of each step, and last the node's answer."""
        control, nonce = self._control, secrets.token_hex(8)
        facts = control.facts
        words = ("/bin/sh", control.library, "receive_object", facts.workdir, sha256, facts.boot_id, str(size), nonce)
        check_words(self._node.name, facts.workdir, *words)
        with blame_in_use(self._node):
            channel, offset = await self._open_upload(f"exec {' '.join(words)}", nonce, size)
            if offset:
                log.info("%s: upload of %s continues at %d of %d bytes", self._node.name, sha256[:12], offset, size)
            control.lost.add_done_callback(channel.abandon)
            try:
                async with contextlib.aclosing(channel.send(source, offset)) as steps:
                    async for step in steps:
                        yield step
                answer = await self._in_time(channel.read_rest())
            finally:
                control.lost.remove_done_callback(channel.abandon)
                await channel.close()
        if not answer:
            control.check_alive()
        yield answer.decode(errors="replace").strip()

    async def _open_upload(self, command: str, nonce: str, size: int) -> tuple[UploadChannel, int]:
        """Return a channel, and the offset at which the node continues. Raises a HostError."""
        if size >= OPENSSH_BYTES and self.has_openssh and (upload := await self._open_openssh(command)):
            if (offset := await self._read_offset(upload, nonce)) is not None:
                return upload, offset
            await upload.close()
            log.info("%s: the system's ssh does not reach the node", self._node.name)
            self.has_openssh = False
        channel = _ConnectionUpload(await create(self._control.connection, command))
        if (offset := await self._read_offset(channel, nonce)) is not None:
            return channel, offset
        if await channel.connection_ended():
            raise Dropped(self._node.name, "the connection ended")
        raise NodeUnfit(self._node.name, "upload failed: its login shell does not run commands")

    async def _open_openssh(self, command: str) -> OpensshUpload | None:
        """Start the system's ssh. Return None behind a jump host, whose key only the connection has checked."""
        connection = self._control.connection
        key = connection.get_server_host_key()
        if key is None or connection.get_extra_info("jump") is not None:
            return None
        return await OpensshUpload.open(self._node, self._dialing, key.export_public_key().decode().strip(), command)

    async def _read_offset(self, channel: UploadChannel, nonce: str) -> int | None:
        """Return the offset at which the node continues, which follows the output of login files; None without one.

        Closes the channel when it is cancelled or fails.
        """
        try:
            while line := await self._in_time(channel.readline()):
                match line.decode(errors="replace").split():
                    case [word, "at", number] if word == nonce and number.isdecimal():
                        return int(number)
        except BaseException:
            await channel.close()
            raise
        return None

    async def _in_time(self, answer: Awaitable[bytes]) -> bytes:
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                return await answer
        except TimeoutError as error:
            raise Dropped(self._node.name, f"no answer to an upload for {CHECK_SECONDS} s") from error

    async def _feed(self, command: str, pieces: Iterable[bytes]) -> int:
        """Send pieces to the standard input of a command. Return the number of bytes."""
        workdir = self._control.facts.workdir
        check_words(self._node.name, workdir, workdir)
        process = await create(self._control.connection, f"exec /bin/sh -c '{command}'")
        sent = 0
        # A command that stops reading has no space left: the check that follows reports it.
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
        """List the files in a run's folder; `where` holds arguments of find. Raises a HostError."""
        folder = f"{self._control.facts.workdir}/runs/{run}/work"
        found = await self._commands.exec_once(_LIST, (folder, *where), LIST_SECONDS, LIST_BYTES)
        if found.answer != "listed":
            raise NodeUnfit(self._node.name, "the run's folder is not there any more")
        return parse_listing(found.output, found.more)

    async def archive(self, run: str, names: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """Yield these files of a run's folder as a tar archive. Errors of tar are in the run's fetch.err."""
        control = self._control
        mark = b"NAMES-" + secrets.token_hex(8).encode()
        listed = b"".join(b"./" + os.fsencode(name) + b"\n" for name in names)
        folder = shlex.quote(f"{control.facts.workdir}/runs/{run}/work").encode()
        path = shlex.quote(control.found.path).encode()
        script = b"PATH=%s\ncd %s && cat >../fetch.list <<'%s' || exit 1\n%s%s\n" % (path, folder, mark, listed, mark)
        async with control.extra_shell() as shell, contextlib.aclosing(shell.stream(script + _TAR)) as pieces:
            async for piece in pieces:
                yield piece


def _archive(sources: Iterable[tuple[str, Path]]) -> Iterable[bytes]:
    for sha256, source in sources:
        content = source.read_bytes()
        member = tarfile.TarInfo(sha256)
        member.size, member.mode = len(content), 0o600
        yield member.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)
