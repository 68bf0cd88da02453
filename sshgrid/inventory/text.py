"""Reads the text of an inventory into a tree of keys and values with their places, or into problems with places.

Scalars follow YAML 1.2; the events come from PyYAML. Depth and number of values are limited while reading, without
recursion. These are problems: text that is not UTF-8, more than MAX_BYTES, MAX_DEPTH or MAX_VALUES, anchors, aliases,
tags, duplicate keys, tabs in the indentation, and several documents.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import yaml

MAX_BYTES = 1024 * 1024
MAX_DEPTH = 30
MAX_VALUES = 100_000  # 1,000 nodes with every key have 30,000
MAX_SHOWN = 50  # problems in one message

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BREAK = re.compile(r"\r\n|\n|\r")
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue002-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_TAB_INDENT = re.compile(r"^ *\t", re.MULTILINE)
_BARE_TEMPLATE = re.compile(r"[:,\[] *\{[a-z]+\}")
_SECRET = re.compile(r"((?:pass(?:word|wd|phrase)?|secret|token)\w*[\"']?[ \t]*:).*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One error. Line and column count from 1; 0 = the whole file."""

    line: int
    column: int
    message: str


@dataclass(slots=True)
class Scalar:
    """A scalar and its place in the text, as offsets."""

    start: int
    end: int
    text: str  # as written, without quotes
    value: object  # by the core schema of YAML 1.2


@dataclass(slots=True)
class Items:
    """A list and its place in the text."""

    start: int
    end: int
    flow: bool
    items: list[Tree] = field(default_factory=list)


@dataclass(slots=True)
class Pairs:
    """A mapping, in the order of the file. A key is its text: `no`, `017` and `1` are names too."""

    start: int
    end: int
    flow: bool
    items: list[tuple[Scalar, Tree]] = field(default_factory=list)

    def get(self, key: str) -> Tree | None:
        return next((value for name, value in self.items if name.text == key), None)


Tree: TypeAlias = Scalar | Items | Pairs


