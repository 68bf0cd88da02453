"""What a job takes along: the program's file or folder, and its standard input, named by their SHA-256.

Small things are kept in memory, large ones are hashed where they are and read again when the master wants them. Refuses
links and special files in a folder (a link may point anywhere), and names that are not UTF-8.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

from sshgrid.client import files
from sshgrid.errors import FileMissing, UsageError
from sshgrid.model import SourceFile
from sshgrid.notation.digest import sha256
from sshgrid.protocol.messages import MAX_PAYLOAD, Blobs, MissingBlobs, PutBlob

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.client.local_files import LocalFileOffer
    from sshgrid.terminal.bar import TransferBar

SMALL_BYTES = 256 * 1024  # all that goes up in one piece without asking what the master has
SHOWN_BYTES = 8 << 20  # of what is larger it is shown how far it has come
MAX_NAME_BYTES = 255
_ASKED_AT_ONCE = 5000  # digests
MAKEFILES = ("GNUmakefile", "makefile", "Makefile")  # the order in which make looks


class Source:
    """Bytes to be uploaded: in memory (`kept`) or in a file that is read again."""

    def __init__(
        self,
        name: str,
        stream: BinaryIO,
        *,
        executable: bool = False,
        path: str | None = None,
        keep: int = SMALL_BYTES,
        offer: LocalFileOffer | None = None,
    ) -> None:
        self._spooled: BinaryIO | None = None
        self._path = path
        self.kept: bytes | None = None
        if offer is not None and path is not None and (sha256 := offer.digest(path, stream)):
            self.file = SourceFile(name, sha256, os.fstat(stream.fileno()).st_size, executable)
        else:
            self._read(name, stream, executable, keep)

    def _read(self, name: str, stream: BinaryIO, executable: bool, keep: int) -> None:
        digest, size, pieces = _sha256(stream), 0, list[bytes]()
        while piece := stream.read(MAX_PAYLOAD):
            digest.update(piece)
            size += len(piece)
            if self._path is None and self._spooled is None and size > keep:
                self._spooled = _spool(pieces)
            if self._spooled is not None:
                self._spooled.write(piece)
            elif size <= keep:
                pieces.append(piece)
        self.file = SourceFile(name, digest.hexdigest(), size, executable)
        self.kept = b"".join(pieces) if size <= keep else None

    def pieces(self) -> Iterator[bytes]:
        """At least one, each at most MAX_PAYLOAD. The master refuses them when the file changed in between."""
        if self.kept is not None:
            yield self.kept
        elif self._spooled is not None:
            self._spooled.seek(0)
            yield from _read(self._spooled)
        elif self._path is not None:
            with files.open_binary(self._path) as stream:
                yield from _read(stream)


def _sha256(stream: BinaryIO) -> Any:
    """An empty digest; of hashlib unless the stream is a small file, as importing that takes a while."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        found = None
    if found and stat.S_ISREG(found.st_mode) and found.st_size <= SMALL_BYTES:
        return sha256()
    import hashlib

    return hashlib.sha256()


def _read(stream: BinaryIO) -> Iterator[bytes]:
    while piece := stream.read(MAX_PAYLOAD):
        yield piece


def _spool(pieces: list[bytes]) -> BinaryIO:
    import tempfile

    spooled = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the Source; it has no name to clean up
    spooled.writelines(pieces)
    pieces.clear()
    return spooled


# --- the program -----------------------------------------------------------------------------------------------------


class ProgramFiles:
    """The files of a program. `language` is "" when the file's name or first line shall decide."""

    def __init__(self, entry: str, sources: Sequence[Source], language: str = "") -> None:
        self.entry, self.sources, self.language = entry, tuple(sources), language


