"""Edits of inventory.yaml by command: text spans are cut and inserted, and the result is proved by parsing it again.

Every byte outside the changed span stays: comments, blank lines, order, quoting, line endings. An edit whose result is
not exactly the old inventory plus the change is refused, never guessed; so are `nodes` written in braces, one member of
a range, the last node, and files that are not valid to begin with.

What belongs to a node's entry and goes with it: its lines, a comment at the end of such a line, and comment lines below
that are indented deeper than its name. A comment above it stays: whether it speaks of this node or of all that follow,
only its author knows.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from sshgrid import inventory
from sshgrid.errors import InventoryError, NoSuchNode, UsageError
from sshgrid.inventory.text import Pairs, Scalar, Tree, emit, plain
from sshgrid.notation.selectors import did_you_mean, expand

BY_HAND = "sshgrid inventory edit"
TRIES = 5

Entry: TypeAlias = tuple[Scalar, Tree]
Splice: TypeAlias = tuple[int, int, str]  # from, to, what stands there instead

_BREAK = re.compile(r"\r\n|\n|\r")
_COLON = re.compile(r"[ \t]*:")
_COMMA = re.compile(r"[ \t]*,[ \t]*")
_COMMENT_LINE = re.compile(r"( *)#")
_BLANK_LINE = re.compile(r"[ \t]*(?=[\r\n])")
_NOTHING_SAID = re.compile(r"(?:[ \t]*(?:#[^\r\n]*)?(?:\r\n|\n|\r|$))*")
_PLAIN_RANGE = re.compile(r"[A-Za-z][A-Za-z0-9._-]*(?:\[[0-9,-]+\][A-Za-z0-9._-]*)+")


# --- what the commands ask for ----------------------------------------------------------------------------------------


def add_node(text: str, name: str, fields: Mapping[str, object]) -> str:
    """The text with one more node, or range, after the last one. `fields` are keys and values as in the file."""
    return add_nodes(text, {name: fields})


def add_nodes(text: str, nodes: Mapping[str, Mapping[str, object]]) -> str:
    """As add_node, for all of them at once."""
    values = {name: {key: _listed(value) for key, value in fields.items()} for name, fields in nodes.items()}
    lines = [
        f"{name if _PLAIN_RANGE.fullmatch(name) else emit(name)}: {emit(fields)}" for name, fields in values.items()
    ]
    if _NOTHING_SAID.fullmatch(text):
        file, changed = None, _first_nodes(text, lines)
    else:
        file = _File(text)
        file.refuse_known(nodes)
        key, _ = last = file.nodes.items[-1]
        at = file.after(last)
        indent = " " * file.column(key.start)
        changed = file.changed([(at, at, "".join(indent + line + file.newline for line in lines))])
    before: dict[str, Any] = file.values() if file else {"version": 1, "nodes": {}}
    return _proved(changed, {**before, "nodes": {**before["nodes"], **values}})


def new_lines(before: str, after: str) -> list[str]:
    """The lines that one edit has put in."""
    old, new = before.splitlines(), after.splitlines()
    same = next((at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), len(old))
    return new[same : same + len(new) - len(old)]


def remove_nodes(text: str, names: Collection[str]) -> str:
    """The text without these nodes; a range is removed by its pattern. The comments above them stay."""
    file = _File(text)
    entries = file.entries(names)
    if len(entries) == len(file.nodes.items):
        raise UsageError("an inventory needs a node, and this would remove the last one", BY_HAND)
    gone = {key.text for key, _ in entries}
    expected = file.values()
    expected["nodes"] = {name: value for name, value in expected["nodes"].items() if name not in gone}
    return _proved(
        file.changed([(file.line_start(key), file.after((key, value)), "") for key, value in entries]), expected
    )


def set_drained(text: str, names: Collection[str], drained: bool) -> str:
    """The text with `drained: true` at these nodes, or without; a range only as a whole."""
    file = _File(text)
    entries = [(key, value) for key, value in file.entries(names) if _is_drained(value) != drained]
    if not entries:
        return text
    expected = file.values()
    for key, _ in entries:
        rest = {name: value for name, value in expected["nodes"][key.text].items() if name != "drained"}
        expected["nodes"][key.text] = {**rest, "drained": True} if drained else rest
    splice = file.drained if drained else file.not_drained
    return _proved(file.changed([splice(key, value) for key, value in entries]), expected)


def _is_drained(value: Tree) -> bool:
    return isinstance(value, Pairs) and plain(value.get("drained")) is True


def _listed(value: object) -> object:
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    return value


def _first_nodes(text: str, lines: list[str]) -> str:
    found = _BREAK.search(text)
    newline = found[0] if found else "\n"
    before = text if not text or text.endswith(newline) else text + newline
    return newline.join([before + "version: 1", "nodes:", *(f"  {line}" for line in lines), ""])


# --- the proof --------------------------------------------------------------------------------------------------------


def _proved(changed: str, expected: Mapping[str, Any]) -> str:
    """`changed`, if it is a valid inventory that says `expected` and nothing else."""
    try:
        tree, _ = inventory.read(changed.encode(), "inventory.yaml")
    except InventoryError as error:
        raise UsageError(f"the file would not be valid with this change:\n{error.message}", BY_HAND) from error
    if _comparable(plain(tree)) != _comparable(expected):
        raise UsageError("the file is written in a way that a command cannot change without harm", BY_HAND)
    return changed


def _values(tree: Tree) -> dict[str, Any]:
    values = plain(tree)
    assert isinstance(values, dict)
    return {**values, "nodes": {name: value or {} for name, value in values["nodes"].items()}}


def _comparable(document: object) -> str:
    """Text that is the same when two documents say the same in the same order; `drained: false` says nothing."""
    assert isinstance(document, Mapping)
    nodes = [
        (name, sorted((key, value) for key, value in (fields or {}).items() if (key, value) != ("drained", False)))
        for name, fields in document["nodes"].items()
    ]
    return json.dumps([list({**document, "nodes": nodes}.items())])


# --- places in the text -----------------------------------------------------------------------------------------------


class _File:
    """A valid inventory and the places of its nodes. Works on whole lines: a missing last newline is lent meanwhile."""

    def __init__(self, text: str) -> None:
        found = _BREAK.search(text)
        self.newline = found[0] if found else "\n"
        self.lent = "" if text.endswith(("\n", "\r")) else self.newline
        self.text = text + self.lent
        self.tree, _ = inventory.read(self.text.encode(), "inventory.yaml")
        nodes = self.tree.get("nodes") if isinstance(self.tree, Pairs) else None
        assert isinstance(nodes, Pairs)
        if nodes.flow:
            raise UsageError("`nodes` is written in braces, where a command would harm the layout", BY_HAND)
        self.nodes = nodes

    def values(self) -> dict[str, Any]:
        return _values(self.tree)

    def changed(self, splices: list[Splice]) -> str:
        """All splices at once, from the last to the first so that no place moves."""
        text = self.text
        for start, end, words in sorted(splices, reverse=True):
            text = text[:start] + words + text[end:]
        return text.removesuffix(self.lent)

    # which entries

    def refuse_known(self, names: Iterable[str]) -> None:
        wanted = {node for name in names for node in expand(name)}
        twice = {key.text: sorted(wanted.intersection(expand(key.text))) for key, _ in self.nodes.items}
        known = [name for members in twice.values() for name in members]
        if not known:
            return
        first = next(key for key, members in twice.items() if members)
        if len(known) == 1:
            raise UsageError(f"the node {known[0]!r} is already in the inventory", f"sshgrid node rm {first}")
        raise UsageError(f"these nodes are already in the inventory: {', '.join(known)}", "sshgrid inventory show")

    def entries(self, names: Collection[str]) -> list[Entry]:
        """The entries that these names or ranges are, as wholes."""
        wanted = {node for name in names for node in expand(name)}
        found = [(entry, set(expand(entry[0].text))) for entry in self.nodes.items]
        known = {node for _, members in found for node in members}
        for name in sorted(wanted - known):
            raise NoSuchNode(f"no node {name!r} in the inventory{did_you_mean(name, known)}", "sshgrid nodes")
        for (key, _), members in found:
            self._refuse_part(key.text, members & wanted, members)
        return [entry for entry, members in found if members & wanted]

    @staticmethod
    def _refuse_part(pattern: str, hit: set[str], members: set[str]) -> None:
        if hit and hit != members:
            one = min(hit)
            message = f"{one!r} is one of the range {pattern!r}, which the file describes in one entry"
            raise UsageError(message, f"name the whole range ('{pattern}'), or split it: {BY_HAND}")

    # where

    def column(self, offset: int) -> int:
        return offset - self._start_of_line(offset)

    def _start_of_line(self, offset: int) -> int:
        return max(self.text.rfind("\n", 0, offset), self.text.rfind("\r", 0, offset)) + 1

    def _next_line(self, offset: int) -> int:
        found = _BREAK.search(self.text, offset)
        return found.end() if found else len(self.text)

    def line_start(self, key: Scalar) -> int:
        start = self._start_of_line(key.start)
        if self.text[start : key.start].strip(" "):
            raise UsageError(f"the entry {key.text!r} does not begin on a line of its own", BY_HAND)
        return start

    def _content_end(self, key: Scalar, value: Tree) -> int:
        """Where the last word of an entry ends; the end of a block as YAML has it is where the next one begins."""
        if isinstance(value, Scalar):
            return value.end if value.end > value.start else key.end
        if value.flow:
            return value.end
        if isinstance(value, Pairs):
            return self._content_end(*value.items[-1])
        return self._content_end(key, value.items[-1])

    def after_content(self, entry: Entry) -> int:
        """The start of the line after an entry's last word."""
        end = self._content_end(*entry)
        return end if end == self._start_of_line(end) else self._next_line(end)

    def after(self, entry: Entry) -> int:
        """As after_content, but after the comment lines, too, that are indented deeper than the entry's key."""
        column = self.column(entry[0].start)
        end = position = self.after_content(entry)
        while position < len(self.text):
            following = self._next_line(position)
            comment = _COMMENT_LINE.match(self.text, position)
            if comment and len(comment[1]) > column:
                end = following
            elif not _BLANK_LINE.match(self.text, position):
                break
            position = following
        return end

    # drained: true

    def drained(self, key: Scalar, value: Tree) -> Splice:
        if isinstance(value, Pairs):
            return self._drained_pair(value)
        if self.text[value.start : value.end].strip():
            return value.start, value.end, "{drained: true}"  # `alpha: ~`
        colon = _COLON.match(self.text, key.end)
        at = colon.end() if colon else key.end
        return at, at, " {drained: true}"

    def _drained_pair(self, fields: Pairs) -> Splice:
        if (old := fields.get("drained")) is not None:
            return old.start, old.end, "true"
        if not fields.items:
            return fields.start + 1, fields.start + 1, "drained: true"
        if fields.flow:
            at = self._content_end(*fields.items[-1])
            return at, at, ", drained: true"
        at = self.after_content(fields.items[-1])
        return at, at, " " * self.column(fields.items[0][0].start) + "drained: true" + self.newline

    def not_drained(self, _: Scalar, value: Tree) -> Splice:
        assert isinstance(value, Pairs)
        number = next(number for number, (key, _) in enumerate(value.items) if key.text == "drained")
        pair = value.items[number]
        if not value.flow:
            return self.line_start(pair[0]), self.after_content(pair), ""
        start, end = pair[0].start, self._content_end(*pair)
        before = self._content_end(*value.items[number - 1]) if number else start
        if number and _COMMA.fullmatch(self.text, before, start):
            return before, end, ""
        comma = _COMMA.match(self.text, end)
        return self._whole_line(start, comma.end() if comma else end)

    def _whole_line(self, start: int, end: int) -> Splice:
        """A span, widened to its line when nothing else stands there."""
        line = self._start_of_line(start)
        alone = not self.text[line:start].strip() and _BLANK_LINE.match(self.text, end)
        return (line, self._next_line(end), "") if alone else (start, end, "")