class Text:
    """Decoded text with the offsets of its lines. Offsets count characters."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.starts = [0, *(found.end() for found in _BREAK.finditer(text))]

    def place(self, offset: int) -> tuple[int, int]:
        """Line and column, from 1."""
        line = bisect.bisect_right(self.starts, offset)
        return line, offset - self.starts[line - 1] + 1

    def line(self, number: int) -> str:
        end = self.starts[number] if number < len(self.starts) else len(self.text)
        return self.text[self.starts[number - 1] : end].rstrip("\r\n")

    def problem(self, offset: int, message: str) -> Problem:
        return Problem(*self.place(offset), message)


# --- bytes to text ----------------------------------------------------------------------------------------------------


def decode(data: bytes) -> tuple[Text, list[Problem]]:
    """The text, and the problems that prevent parsing."""
    text = Text(data[:MAX_BYTES].decode("utf-8", "backslashreplace"))
    if len(data) > MAX_BYTES:
        return text, [Problem(0, 0, f"the file is larger than {MAX_BYTES // 1024} KiB")]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:4]:
        return Text(""), [Problem(1, 1, "the file is UTF-16 or UTF-32; save it as UTF-8")]
    if data.startswith(b"\xef\xbb\xbf"):
        return text, [Problem(1, 1, "the file begins with a byte order mark; save it as UTF-8 without BOM")]
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = len(data[: error.start].decode("utf-8"))
        return text, [text.problem(before, f"byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8")]
    return text, _forbidden_characters(text)


def _forbidden_characters(text: Text) -> list[Problem]:
    problems = [
        text.problem(found.start(), f"character U+{ord(found[0]):04X} is not allowed")
        for found in _FORBIDDEN.finditer(text.text)
    ]
    problems += [
        text.problem(text.text.index("\t", found.start()), "a tab in the indentation; YAML allows only spaces")
        for found in _TAB_INDENT.finditer(text.text)
    ]
    return problems


# --- text to tree -----------------------------------------------------------------------------------------------------


# In braces, YAML ends a plain word at the next brace, but users write `{workdir: /var/tmp/sshgrid-{uid}}`. Before
# parsing, the braces of a placeholder inside a word are replaced by characters that are forbidden in an inventory.
_INSIDE_WORD = re.compile(r"(?<=[A-Za-z0-9._/~-])\{(name|uid)\}")
_HIDDEN = "\ue000\\1\ue001"
_SHOWN = str.maketrans("\ue000\ue001", "{}")


class ReadingStopped(Exception):
    """Too much nesting, too many values, or a second document: reading stops."""


class Builder:
    """Builds a tree from the event stream, with a stack instead of recursion."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.root: Tree | None = None
        self.problems: list[Problem] = []
        self._open: list[Pairs | Items] = []
        self._keys: list[Scalar | None] = []  # for each open mapping: the key whose value comes next
        self._seen: list[dict[str, Scalar]] = []
        self._values = 0

    def feed(self, event: yaml.Event) -> None:
        assert event.start_mark is not None
        assert event.end_mark is not None
        offset, end = event.start_mark.index, event.end_mark.index
        if isinstance(event, yaml.NodeEvent):
            self._count(offset)
            self._check_decoration(event, offset)
        match event:
            case yaml.DocumentStartEvent() if self.root is not None:
                self._stop(offset, "a second document begins here; an inventory has only one")
            case yaml.AliasEvent():
                self._add(Scalar(offset, end, "", None))
            case yaml.ScalarEvent():
                value = event.value.translate(_SHOWN)
                self._add(Scalar(offset, end, value, resolve(value) if event.implicit[0] else value))
            case yaml.MappingStartEvent():
                self._enter(Pairs(offset, end, bool(event.flow_style)))
            case yaml.SequenceStartEvent():
                self._enter(Items(offset, end, bool(event.flow_style)))
            case yaml.CollectionEndEvent():
                self._leave(end)

    def _count(self, offset: int) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            self._stop(offset, f"more than {MAX_VALUES} values")
        if len(self._open) > MAX_DEPTH:
            self._stop(offset, f"more than {MAX_DEPTH} levels of nesting")

    def _stop(self, offset: int, message: str) -> None:
        self.problems.append(self.text.problem(offset, message))
        raise ReadingStopped

    def _check_decoration(self, event: yaml.NodeEvent, offset: int) -> None:
        if isinstance(event, yaml.AliasEvent):
            message = f"aliases are not allowed (*{event.anchor}); write common keys in `defaults` or in a group"
            self.problems.append(self.text.problem(offset, message))
        elif event.anchor is not None:
            message = f"anchors are not allowed (&{event.anchor}); write common keys in `defaults` or in a group"
            self.problems.append(self.text.problem(offset, message))
        if getattr(event, "tag", None) is not None:
            self.problems.append(self.text.problem(offset, "tags are not allowed; write text in quotes"))

    def _enter(self, collection: Pairs | Items) -> None:
        if self._is_key():
            self._stop(collection.start, "a key must be a name, not a list or a mapping")
        self._add(collection)
        self._open.append(collection)
        self._keys.append(None)
        self._seen.append({})

    def _leave(self, end: int) -> None:
        self._open.pop().end = end
        self._keys.pop()
        self._seen.pop()

    def _is_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1], Pairs) and self._keys[-1] is None

    def _add(self, tree: Tree) -> None:
        if not self._open:
            self.root = tree
        elif isinstance(parent := self._open[-1], Items):
            parent.items.append(tree)
        elif (key := self._keys[-1]) is None:
            assert isinstance(tree, Scalar)
            self._keys[-1] = tree
            self._check_duplicate(tree)
        else:
            parent.items.append((key, tree))
            self._keys[-1] = None

    def _check_duplicate(self, key: Scalar) -> None:
        first = self._seen[-1].setdefault(key.text, key)
        if first is not key:
            line = self.text.place(first.start)[0]
            message = f"duplicate key {key.text!r}: first on line {line}, again on line {self.text.place(key.start)[0]}"
            self.problems.append(self.text.problem(key.start, message))


def read(text: Text) -> tuple[Tree | None, list[Problem]]:
    """The tree, or None when reading stopped at an error; and all problems found."""
    builder = Builder(text)
    try:
        for event in yaml.parse(_INSIDE_WORD.sub(_HIDDEN, text.text), Loader=_LOADER):
            builder.feed(event)
    except ReadingStopped:
        return None, builder.problems
    except yaml.MarkedYAMLError as error:
        return None, [*builder.problems, _syntax_problem(text, error)]
    except yaml.YAMLError as error:
        return None, [*builder.problems, Problem(0, 0, f"invalid YAML: {error}")]
    return builder.root, builder.problems


