"""Edits inventory.yaml by command: spans of text are replaced, and the result is checked by parsing it.

Every byte outside the changed spans stays: comments, blank lines, order, quoting and line endings. An edit is refused
when its result is not exactly the old inventory with the change. Also refused are edits of an invalid file, of `nodes`
in braces, of one node of a range, and the removal of the last node.

The entry of a node is its lines with the comments at their ends, and the comment lines below that are indented deeper
than its name. Comment lines above it stay when it is removed, because they may be about several nodes.
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

EDIT_HINT = "sshgrid inventory edit"
MAX_TRIES = 5

Entry: TypeAlias = tuple[Scalar, Tree]
Splice: TypeAlias = tuple[int, int, str]  # start, end, new text

_BREAK = re.compile(r"\r\n|\n|\r")
_COLON = re.compile(r"[ \t]*:")
_COMMA = re.compile(r"[ \t]*,[ \t]*")
_COMMENT_LINE = re.compile(r"( *)#")
_BLANK_LINE = re.compile(r"[ \t]*(?=[\r\n])")
_ONLY_COMMENTS = re.compile(r"(?:[ \t]*(?:#[^\r\n]*)?(?:\r\n|\n|\r|$))*")
_PLAIN_RANGE = re.compile(r"[A-Za-z][A-Za-z0-9._-]*(?:\[[0-9,-]+\][A-Za-z0-9._-]*)+")


# --- the edits --------------------------------------------------------------------------------------------------------


def add_node(text: str, name: str, fields: Mapping[str, object]) -> str:
    """The text with a new node or range after the last one. `fields` are keys and values as in the file."""
    return add_nodes(text, {name: fields})


def add_nodes(text: str, nodes: Mapping[str, Mapping[str, object]]) -> str:
    """As add_node, for several nodes."""
    values = {name: {key: _as_list(value) for key, value in fields.items()} for name, fields in nodes.items()}
    lines = [
        f"{name if _PLAIN_RANGE.fullmatch(name) else emit(name)}: {emit(fields)}" for name, fields in values.items()
    ]
    if _ONLY_COMMENTS.fullmatch(text):
        file, changed = None, _first_nodes(text, lines)
    else:
        file = _File(text)
        file.check_new(nodes)
        key, _ = last = file.nodes.items[-1]
        at = file.after(last)
        indent = " " * file.column(key.start)
        changed = file.changed([(at, at, "".join(indent + line + file.newline for line in lines))])
    before: dict[str, Any] = file.values() if file else {"version": 1, "nodes": {}}
    return _checked(changed, {**before, "nodes": {**before["nodes"], **values}})


def new_lines(before: str, after: str) -> list[str]:
    """The lines that an edit has inserted."""
    old, new = before.splitlines(), after.splitlines()
    same = next((at for at, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), len(old))
    return new[same : same + len(new) - len(old)]


def remove_nodes(text: str, names: Collection[str]) -> str:
    """The text without these nodes. A range is removed by its pattern. Comments above the nodes stay."""
    file = _File(text)
    entries = file.entries(names)
    if len(entries) == len(file.nodes.items):
        raise UsageError("the last node cannot be removed: an inventory needs at least one", EDIT_HINT)
    removed = {key.text for key, _ in entries}
    expected = file.values()
    expected["nodes"] = {name: value for name, value in expected["nodes"].items() if name not in removed}
    return _checked(
        file.changed([(file.line_start(key), file.after((key, value)), "") for key, value in entries]), expected
    )


def set_drained(text: str, names: Collection[str], drained: bool) -> str:
    """The text with or without `drained: true` at these nodes. A range is changed by its pattern."""
    file = _File(text)
    entries = [(key, value) for key, value in file.entries(names) if _is_drained(value) != drained]
    if not entries:
        return text
    expected = file.values()
    for key, _ in entries:
        rest = {name: value for name, value in expected["nodes"][key.text].items() if name != "drained"}
        expected["nodes"][key.text] = {**rest, "drained": True} if drained else rest
    splice = file.drained if drained else file.resumed
    return _checked(file.changed([splice(key, value) for key, value in entries]), expected)


def _is_drained(value: Tree) -> bool:
    return isinstance(value, Pairs) and plain(value.get("drained")) is True


def _as_list(value: object) -> object:
    if isinstance(value, Collection) and not isinstance(value, str | bytes):
        return sorted(value) if isinstance(value, set | frozenset) else list(value)
    return value


def _first_nodes(text: str, lines: list[str]) -> str:
    found = _BREAK.search(text)
    newline = found[0] if found else "\n"
    before = text if not text or text.endswith(newline) else text + newline
    return newline.join([before + "version: 1", "nodes:", *(f"  {line}" for line in lines), ""])


# --- the check of an edit ---------------------------------------------------------------------------------------------


def _checked(changed: str, expected: Mapping[str, Any]) -> str:
    """Return `changed` if it is a valid inventory with exactly the values `expected`. Raises UsageError otherwise."""
    try:
        tree, _ = inventory.read(changed.encode(), "inventory.yaml")
    except InventoryError as error:
        raise UsageError(f"the change would make the file invalid:\n{error.message}", EDIT_HINT) from error
    if _comparable(plain(tree)) != _comparable(expected):
        raise UsageError("the layout of the file does not allow this change by command", EDIT_HINT)
    return changed


def _values(tree: Tree) -> dict[str, Any]:
    values = plain(tree)
    assert isinstance(values, dict)
    return {**values, "nodes": {name: value or {} for name, value in values["nodes"].items()}}


def _comparable(document: object) -> str:
    """A text that is equal for documents with equal values in the same order. `drained: false` counts as absent."""
    assert isinstance(document, Mapping)
    nodes = [
        (name, sorted((key, value) for key, value in (fields or {}).items() if (key, value) != ("drained", False)))
        for name, fields in document["nodes"].items()
    ]
    return json.dumps([list({**document, "nodes": nodes}.items())])


# --- places in the text -----------------------------------------------------------------------------------------------


class _File:
    """A valid inventory and the places of its nodes. A missing newline at the end is added during the edit."""

    def __init__(self, text: str) -> None:
        found = _BREAK.search(text)
        self.newline = found[0] if found else "\n"
        self.added_newline = "" if text.endswith(("\n", "\r")) else self.newline
        self.text = text + self.added_newline
        self.tree, _ = inventory.read(self.text.encode(), "inventory.yaml")
        nodes = self.tree.get("nodes") if isinstance(self.tree, Pairs) else None
        assert isinstance(nodes, Pairs)
        if nodes.flow:
            raise UsageError(
                "`nodes` is written in braces, which a command cannot edit; write one node on each line", EDIT_HINT
            )
        self.nodes = nodes

    def values(self) -> dict[str, Any]:
        return _values(self.tree)

    def changed(self, splices: list[Splice]) -> str:
        """The text after all splices. They are applied from the last to the first, so that the places stay valid."""
        text = self.text
        for start, end, new_text in sorted(splices, reverse=True):
            text = text[:start] + new_text + text[end:]
        return text.removesuffix(self.added_newline)

    # entries

    def check_new(self, names: Iterable[str]) -> None:
        """Raise UsageError when one of these nodes is already in the file."""
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
        """The entries of these names or ranges. Raises NoSuchNode, or UsageError for a part of a range."""
        wanted = {node for name in names for node in expand(name)}
        found = [(entry, set(expand(entry[0].text))) for entry in self.nodes.items]
        known = {node for _, members in found for node in members}
        for name in sorted(wanted - known):
            raise NoSuchNode(f"no node {name!r} in the inventory{did_you_mean(name, known)}", "sshgrid nodes")
        for (key, _), members in found:
            self._check_whole_range(key.text, members & wanted, members)
        return [entry for entry, members in found if members & wanted]

    @staticmethod
    def _check_whole_range(pattern: str, selected: set[str], members: set[str]) -> None:
        if selected and selected != members:
            message = f"{min(selected)!r} is a part of the range {pattern!r}, which is one entry of the file"
            raise UsageError(message, f"use the whole range ('{pattern}'), or split it: {EDIT_HINT}")

    # places

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
            raise UsageError(f"the entry {key.text!r} does not start on a new line", EDIT_HINT)
        return start

    def _content_end(self, key: Scalar, value: Tree) -> int:
        """The end of the last value of an entry. For YAML, a block ends only where the next one begins."""
        if isinstance(value, Scalar):
            return value.end if value.end > value.start else key.end
        if value.flow:
            return value.end
        if isinstance(value, Pairs):
            return self._content_end(*value.items[-1])
        return self._content_end(key, value.items[-1])

    def after_content(self, entry: Entry) -> int:
        """The start of the line after the last value of an entry."""
        end = self._content_end(*entry)
        return end if end == self._start_of_line(end) else self._next_line(end)

    def after(self, entry: Entry) -> int:
        """As after_content, but also after the comment lines that are indented deeper than the entry's key."""
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
        """The splice that adds `drained: true` to an entry."""
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

    def resumed(self, _: Scalar, value: Tree) -> Splice:
        """The splice that removes `drained: true` from an entry."""
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
        """A splice that removes a span, or its whole line when nothing else is on it."""
        line = self._start_of_line(start)
        alone = not self.text[line:start].strip() and _BLANK_LINE.match(self.text, end)
        return (line, self._next_line(end), "") if alone else (start, end, "")


