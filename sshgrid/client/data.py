"""`--with`: the files and folders that travel with a run, the names they get there, and small ones packed together.

A folder is taken as git would take it: what its .gitignore files name stays here, and so does .git. Many small files
become a few tar archives, which cost a node one step each instead of one a file; the same files give the same archives,
so nothing is sent twice. Refuses, all at once, what is missing or unreadable, links that lead out of their folder,
special files, and two files that would have one name.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

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

PACKED_BELOW_BYTES = 1 << 20  # larger files travel by themselves
FEW = 4  # so many small files are not worth an archive
LEAST_PACK_BYTES, MOST_PACK_BYTES = 1 << 20, 8 << 20
_CUT_EVERY = 64  # names, on the average
_SHOWN = 20


class Data(NamedTuple):
    """What `--with` means: everything to be uploaded, and the two lists of a Program."""

    sources: tuple[Source, ...] = ()
    files: tuple[SourceFile, ...] = ()
    packs: tuple[SourceFile, ...] = ()


class FoundFile(NamedTuple):
    """A file that travels: its name in the run's folder, and where it is here."""

    name: str
    path: str
    size: int
    executable: bool


def read_data(paths: Sequence[str], offer: LocalFileOffer | None = None) -> Data:
    """The files of `--with PATH...`. FileMissing when nothing is wrong but a missing path, else UsageError."""
    if not paths:
        return Data()
    small, large = list[FoundFile](), list[Source]()
    selection = Selection(offer)
    for path in paths:
        selection.take(path)
    chosen = selection.all()
    selection.complain()  # before gigabytes are read
    for found in chosen:
        if found.size < PACKED_BELOW_BYTES:
            small.append(found)
        else:
            large += selection.read(found)
    packed = len(small) > FEW
    packs = [each for group in groups(small) for each in selection.pack(group)] if packed else []
    large += [] if packed else [each for found in small for each in selection.read(found)]
    selection.complain()
    return Data((*large, *packs), tuple(source.file for source in large), tuple(source.file for source in packs))


# --- which files, under which names ----------------------------------------------------------------------------------


class Selection:
    """Files by name; what is wrong is collected and said together."""

    def __init__(self, offer: LocalFileOffer | None = None) -> None:
        self._hands = offer
        self._found: dict[str, FoundFile] = {}
        self._wrong: list[str] = []
        self._only_missing = True
        self._rules: list[tuple[str, GitIgnoreSpec]] = []  # of the folders that are being walked, outermost first

    def take(self, path: str) -> None:
        """One `--with`: a file, or all of a folder."""
        try:
            found = files.status(path)
        except (FileNotFoundError, NotADirectoryError):
            self._wrong.append(f"no such file or folder: {path} (--with)")
            return
        except (OSError, UsageError, ValueError) as error:
            self._complaint(path, error)
            return
        name = name_of(path)
        if stat.S_ISDIR(found.st_mode):
            self._take_folder(path, "" if name == "." else name, os.path.realpath(path), ())
        elif stat.S_ISREG(found.st_mode):
            self._add(name, path, found)
        else:
            self._complaint(path, UsageError("is neither a file nor a folder"))

    def _take_folder(self, folder: str, name: str, root: str, above: tuple[str, ...]) -> None:
        """`root`: what links must not lead out of; `above`: the real folders that lead here."""
        here = os.path.realpath(folder)
        if here in above:
            self._complaint(folder, UsageError("is a link that leads back into its own folder"))
            return
        try:
            names = sorted(files.listed(folder))
        except (OSError, UsageError) as error:
            self._complaint(folder, error)
            return
        ruled = len(self._rules)
        if ".gitignore" in names:
            self._learn_rules(folder, name)
        for each in names:
            inner = f"{name}/{each}" if name else each
            if each != ".git":
                self._take_member(os.path.join(folder, each), inner, root, (*above, here))
        del self._rules[ruled:]

    def _take_member(self, path: str, name: str, root: str, above: tuple[str, ...]) -> None:
        try:
            found = files.own_status(path)
            link = stat.S_ISLNK(found.st_mode)
            # git takes a link for a file, wherever it leads.
            if self._is_ignored(name, folder=stat.S_ISDIR(found.st_mode)):
                return
            if link:
                _check_link(path, root)
                found = files.status(path)
        except (OSError, UsageError) as error:
            self._complaint(path, error)
            return
        if stat.S_ISDIR(found.st_mode):
            self._take_folder(path, name, root, above)
        elif stat.S_ISREG(found.st_mode):
            self._add(name, path, found)
        else:
            self._complaint(path, UsageError("is a special file; only files and folders travel"))

    def _learn_rules(self, folder: str, name: str) -> None:
        from pathspec import GitIgnoreSpec

        path = os.path.join(folder, ".gitignore")
        try:
            with files.open_binary(path) as stream:
                lines = stream.read().decode("utf-8", "surrogateescape").splitlines()
            self._rules.append((name, GitIgnoreSpec.from_lines(lines)))
        except (OSError, UsageError, ValueError) as error:
            self._complaint(path, error)

    def _is_ignored(self, name: str, *, folder: bool) -> bool:
        """The innermost .gitignore that says anything about it decides."""
        for base, rules in reversed(self._rules):
            below = name[len(base) + 1 :] if base else name
            said = rules.check_file(f"{below}/" if folder else below).include
            if said is not None:
                return said
        return False

    def _add(self, name: str, path: str, found: os.stat_result) -> None:
        from sshgrid.notation.filenames import check_name

        other = self._found.get(name)
        if other is not None:
            if os.path.realpath(other.path) != os.path.realpath(path):
                self._wrong.append(f"{other.path} and {path} would both be {name} in the run's folder")
                self._only_missing = False
            return
        try:
            check_name(name)
        except UsageError as error:
            self._complaint(path, error)
            return
        self._found[name] = FoundFile(name, path, found.st_size, bool(found.st_mode & 0o111))

    def all(self) -> list[FoundFile]:
        """By name. What is a file here must be no folder there."""
        folders = {name[:place] for name in self._found for place, sign in enumerate(name) if sign == "/"}
        for name in sorted(folders & self._found.keys()):
            self._complaint(self._found[name].path, UsageError(f"would be both a file and a folder, {name}"))
        return [self._found[name] for name in sorted(self._found)]

    # --- their bytes

    def read(self, found: FoundFile) -> Iterator[Source]:
        """A file by itself; none when it cannot be read."""
        try:
            with files.open_binary(found.path) as stream:
                yield Source(
                    found.name,
                    stream,
                    executable=found.executable,
                    path=found.path,
                    keep=0,
                    offer=self._hands,
                )
        except (OSError, UsageError) as error:
            self._complaint(found.path, error)

    def pack(self, group: Sequence[FoundFile]) -> Iterator[TarPack]:
        """These files together; none when one cannot be read."""
        unreadable = False
        for found in group:
            try:
                files.open_binary(found.path).close()
            except (OSError, UsageError) as error:
                self._complaint(found.path, error)
                unreadable = True
        if not unreadable:
            yield TarPack(group)

    # --- what is wrong

    def _complaint(self, path: str, error: Exception) -> None:
        self._only_missing = False
        match error:
            case OSError():
                words = f"{path}: {error.strerror or error}"
            case UsageError() if path in error.message:
                words = error.message
            case _:
                words = f"{path}: {error}"
        self._wrong.append(f"{words} (--with)")

    def complain(self) -> None:
        """Raises what is wrong, if anything is."""
        if not self._wrong:
            return
        shown = [*self._wrong[:_SHOWN]]
        if more := len(self._wrong) - len(shown):
            shown.append(f"and {more} more")
        kind = FileMissing if self._only_missing else UsageError
        raise kind("\n".join(shown), "" if files.confined() else "ls -l, and name what is there")