def read_program(path: str, lang: str, stdin: BinaryIO | None, main: str = "") -> ProgramFiles:
    """FILE of the command line: a file, a folder, or "-". FileMissing (127), UsageError (2).

    Of a folder `main` is the file that would be named if there were no others; "" = it has a Makefile.
    """
    if path == "-" and not main:
        return _from_stdin(lang, stdin)
    try:
        found = files.status(path)
        if stat.S_ISDIR(found.st_mode):
            return _from_folder(path, main)
        if main:
            raise UsageError(
                f"--main names a file of a folder, and {path} is none", f"sshgrid run --main {main} FOLDER"
            )
        name = _name(os.path.basename(path), path)
        regular = (
            path if stat.S_ISREG(found.st_mode) else None
        )  # of a FIFO, as `<(...)` makes, nothing is left to reread
        with files.open_binary(path) as stream:
            source = Source(name, stream, executable=bool(found.st_mode & 0o111) and regular is not None, path=regular)
    except FileNotFoundError:
        raise FileMissing(f"no such file: {path}", _similar(path)) from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", f"ls -l {path}") from error
    return ProgramFiles(name, (source,))


def _similar(path: str) -> str:
    import difflib

    folder, name = os.path.split(path)
    if not (names := files.names(folder or ".")):
        return f"ls {folder}" if folder and not files.confined() else ""
    close = difflib.get_close_matches(name, names, 1, 0.7)
    return f"did you mean {os.path.join(folder, close[0])}?" if close else ""


def _from_stdin(lang: str, stdin: BinaryIO | None) -> ProgramFiles:
    if stdin is None:
        raise UsageError("the program is to come from standard input, which is closed", "sshgrid run FILE")
    source = Source("stdin", stdin)
    extension = _extension(lang) if lang else ""
    head = next(source.pieces())[:256]
    if not lang and not head.startswith(b"#!"):
        raise UsageError("which language is this? It has no file name and no #! line", "sshgrid run --lang python -")
    file = source.file
    source.file = SourceFile(f"stdin{extension}", file.sha256, file.size, executable=head.startswith(b"#!"))
    return ProgramFiles(source.file.name, (source,))


def _extension(lang: str) -> str:
    """The usual one of a language of the built-in table, for compilers that look at it; "" for others."""
    from sshgrid.toolchains import LANGUAGES

    globs = next((each.match for each in LANGUAGES if each.name == lang), ())
    return next((glob[1:] for glob in globs if glob.startswith("*.") and "*" not in glob[1:]), "")


def _from_folder(folder: str, main: str) -> ProgramFiles:
    entry = _main_of(folder, main) if main else _makefile_of(folder)
    sources, keep = list[Source](), SMALL_BYTES
    for path in _walk(folder):
        source = _member(folder, path, keep)
        keep -= source.file.size if source.kept is not None else 0
        sources.append(source)
    return ProgramFiles(entry, sources, "" if main else "make")


def _makefile_of(folder: str) -> str:
    entry = next((name for name in MAKEFILES if files.exists(os.path.join(folder, name))), "")
    if not entry:
        makefile = os.path.join(folder, "Makefile")
        raise UsageError(f"{folder} is a folder without a Makefile", f"write {makefile}, or name its file: --main FILE")
    return entry


def _main_of(folder: str, main: str) -> str:
    """The file that `--main` names, as it is called in the folder: from there, or from here."""
    inside = [os.path.normpath(main), os.path.relpath(main, folder)]
    for name in inside:
        path = os.path.join(folder, name)
        outside = os.path.isabs(name) or name.split("/", 1)[0] == ".."
        if not outside and files.exists(path) and not files.is_folder(path):
            return name
    raise FileMissing(f"no such file in {folder}: {main} (--main)", _similar(os.path.join(folder, main)))


def _walk(folder: str) -> Iterator[str]:
    for at, folders, names in files.walk(folder):
        folders[:] = sorted(name for name in folders if name != ".git")
        for name in folders:
            if os.path.islink(os.path.join(at, name)):
                raise _no_link(os.path.join(at, name))
        yield from (os.path.join(at, name) for name in sorted(names))


def _member(folder: str, path: str, keep: int) -> Source:
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise _no_link(path)
    name = _name(os.path.relpath(path, folder), path)
    with files.open_binary(path) as stream:
        return Source(name, stream, executable=bool(found.st_mode & 0o111), path=path, keep=keep)


