"""`--with`: the files and folders to send with a run, their names in the run's folder, and archives of small files.

Files that the .gitignore files of a folder name are not sent, nor is .git. Many small files are packed into a few tar
archives, which cost a node one step each instead of one step per file. The same files give the same archives, so that
nothing is sent twice. Errors are reported together: missing or unreadable files, links out of their folder, special
files, and two files with the same name.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import io
import os
import stat
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sshgrid.client import files
from sshgrid.client.program import Source
from sshgrid.errors import FileMissing, UsageError
from sshgrid.protocol.messages import MAX_PAYLOAD

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

    from sshgrid.client.local_files import LocalFileOffer
    from sshgrid.model import SourceFile

PACKED_BELOW_BYTES = 1 << 20  # larger files are sent one by one
MAX_UNPACKED = 4  # up to this many small files are sent without an archive
MIN_PACK_BYTES, MAX_PACK_BYTES = 1 << 20, 8 << 20
_CUT_EVERY = 64  # names, on average
_MAX_SHOWN = 20  # errors


class Data(NamedTuple):
    """The files of `--with`: what to upload, and the two lists of a Program."""

    sources: tuple[Source, ...] = ()
    files: tuple[SourceFile, ...] = ()
    packs: tuple[SourceFile, ...] = ()


class FoundFile(NamedTuple):
    """A file to send: its name in the run's folder, and its path here."""

    name: str
    path: str
    size: int
    executable: bool


def read_data(paths: Sequence[str], offer: LocalFileOffer | None = None) -> Data:
    """Read the files of `--with PATH...`. FileMissing when the only errors are missing paths, else UsageError."""
    if not paths:
        return Data()
    small, large = list[FoundFile](), list[Source]()
    selection = FileSelection(offer)
    for path in paths:
        selection.add(path)
    chosen = selection.all()
    selection.raise_errors()  # before large files are read
    for found in chosen:
        if found.size < PACKED_BELOW_BYTES:
            small.append(found)
        else:
            large += selection.read(found)
    packed = len(small) > MAX_UNPACKED
    packs = [each for group in groups(small) for each in selection.pack(group)] if packed else []
    large += [] if packed else [each for found in small for each in selection.read(found)]
    selection.raise_errors()
    return Data((*large, *packs), tuple(source.file for source in large), tuple(source.file for source in packs))


# --- which files, under which names ----------------------------------------------------------------------------------


