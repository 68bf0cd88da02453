"""The files of a job: the program's file or folder, and its standard input, identified by their SHA-256.

Small files are kept in memory, large ones are hashed and read again when the master needs them. Links and special files
in a folder (a link may lead anywhere) and names that are not UTF-8 raise UsageError.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

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
from sshgrid.protocol.messages import MAX_PAYLOAD, MissingBlobs, MissingBlobsReply, PutBlob

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.client.local_files import LocalFileOffer
    from sshgrid.terminal.bar import TransferBar

SMALL_BYTES = 256 * 1024  # less than this in all is uploaded without asking what the master has
PROGRESS_BYTES = 8 << 20  # the upload of a larger file is shown with a progress bar
MAX_NAME_BYTES = 255
_DIGESTS_PER_REQUEST = 5000
MAKEFILES = ("GNUmakefile", "makefile", "Makefile")  # the order in which make looks


class Source:
    """A file to upload: in memory (`kept`), or in a file that is read again for the upload."""

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
        """Yield at least one piece of at most MAX_PAYLOAD bytes. The master detects a file that changed meanwhile."""
        if self.kept is not None:
            yield self.kept
        elif self._spooled is not None:
            self._spooled.seek(0)
            yield from _read(self._spooled)
        elif self._path is not None:
            with files.open_binary(self._path) as stream:
                yield from _read(stream)


def _sha256(stream: BinaryIO) -> Any:
    """A new SHA-256; from hashlib, whose import is slow, only when the stream may be large."""
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

    spooled = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the Source exists; the file has no name
    spooled.writelines(pieces)
    pieces.clear()
    return spooled


# --- the program -----------------------------------------------------------------------------------------------------


class ProgramFiles:
    """The files of a program. `language` is "" when the name or first line of the entry file determines it."""

    def __init__(self, entry: str, sources: Sequence[Source], language: str = "") -> None:
        self.entry, self.sources, self.language = entry, tuple(sources), language


def read_program(path: str, lang: str, stdin: BinaryIO | None, main: str = "") -> ProgramFiles:
    """Read FILE of the command line: a file, a folder, or "-". Raises FileMissing, UsageError.

    `main` is the main file of a folder; "" for a folder with a Makefile.
    """
    if path == "-" and not main:
        return _from_stdin(lang, stdin)
    try:
        found = files.status(path)
        if stat.S_ISDIR(found.st_mode):
            return _from_folder(path, main)
        if main:
            raise UsageError(f"--main needs a folder, and {path} is not one", f"sshgrid run --main {main} FOLDER")
        name = _name(os.path.basename(path), path)
        regular = path if stat.S_ISREG(found.st_mode) else None  # a FIFO, as from `<(...)`, cannot be read again
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
        raise UsageError("cannot read the program from standard input, which is closed", "sshgrid run FILE")
    source = Source("stdin", stdin)
    extension = _extension(lang) if lang else ""
    head = next(source.pieces())[:256]
    if not lang and not head.startswith(b"#!"):
        raise UsageError(
            "cannot determine the language: standard input has no file name and no #! line",
            "sshgrid run --lang python -",
        )
    file = source.file
    source.file = SourceFile(f"stdin{extension}", file.sha256, file.size, executable=head.startswith(b"#!"))
    return ProgramFiles(source.file.name, (source,))


def _extension(lang: str) -> str:
    """The file name extension of a built-in language, which some compilers need; "" for others."""
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
        raise UsageError(f"{folder} is a folder without a Makefile", f"create {makefile}, or use --main FILE")
    return entry


def _main_of(folder: str, main: str) -> str:
    """The name in `folder` of the file of --main, which is relative to `folder` or to the current folder."""
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
                raise _not_a_file(os.path.join(at, name))
        yield from (os.path.join(at, name) for name in sorted(names))


def _member(folder: str, path: str, keep: int) -> Source:
    found = os.lstat(path)
    if not stat.S_ISREG(found.st_mode):
        raise _not_a_file(path)
    name = _name(os.path.relpath(path, folder), path)
    with files.open_binary(path) as stream:
        return Source(name, stream, executable=bool(found.st_mode & 0o111), path=path, keep=keep)


def _not_a_file(path: str) -> UsageError:
    return UsageError(
        f"{path} is a link or a special file, which cannot be sent", f"replace it with a copy: ls -l {path}"
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
    choice: str, stdin: BinaryIO | None, note: Callable[[str], None], offer: LocalFileOffer | None = None
) -> Source | None:
    """Read the input of --stdin: a file, "-" (our stdin), "none", or "" = our stdin if it is a pipe, socket or file.

    With "", a terminal or a device such as /dev/null means none.
    """
    if choice == "none" or (not choice and not _has_end(stdin)):
        return None
    if choice in ("", "-"):
        if stdin is None:
            raise UsageError("standard input is closed", "--stdin none")
        _note_when_slow(stdin, note)
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


def _note_when_slow(stdin: BinaryIO, note: Callable[[str], None]) -> None:
    """Print a note when nothing arrives for two seconds, as an open pipe without a writer looks like a hang."""
    import select

    try:
        ready = select.select([stdin], [], [], 2.0)[0]
    except (OSError, ValueError):
        return
    if not ready:
        note("waiting for the end of standard input; `--stdin none` runs without it")


def our_stdin() -> BinaryIO | None:
    """The unbuffered standard input, None when it is closed."""
    return None if sys.stdin is None else open(0, "rb", buffering=0, closefd=False)


# --- upload ----------------------------------------------------------------------------------------------------------


def upload(connection: Connection, sources: Sequence[Source], transfer: TransferBar | None = None) -> None:
    """Upload what the master lacks. Small files are only queued, and sent together with the next request."""
    distinct = {source.file.sha256: source for source in sources}
    missing = set(distinct)
    large = sum(source.file.size for source in distinct.values()) > SMALL_BYTES
    if large:
        missing = _missing(connection, tuple(distinct))
    for digest in distinct:
        if digest in missing:
            _put(connection, distinct[digest], transfer, at_once=large)
    if transfer is not None:
        transfer.clear()


def _missing(connection: Connection, digests: tuple[str, ...]) -> set[str]:
    """The digests that the master lacks; in several requests, as the size of a message is limited."""
    parts = (digests[start : start + _DIGESTS_PER_REQUEST] for start in range(0, len(digests), _DIGESTS_PER_REQUEST))
    return {each for part in parts for each in connection.request(MissingBlobs(part), MissingBlobsReply).sha256}


def _put(connection: Connection, source: Source, transfer: TransferBar | None, *, at_once: bool) -> None:
    digest, sent, size = source.file.sha256, 0, source.file.size
    for piece in source.pieces():
        sent += len(piece)
        connection.queue(PutBlob(digest, len(piece), last=sent >= size), piece)
        if at_once:
            connection.flush()
        if transfer is not None and size >= PROGRESS_BYTES:
            transfer.update(f"sending {source.file.name} to the master", sent, size)
    if sent < size:
        raise UsageError(f"{source.file.name} became shorter during the upload", "repeat the command")