def name_of(path: str) -> str:
    """Its name in the run's folder: as it was given when it lies below the current folder, else its last part."""
    name = os.path.normpath(path)
    if os.path.isabs(name) or name.split("/", 1)[0] == "..":
        return os.path.basename(os.path.abspath(path)) or "."
    return name


def _check_link(path: str, root: str) -> None:
    target = os.path.realpath(path)
    if not os.path.exists(target):
        raise UsageError("is a link that leads nowhere")
    if target != root and not target.startswith(root.rstrip("/") + "/"):
        raise UsageError(f"is a link out of its folder, to {target}")


# --- small files together --------------------------------------------------------------------------------------------


def groups(found: Sequence[FoundFile]) -> Iterator[list[FoundFile]]:
    """Neighbours, up to a few megabytes each. Where one group ends depends on the names nearby, not on how many came
    before: a file more changes one group, and the others need not be sent again."""
    group, size = list[FoundFile](), 0
    for each in found:
        group.append(each)
        size += each.size + 1024
        cut = zlib.crc32(each.name.encode("utf-8", "surrogateescape")) % _CUT_EVERY == 0
        if size >= MOST_PACK_BYTES or (cut and size >= LEAST_PACK_BYTES):
            yield group
            group, size = [], 0
    if group:
        yield group


class TarPack(Source):
    """A tar archive that is made when it is wanted: only one is in memory at a time."""

    def __init__(self, group: Sequence[FoundFile]) -> None:
        self._group = tuple(group)
        more = f" and {len(group) - 1} more" if len(group) > 1 else ""
        super().__init__(f"{group[0].name}{more}", io.BytesIO(_archive(group)), path="", keep=-1)

    def pieces(self) -> Iterator[bytes]:
        """As of any Source: the master refuses them when a file has changed meanwhile."""
        content = memoryview(_archive(self._group))
        for start in range(0, len(content), MAX_PAYLOAD):
            yield bytes(content[start : start + MAX_PAYLOAD])


def _archive(group: Sequence[FoundFile]) -> bytes:
    """The same bytes whenever, wherever and by whom it is made."""
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