class FileSelection:
    """Files by name; errors are collected and raised together."""

    def __init__(self, offer: LocalFileOffer | None = None) -> None:
        self._offer = offer
        self._found: dict[str, FoundFile] = {}
        self._errors: list[str] = []
        self._only_missing = True
        self._rules: list[tuple[str, GitIgnoreSpec]] = []  # of the folders on the current path, outermost first

    def add(self, path: str) -> None:
        """Add one path of `--with`: a file, or all files of a folder."""
        try:
            found = files.status(path)
        except (FileNotFoundError, NotADirectoryError):
            self._errors.append(f"no such file or folder: {path} (--with)")
            return
        except (OSError, UsageError, ValueError) as error:
            self._add_error(path, error)
            return
        name = name_of(path)
        if stat.S_ISDIR(found.st_mode):
            self._add_folder(path, "" if name == "." else name, os.path.realpath(path), ())
        elif stat.S_ISREG(found.st_mode):
            self._add_file(name, path, found)
        else:
            self._add_error(path, UsageError("is neither a file nor a folder"))

    def _add_folder(self, folder: str, name: str, root: str, above: tuple[str, ...]) -> None:
        """Links must not lead out of `root`; `above` are the real paths of the folders that contain this one."""
        here = os.path.realpath(folder)
        if here in above:
            self._add_error(folder, UsageError("is a link to a folder that contains it"))
            return
        try:
            names = sorted(files.listed(folder))
        except (OSError, UsageError) as error:
            self._add_error(folder, error)
            return
        ruled = len(self._rules)
        if ".gitignore" in names:
            self._read_rules(folder, name)
        for each in names:
            inner = f"{name}/{each}" if name else each
            if each != ".git":
                self._add_member(os.path.join(folder, each), inner, root, (*above, here))
        del self._rules[ruled:]

    def _add_member(self, path: str, name: str, root: str, above: tuple[str, ...]) -> None:
        try:
            found = files.own_status(path)
            link = stat.S_ISLNK(found.st_mode)
            # git treats a link as a file, whatever it leads to.
            if self._is_ignored(name, folder=stat.S_ISDIR(found.st_mode)):
                return
            if link:
                _check_link(path, root)
                found = files.status(path)
        except (OSError, UsageError) as error:
            self._add_error(path, error)
            return
        if stat.S_ISDIR(found.st_mode):
            self._add_folder(path, name, root, above)
        elif stat.S_ISREG(found.st_mode):
            self._add_file(name, path, found)
        else:
            self._add_error(path, UsageError("is a special file; only files and folders can be sent"))

    def _read_rules(self, folder: str, name: str) -> None:
        from pathspec import GitIgnoreSpec

        path = os.path.join(folder, ".gitignore")
        try:
            with files.open_binary(path) as stream:
                lines = stream.read().decode("utf-8", "surrogateescape").splitlines()
            self._rules.append((name, GitIgnoreSpec.from_lines(lines)))
        except (OSError, UsageError, ValueError) as error:
            self._add_error(path, error)

    def _is_ignored(self, name: str, *, folder: bool) -> bool:
        """The innermost .gitignore with a matching rule decides."""
        for base, rules in reversed(self._rules):
            below = name[len(base) + 1 :] if base else name
            ignored = rules.check_file(f"{below}/" if folder else below).include
            if ignored is not None:
                return ignored
        return False

    def _add_file(self, name: str, path: str, found: os.stat_result) -> None:
        from sshgrid.notation.filenames import check_name

        other = self._found.get(name)
        if other is not None:
            if os.path.realpath(other.path) != os.path.realpath(path):
                self._errors.append(f"{other.path} and {path} would both become {name} in the run's folder")
                self._only_missing = False
            return
        try:
            check_name(name)
        except UsageError as error:
            self._add_error(path, error)
            return
        self._found[name] = FoundFile(name, path, found.st_size, bool(found.st_mode & 0o111))

    def all(self) -> list[FoundFile]:
        """The files, sorted by name. Adds an error for a name that would be a file and a folder."""
        folders = {name[:place] for name in self._found for place, sign in enumerate(name) if sign == "/"}
        for name in sorted(folders & self._found.keys()):
            self._add_error(self._found[name].path, UsageError(f"would become both a file and a folder, {name}"))
        return [self._found[name] for name in sorted(self._found)]

    # --- contents

    def read(self, found: FoundFile) -> Iterator[Source]:
        """Yield the source of one file; nothing when it cannot be read."""
        try:
            with files.open_binary(found.path) as stream:
                yield Source(
                    found.name,
                    stream,
                    executable=found.executable,
                    path=found.path,
                    keep=0,
                    offer=self._offer,
                )
        except (OSError, UsageError) as error:
            self._add_error(found.path, error)

    def pack(self, group: Sequence[FoundFile]) -> Iterator[TarPack]:
        """Yield an archive of these files; nothing when one of them cannot be read."""
        unreadable = False
        for found in group:
            try:
                files.open_binary(found.path).close()
            except (OSError, UsageError) as error:
                self._add_error(found.path, error)
                unreadable = True
        if not unreadable:
            yield TarPack(group)

    # --- errors

    def _add_error(self, path: str, error: Exception) -> None:
        self._only_missing = False
        match error:
            case OSError():
                message = f"{path}: {error.strerror or error}"
            case UsageError() if path in error.message:
                message = error.message
            case _:
                message = f"{path}: {error}"
        self._errors.append(f"{message} (--with)")

    def raise_errors(self) -> None:
        """Raise the collected errors, if there are any."""
        if not self._errors:
            return
        shown = [*self._errors[:_MAX_SHOWN]]
        if more := len(self._errors) - len(shown):
            shown.append(f"and {more} more")
        kind = FileMissing if self._only_missing else UsageError
        raise kind("\n".join(shown), "" if files.confined() else "ls -l")


def name_of(path: str) -> str:
    """The name of a path in the run's folder: the path itself below the current folder, else its last component."""
    name = os.path.normpath(path)
    if os.path.isabs(name) or name.split("/", 1)[0] == "..":
        return os.path.basename(os.path.abspath(path)) or "."
    return name


def _check_link(path: str, root: str) -> None:
    target = os.path.realpath(path)
    if not os.path.exists(target):
        raise UsageError("is a link to a missing file")
    if target != root and not target.startswith(root.rstrip("/") + "/"):
        raise UsageError(f"is a link to {target}, outside of its folder")


# --- archives of small files -----------------------------------------------------------------------------------------


def groups(found: Sequence[FoundFile]) -> Iterator[list[FoundFile]]:
    """Groups of neighbouring files, up to MAX_PACK_BYTES each.

    The end of a group depends on the names near it, not on the number of files before it: adding a file changes one
    group, and the others need not be sent again.
    """
    group, size = list[FoundFile](), 0
    for each in found:
        group.append(each)
        size += each.size + 1024
        cut = zlib.crc32(each.name.encode("utf-8", "surrogateescape")) % _CUT_EVERY == 0
        if size >= MAX_PACK_BYTES or (cut and size >= MIN_PACK_BYTES):
            yield group
            group, size = [], 0
    if group:
        yield group


class TarPack(Source):
    """A tar archive that is created when it is sent, so that only one is in memory at a time."""

    def __init__(self, group: Sequence[FoundFile]) -> None:
        self._group = tuple(group)
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        super().__init__(f"{group[0].name}{more}", io.BytesIO(_archive(group)), path="", keep=-1)

    def pieces(self) -> Iterator[bytes]:
        """Yield the archive, created again; the master detects when a file has changed meanwhile."""
        content = memoryview(_archive(self._group))
        for start in range(0, len(content), MAX_PAYLOAD):
            yield bytes(content[start : start + MAX_PAYLOAD])


def _archive(group: Sequence[FoundFile]) -> bytes:
    """A tar archive of these files; the same files always give the same bytes."""
    import tarfile

    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for found in group:
            with files.open_binary(found.path) as stream:
                content = stream.read()
            member = tarfile.TarInfo(found.name)
            member.size, member.mode = len(content), 0o755 if found.executable else 0o644
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()