# --- the file ---------------------------------------------------------------------------------------------------------


def edit_file(path: Path, change: Callable[[str], str], create: bool = False) -> None:
    """Apply `change` to the file's text; on return the new file is durable. Edits by command wait for one another.

    A symbolic link stays and its target changes; mode and owner stay. With `create`, a missing file counts as empty.
    """
    target = Path(os.path.realpath(path))
    with _locked(target.parent):
        for _ in range(TRIES):
            if _edited(path, target, change, create):
                return
    raise UsageError(f"{path}: something else keeps changing the file", "close the editor and try again")


def replace(path: Path, before: bytes | None, after: bytes) -> None:
    """Put `after` in the place of `before` (None = no file), durably. UsageError when it is not there any more."""
    inventory.parse(after, str(path))
    target = Path(os.path.realpath(path))
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(target.parent):
        found = _identity(target)
        if (None if found is None else inventory.read_file(path)) != before or not _written(path, target, after, found):
            raise UsageError(f"{path}: the file was changed meanwhile, and is left as it is now", BY_HAND)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """An exclusive lock on the folder: it leaves nothing behind, and a process that dies lets go of it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InventoryError(f"{folder}: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _edited(path: Path, target: Path, change: Callable[[str], str], create: bool) -> bool:
    """One try; False when an editor, which knows no lock, changed the file meanwhile."""
    before = _identity(target)
    data = b"" if before is None and create else inventory.read_file(path)
    if data:
        inventory.read(data, str(path))  # complain with the right path, before the change can
    text = data.decode("utf-8")
    changed = change(text)
    if changed == text:
        return True
    inventory.parse(changed.encode(), str(path))
    return _written(path, target, changed.encode(), before)


def _written(path: Path, target: Path, data: bytes, before: os.stat_result | None) -> bool:
    """False when an editor was quicker."""
    if before is not None and not os.access(target, os.W_OK):
        raise UsageError(f"{path}: the file is read-only", f"chmod u+w {path}")
    try:
        return _replaced(target, data, before)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def _identity(target: Path) -> os.stat_result | None:
    try:
        return target.stat()
    except FileNotFoundError:
        return None


def _same(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.st_ino, one.st_size, one.st_mtime_ns) == (other.st_ino, other.st_size, other.st_mtime_ns)


def _replaced(target: Path, data: bytes, before: os.stat_result | None) -> bool:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            _inherit(file.fileno(), before)
            os.fsync(file.fileno())
        if not _same(before, _identity(target)):
            return False
        Path(name).replace(target)
        return True
    finally:
        Path(name).unlink(missing_ok=True)


def _inherit(descriptor: int, before: os.stat_result | None) -> None:
    if before is not None:
        with suppress(PermissionError):  # another's file in our folder: it becomes ours, with the same mode
            os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode) if before else 0o644)