# --- the file ---------------------------------------------------------------------------------------------------------


def edit_file(path: Path, change: Callable[[str], str], create: bool = False) -> None:
    """Apply `change` to the file's text; the new file is durable on return. Edits by command wait for each other.

    A symbolic link stays and its target is changed. Mode and owner stay. With `create`, a missing file counts as empty.
    """
    target = Path(os.path.realpath(path))
    with _locked(target.parent):
        for _ in range(MAX_TRIES):
            if _try_edit(path, target, change, create):
                return
    raise UsageError(f"{path}: another program keeps changing the file", "close the editor and try again")


def replace(path: Path, before: bytes | None, after: bytes) -> None:
    """Replace the content `before` (None = no file) by `after`, durably. Raises UsageError if the file has changed."""
    inventory.parse(after, str(path))
    target = Path(os.path.realpath(path))
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(target.parent):
        found = _identity(target)
        if (None if found is None else inventory.read_file(path)) != before or not _write(path, target, after, found):
            raise UsageError(f"{path}: the file was changed meanwhile; nothing was written", EDIT_HINT)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on the folder. It needs no lock file, and ends with the process."""
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


def _try_edit(path: Path, target: Path, change: Callable[[str], str], create: bool) -> bool:
    """Try the edit once. False when an editor, which does not use the lock, changed the file meanwhile."""
    before = _identity(target)
    data = b"" if before is None and create else inventory.read_file(path)
    if data:
        inventory.read(data, str(path))  # errors of the old file name its real path
    text = data.decode("utf-8")
    changed = change(text)
    if changed == text:
        return True
    inventory.parse(changed.encode(), str(path))
    return _write(path, target, changed.encode(), before)


def _write(path: Path, target: Path, data: bytes, before: os.stat_result | None) -> bool:
    """Write the file. False when an editor changed it meanwhile."""
    if before is not None and not os.access(target, os.W_OK):
        raise UsageError(f"{path}: the file is read-only", f"chmod u+w {path}")
    try:
        return _replace_file(target, data, before)
    except OSError as error:
        raise UsageError(f"{path}: cannot write: {error.strerror}") from error


def _identity(target: Path) -> os.stat_result | None:
    try:
        return target.stat()
    except FileNotFoundError:
        return None


def _is_same_file(one: os.stat_result | None, other: os.stat_result | None) -> bool:
    if one is None or other is None:
        return one is other
    return (one.st_ino, one.st_size, one.st_mtime_ns) == (other.st_ino, other.st_size, other.st_mtime_ns)


def _replace_file(target: Path, data: bytes, before: os.stat_result | None) -> bool:
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            _inherit(file.fileno(), before)
            os.fsync(file.fileno())
        if not _is_same_file(before, _identity(target)):
            return False
        Path(name).replace(target)
        return True
    finally:
        Path(name).unlink(missing_ok=True)


def _inherit(descriptor: int, before: os.stat_result | None) -> None:
    if before is not None:
        with suppress(PermissionError):  # without the right to keep the owner, the file becomes ours
            os.fchown(descriptor, before.st_uid, before.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(before.st_mode) if before else 0o644)