def _syntax_problem(text: Text, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    context = f" {error.context}" if error.context else ""
    # A parser with its own limit of nesting reports that limit, not the first bracket.
    is_deep = "maximum nesting depth" in (error.problem or "")
    message = f"more than {MAX_DEPTH} levels of nesting" if is_deep else f"invalid YAML: {error.problem}{context}"
    if mark is None:
        return Problem(0, 0, message)
    line, column = text.place(min(mark.index, len(text.text)))
    hint = '; write a template in quotes: "{name}.lab"' if _BARE_TEMPLATE.search(text.line(line)) else ""
    return Problem(line, column, message + hint)


# --- scalars ----------------------------------------------------------------------------------------------------------

_INT = re.compile(r"[-+]?[0-9]{1,300}|0o[0-7]{1,300}|0x[0-9a-fA-F]{1,300}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]{1,300}|[0-9]{1,300}(?:\.[0-9]{0,300})?)(?:[eE][-+]?[0-9]{1,10})?")
_WORDS: Mapping[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{sign + word: float(sign + "inf") for sign in ("", "+", "-") for word in (".inf", ".Inf", ".INF")},
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
}


def resolve(text: str) -> object:
    """The value of a plain scalar by the YAML 1.2 core schema (section 10.3.2): `no`, `1:30` and dates are text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    return float(text) if _FLOAT.fullmatch(text) else text


_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./~+@%-]*|~/[A-Za-z0-9_./-]+")
_yaml_1_1_resolver = yaml.SafeLoader("")


def emit(value: object) -> str:
    """A value as one line of YAML, with braces for mappings. YAML 1.1 readers get the same value."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{emit(str(key))}: {emit(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ", ".join(emit(item) for item in value) + "]"
    return _emit_text(value) if isinstance(value, str) else json.dumps(value)


def _emit_text(text: str) -> str:
    yaml_1_1_tag = _yaml_1_1_resolver.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    plain = _PLAIN.fullmatch(text) and isinstance(resolve(text), str) and yaml_1_1_tag == "tag:yaml.org,2002:str"
    return text if plain else json.dumps(text, ensure_ascii=False)


# --- tree to plain values ---------------------------------------------------------------------------------------------

Path: TypeAlias = tuple[str | int, ...]


def plain(tree: Tree | None) -> object:
    """The tree as dicts, lists and scalars. MAX_DEPTH limits the recursion."""
    match tree:
        case Pairs():
            return {name: plain(value) for name, _, value in _named(tree)}
        case Items():
            return [plain(item) for item in tree.items]
        case Scalar():
            return tree.value
        case None:
            return None


def _named(pairs: Pairs) -> Iterator[tuple[str, Scalar, Tree]]:
    """The entries of a mapping. A duplicate key, an error, gets another name so that its value is checked too."""
    seen: set[str] = set()
    for number, (key, value) in enumerate(pairs.items):
        yield (f"{key.text}\0{number}" if key.text in seen else key.text), key, value
        seen.add(key.text)


@dataclass(frozen=True, slots=True)
class Position:
    """The offset of a value and of its key; both are equal for a value without a key."""

    key: int
    value: int


def places(tree: Tree, path: Path = (), key: int | None = None) -> Iterator[tuple[Path, Position]]:
    """Every path of the tree with its position."""
    start = tree.start if key is None or tree.end > tree.start else key
    yield path, Position(start if key is None else key, start)
    if isinstance(tree, Pairs):
        for name, key_scalar, value in _named(tree):
            yield from places(value, (*path, name), key_scalar.start)
    elif isinstance(tree, Items):
        for number, item in enumerate(tree.items):
            yield from places(item, (*path, number))


# --- problems to messages ---------------------------------------------------------------------------------------------


def render(problems: Sequence[Problem], path: str, text: Text) -> str:
    """The message for these problems in the order of the file: for each file:line:column, the line and a caret."""
    ordered = sorted(set(problems))
    blocks = [_block(problem, path, text) for problem in ordered[:MAX_SHOWN]]
    if len(ordered) > MAX_SHOWN:
        blocks.append(f"{path}: and {len(ordered) - MAX_SHOWN} more errors")
    return "\n".join(blocks)


def _block(problem: Problem, path: str, text: Text) -> str:
    if not problem.line:
        return f"{path}: {problem.message}"
    head = f"{path}:{problem.line}:{problem.column}: {problem.message}"
    line = text.line(problem.line)
    cut = max(0, problem.column - 80)  # a file may have very long lines
    shown = _SECRET.sub(r"\1 ***", line)[cut : cut + 160]
    shown = "".join(char if char == "\t" or char.isprintable() else "?" for char in shown)
    before = line[cut : problem.column - 1]
    caret = "".join("\t" if char == "\t" else " " for char in before) + "^"
    return f"{head}\n    {shown}\n    {caret}" if shown.strip() else head
