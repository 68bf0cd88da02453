"""Globs of `--fetch`: which names they match, and which files in a run's folder are fetched.

Globs work as in a shell: `*`, `?` and `[..]` match within one part of a path, but not a leading dot; `**` matches any
number of folders. A folder that matches is fetched with everything in it. A glob that leads out of the folder is an
error. Files whose names lead out of it, or contain control characters, are not fetched.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from sshgrid.errors import UsageError
from sshgrid.notation.filenames import name_problem
from sshgrid.notation.quantities import format_size

MAX_GLOBS = 1000
MAX_FILES = 100_000  # fetched files of one run
_WILD = frozenset("*?[")
_SHOWN = 5  # names in a warning


def check(globs: Sequence[str]) -> None:
    """Raise UsageError unless all globs stay inside the run's folder."""
    if len(globs) > MAX_GLOBS:
        raise UsageError(f"--fetch: {len(globs)} globs are more than the limit of {MAX_GLOBS}", "--fetch FOLDER")
    for glob in globs:
        if problem := _glob_problem(glob):
            raise UsageError(
                f"--fetch: {glob[:200]!r} {problem}", "name files in the run's folder: --fetch 'out/*.csv'"
            )


def _glob_problem(glob: str) -> str:
    if not glob:
        return "is empty"
    if glob.startswith("/"):
        return "is absolute"
    if ".." in glob.split("/"):
        return "leads out of the run's folder ('..')"
    if _has_control(glob):
        return "contains a control character"
    return name_problem("/".join(_parts(glob))) if _parts(glob) else ""


def _has_control(text: str) -> bool:
    return any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in text)


def fetch_problem(name: str) -> str:
    """Why a file of this name is not fetched; "" when it may be."""
    return "contains a control character" if _has_control(name) else name_problem(name)


def _parts(glob: str) -> tuple[str, ...]:
    """The parts of a glob without empty ones and dots. A `**` at the end matches everything below."""
    parts = tuple(part for part in glob.split("/") if part not in ("", "."))
    return (*parts, "*") if parts[-1:] == ("**",) else parts


def matches(glob: str, name: str) -> bool:
    """Whether the glob matches this file, or a folder that it is in."""
    parts = _parts(glob)
    places = _skip_empty_folders(parts, {0})
    for part in name.split("/"):
        if len(parts) in places:
            return True
        after = {place for place in places if parts[place] == "**" and not part.startswith(".")}
        after |= {place + 1 for place in places if parts[place] != "**" and _is_like(parts[place], part)}
        places = _skip_empty_folders(parts, after)
    return len(parts) in places


def _skip_empty_folders(parts: Sequence[str], places: set[int]) -> set[int]:
    """Add the places after each `**`, because `**` also matches no folder."""
    found = set(places)
    for place, part in enumerate(parts):
        if part == "**" and place in found:
            found.add(place + 1)
    return found


def _is_like(pattern: str, part: str) -> bool:
    if part.startswith(".") and not pattern.startswith("."):
        return False
    return fnmatch.fnmatchcase(part, pattern)


def find_arguments(globs: Iterable[str]) -> tuple[str, ...]:
    """Arguments of find(1) that select all paths that may match, by the parts before the first wildcard."""
    words: list[str] = []
    for glob in globs:
        plain = _parts(glob)
        wild = next((place for place, part in enumerate(plain) if _WILD & set(part)), len(plain))
        path = "/".join((".", *plain[:wild])).replace("\\", "\\\\")
        words += ["-o", "-path", path, "-o", "-path", f"{path}/*"]
    return tuple(words[1:])


# --- the files of a run and the choice among them ---------------------------------------------------------------------


class Listing(NamedTuple):
    """The files in a run's folder, as the node reports them."""

    files: Mapping[str, int]  # name -> size in bytes; also links to a file inside the folder
    unfetchable: Mapping[str, str]  # name -> why it cannot be fetched
    truncated: bool = False  # there are more files than were listed
    has_line_breaks: bool = False  # there are names with a line break; these are not listed


_KINDS = {
    "d": "is a link to a folder",
    "o": "is a link out of the run's folder",
    "s": "is neither a file nor a folder",
}


def parse_listing(output: bytes, truncated: bool = False) -> Listing:
    """Parse the output of remote/files.sh: lines `f SIZE ./NAME` or `KIND ./NAME`. Other lines are ignored."""
    found: dict[str, int] = {}
    unfetchable: dict[str, str] = {}
    lines = output.split(b"\n")
    for line in lines[:-1] if truncated else lines:
        kind, _, rest = line.decode("utf-8", "surrogateescape").partition(" ")
        size, _, path = rest.partition(" ") if kind == "f" else ("0", "", rest)
        name = path.removeprefix("./")
        if not path.startswith("./") or not size.isdecimal():
            continue
        if kind == "f":
            found[name] = int(size)
        elif kind in _KINDS:
            unfetchable[name] = _KINDS[kind]
    return Listing(found, unfetchable, truncated, b"n ./" in lines)


class Chosen(NamedTuple):
    """The files to fetch, by name with their sizes, and warnings for the user."""

    files: Mapping[str, int]
    warnings: tuple[str, ...]


def choose(listing: Listing, globs: Sequence[str], most_bytes: int) -> Chosen:
    """The files to fetch, at most `most_bytes` in all. Unmatched globs and files left out have warnings."""
    unmatched, wanted, warnings = set(globs), dict[str, int](), list[str]()
    left_out: dict[str, list[str]] = {}
    for name in sorted({*listing.files, *listing.unfetchable}):
        matching = {glob for glob in globs if matches(glob, name)}
        unmatched -= matching
        if not matching:
            continue
        if why := listing.unfetchable.get(name, "") or fetch_problem(name):
            left_out.setdefault(why, []).append(name)
        else:
            wanted[name] = listing.files[name]
    warnings += [f"--fetch {glob}: no file matches" for glob in globs if glob in unmatched]
    warnings += [f"not fetched: {_names_text(names)} {why}" for why, names in left_out.items()]
    if listing.has_line_breaks:
        warnings.append("not fetched: files with a line break in their names")
    if listing.truncated:
        warnings.append("the run's folder has too many files to list them all; some may be missing")
    chosen, above_limit = _within(wanted, most_bytes)
    if above_limit:
        size = format_size(sum(wanted[name] for name in above_limit))
        limit = f"{format_size(most_bytes)} or {MAX_FILES:,} files"
        warnings.append(f"not fetched: {_names_text(above_limit)} ({size}): above the limit of {limit}")
    return Chosen(chosen, tuple(dict.fromkeys(warnings)))


def _within(wanted: Mapping[str, int], most_bytes: int) -> tuple[dict[str, int], list[str]]:
    chosen: dict[str, int] = {}
    above_limit: list[str] = []
    total = 0
    for name, size in wanted.items():
        if total + size > most_bytes or len(chosen) >= MAX_FILES:
            above_limit.append(name)
        else:
            chosen[name] = size
            total += size
    return chosen, above_limit


def _names_text(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(_printable(name) for name in names[:_SHOWN]) + more


def _printable(name: str) -> str:
    shown = name if name.isprintable() else ascii(name)
    return shown if len(shown) <= 200 else f"{shown[:200]}..."