def _no_link(path: str) -> UsageError:
    return UsageError(
        f"{path} is a link or a special file; only files travel", f"put a copy in its place: ls -l {path}"
    )


def _name(name: str, path: str) -> str:
    try:
        longest = max(len(part.encode("utf-8")) for part in name.split("/"))
    except UnicodeEncodeError:
        raise UsageError(f"the name of {path} is not UTF-8", "rename it") from None
    if longest > MAX_NAME_BYTES:
        raise UsageError(f"the name of {path} is longer than {MAX_NAME_BYTES} bytes", "rename it")
    return name


# --- standard input --------------------------------------------------------------------------------------------------


def read_stdin(
    choice: str, stdin: BinaryIO | None, say: Callable[[str], None], offer: LocalFileOffer | None = None
) -> Source | None:
    """`--stdin`: a file, "-" (ours, whatever it is), "none", or "" = ours when it is a pipe, a socket or a file.

    A terminal or a device such as /dev/null means none: nothing that could be sent to its end.
    """
    if choice == "none" or (not choice and not _has_end(stdin)):
        return None
    if choice in ("", "-"):
        if stdin is None:
            raise UsageError("standard input is closed", "--stdin none")
        _say_when_slow(stdin, say)
        return Source("stdin", stdin)
    try:
        with files.open_binary(choice) as stream:
            path = choice if stat.S_ISREG(os.fstat(stream.fileno()).st_mode) else None
            return Source("stdin", stream, path=path, offer=offer)
    except FileNotFoundError:
        raise FileMissing(f"no such file: {choice} (--stdin)", _similar(choice)) from None
    except OSError as error:
        raise UsageError(f"{choice}: {error.strerror} (--stdin)") from error


def _has_end(stdin: BinaryIO | None) -> bool:
    if stdin is None:
        return False
    try:
        mode = os.fstat(stdin.fileno()).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def _say_when_slow(stdin: BinaryIO, say: Callable[[str], None]) -> None:
    """An open pipe that nobody writes to looks like a hang: say what is waited for."""
    import select

    try:
        ready = select.select([stdin], [], [], 2.0)[0]
    except (OSError, ValueError):
        return
    if not ready:
        say("waiting for the end of standard input; `--stdin none` runs without it")


def our_stdin() -> BinaryIO | None:
    """The unbuffered standard input, None when it is closed."""
    return None if sys.stdin is None else open(0, "rb", buffering=0, closefd=False)


# --- upload ----------------------------------------------------------------------------------------------------------


def upload(connection: Connection, sources: Sequence[Source], transfer: TransferBar | None = None) -> None:
    """Give the master what it lacks. Small things are only queued: they leave together with the next request."""
    distinct = {source.file.sha256: source for source in sources}
    wanted = set(distinct)
    large = sum(source.file.size for source in distinct.values()) > SMALL_BYTES
    if large:
        wanted = _wanted(connection, tuple(distinct))
    for digest in distinct:
        if digest in wanted:
            _put(connection, distinct[digest], transfer, at_once=large)
    if transfer is not None:
        transfer.clear()


def _wanted(connection: Connection, digests: tuple[str, ...]) -> set[str]:
    """Those that the master lacks. Asked in parts: a line of the protocol holds only so many."""
    parts = (digests[start : start + _ASKED_AT_ONCE] for start in range(0, len(digests), _ASKED_AT_ONCE))
    return {each for part in parts for each in connection.request(MissingBlobs(part), Blobs).sha256}


def _put(connection: Connection, source: Source, transfer: TransferBar | None, *, at_once: bool) -> None:
    digest, sent, size = source.file.sha256, 0, source.file.size
    for piece in source.pieces():
        sent += len(piece)
        connection.queue(PutBlob(digest, len(piece), last=sent >= size), piece)
        if at_once:
            connection.flush()
        if transfer is not None and size >= SHOWN_BYTES:
            transfer.moved(f"sending {source.file.name} to the master", sent, size)
    if sent < size:
        raise UsageError(f"{source.file.name} became shorter while it was uploaded", "run it again")
