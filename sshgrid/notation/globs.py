"""Globs of `--fetch`: what they match below a run's folder, and which of the files found there are brought back.

As a shell reads them: `*`, `?` and `[..]` stay within one part of a name and leave names with a leading dot alone; `**`
is any number of folders. A folder that is matched is brought whole. Pure. Refuses globs that lead out of the folder,
and names that no careful person would want on their disk.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sshgrid.errors import UsageError
from sshgrid.notation.filenames import fault_of
from sshgrid.notation.quantities import format_size

MAX_GLOBS = 1000
MAX_FILES = 100_000  # that are brought back of one run
_WILD = frozenset("*?[")
_SHOWN = 5


def check(globs: Sequence[str]) -> None:
    """UsageError unless all of them stay below the run's folder."""
    if len(globs) > MAX_GLOBS:
        raise UsageError(f"--fetch: {len(globs)} globs, and no more than {MAX_GLOBS} are taken", "--fetch FOLDER")
    for glob in globs:
        if fault := _fault_of_glob(glob):
            raise UsageError(
                f"--fetch: {glob[:200]!r} {fault}", "it is looked for in the run's folder: --fetch 'out/*.csv'"
            )


def _fault_of_glob(glob: str) -> str:
    if not glob:
        return "is empty"
    if glob.startswith("/"):
        return "is absolute"
    if ".." in glob.split("/"):
        return "leads out of the run's folder ('..')"
    return (
        "holds a control character" if _has_control(glob) else fault_of("/".join(_parts(glob))) if _parts(glob) else ""
    )


def _has_control(text: str) -> bool:
    return any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text)


def fault(name: str) -> str:
    """Why a file of this name is not brought back; "" when it may be."""
    return "has a control character in its name" if _has_control(name) else fault_of(name)


def _parts(glob: str) -> tuple[str, ...]:
    """Without what says nothing: `./out//` is `out`. `**` at the end is everything below."""
    parts = tuple(part for part in glob.split("/") if part not in ("", "."))
    return (*parts, "*") if parts[-1:] == ("**",) else parts


def matches(glob: str, name: str) -> bool:
    """Whether this file, or a folder that it is in, is what the glob names."""
    parts = _parts(glob)
    places = _with_empty_folders(parts, {0})
    for part in name.split("/"):
        if len(parts) in places:
            return True
        after = {place for place in places if parts[place] == "**" and not part.startswith(".")}
        after |= {place + 1 for place in places if parts[place] != "**" and _is_like(parts[place], part)}
        places = _with_empty_folders(parts, after)
    return len(parts) in places


def _with_empty_folders(parts: Sequence[str], places: set[int]) -> set[int]:
    """`**` may be no folder at all."""
    found = set(places)
    for place, part in enumerate(parts):
        if part == "**" and place in found:
            found.add(place + 1)
    return found


def _is_like(pattern: str, part: str) -> bool:
    if part.startswith(".") and not pattern.startswith("."):
        return False
    return fnmatch.fnmatchcase(part, pattern)


def where(globs: Iterable[str]) -> tuple[str, ...]:
    """Words for find(1), joined by -o: which paths can match at all, by the parts before the first wild one."""
    words: list[str] = []
    for glob in globs:
        plain = _parts(glob)
        wild = next((place for place, part in enumerate(plain) if _WILD & set(part)), len(plain))
        path = "/".join((".", *plain[:wild])).replace("\\", "\\\\")
        words += ["-o", "-path", path, "-o", "-path", f"{path}/*"]
    return tuple(words[1:])


# --- what is there, and what of it is brought -------------------------------------------------------------------------


class Listing(NamedTuple):
    """What a node says is there."""

    files: Mapping[str, int]  # name -> size; also links to a file inside
    others: Mapping[str, str]  # name -> why it cannot be brought back
    more: bool = False  # there is more than could be listed
    broken: bool = False  # there are names with a line break, which were not listed


_KINDS = {
    "d": "is a link to a folder",
    "o": "is a link out of the run's folder",
    "s": "is neither a file nor a folder",
}


def parse_listing(output: bytes, more: bool = False) -> Listing:
    """Lines of remote/files.sh: `f SIZE ./NAME`, or a kind and a name. What is not understood is passed over."""
    found: dict[str, int] = {}
    others: dict[str, str] = {}
    lines = output.split(b"\n")
    for line in lines[:-1] if more else lines:
        kind, _, rest = line.decode("utf-8", "surrogateescape").partition(" ")
        size, _, path = rest.partition(" ") if kind == "f" else ("0", "", rest)
        name = path.removeprefix("./")
        if not path.startswith("./") or not size.isdecimal():
            continue
        if kind == "f":
            found[name] = int(size)
        elif kind in _KINDS:
            others[name] = _KINDS[kind]
    return Listing(found, others, more, b"n ./" in lines)


class Choice(NamedTuple):
    """Names in order, with their sizes, and what is to be said."""

    files: Mapping[str, int]
    warnings: tuple[str, ...]


def choose(listing: Listing, globs: Sequence[str], most_bytes: int) -> Choice:
    """What is brought back. A glob without any file is told, and so is everything that is left out."""
    useless, wanted, warnings = set(globs), dict[str, int](), list[str]()
    left_out: dict[str, list[str]] = {}
    for name in sorted({*listing.files, *listing.others}):
        hit = {glob for glob in globs if matches(glob, name)}
        useless -= hit
        if not hit:
            continue
        if why := listing.others.get(name, "") or fault(name):
            left_out.setdefault(why, []).append(name)
        else:
            wanted[name] = listing.files[name]
    warnings += [f"--fetch {glob}: nothing there" for glob in globs if glob in useless]
    warnings += [f"not fetched: {_listed(names)} {why}" for why, names in left_out.items()]
    if listing.broken:
        warnings.append("not fetched: files with a line break in their names")
    if listing.more:
        warnings.append("there are more files in the run's folder than can be looked at: some may be missing")
    chosen, beyond = _within(wanted, most_bytes)
    if beyond:
        size = format_size(sum(wanted[name] for name in beyond))
        limit = f"{format_size(most_bytes)} and {MAX_FILES:,} files"
        warnings.append(f"not fetched: {_listed(beyond)} ({size}): no more than {limit} may come back")
    return Choice(chosen, tuple(dict.fromkeys(warnings)))


def _within(wanted: Mapping[str, int], most_bytes: int) -> tuple[dict[str, int], list[str]]:
    chosen: dict[str, int] = {}
    beyond: list[str] = []
    total = 0
    for name, size in wanted.items():
        if total + size > most_bytes or len(chosen) >= MAX_FILES:
            beyond.append(name)
        else:
            chosen[name] = size
            total += size
    return chosen, beyond


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(_plain(name) for name in names[:_SHOWN]) + more


def _plain(name: str) -> str:
    shown = name if name.isprintable() else ascii(name)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."
