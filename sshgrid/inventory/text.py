"""The text of an inventory: bytes -> a tree in which every key and value knows its place, or problems with theirs.

YAML 1.2 core scalars on PyYAML's event stream, which is iterative: depth and number of values are bounded while
reading, before anything is built. Refuses what is not plain UTF-8, more than MAX_BYTES, MAX_DEPTH or MAX_VALUES,
anchors, aliases, tags, duplicate keys, tabs as indentation and several documents.
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
MAX_VALUES = 100_000  # a thousand nodes with every key set are 30,000
MAX_SHOWN = 50

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_BREAK = re.compile(r"\r\n|\n|\r")
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue002-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_TAB_INDENT = re.compile(r"^ *\t", re.MULTILINE)
_BARE_TEMPLATE = re.compile(r"[:,\[] *\{[a-z]+\}")
_SECRET = re.compile(r"((?:pass(?:word|wd|phrase)?|secret|token)\w*[\"']?[ \t]*:).*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing that is wrong; line and column count from 1, 0 = the file as a whole."""

    line: int
    column: int
    message: str


@dataclass(slots=True)
class Scalar:
    """A single value and its place in the text."""

    start: int
    end: int
    text: str  # as written, without quotes
    value: object  # what YAML 1.2 core makes of it


@dataclass(slots=True)
class Items:
    """A list and its place in the text."""

    start: int
    end: int
    flow: bool
    items: list[Tree] = field(default_factory=list)


@dataclass(slots=True)
class Pairs:
    """A mapping, in the order of the file. A key is its text: `no`, `017` and `1` are names like any other."""

    start: int
    end: int
    flow: bool
    items: list[tuple[Scalar, Tree]] = field(default_factory=list)

    def get(self, key: str) -> Tree | None:
        return next((value for name, value in self.items if name.text == key), None)


Tree: TypeAlias = Scalar | Items | Pairs


class Text:
    """Decoded text with the places of its lines; offsets are characters."""

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
    """The text, and what makes it unfit to be parsed at all."""
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
    return text, _unfit_characters(text)


def _unfit_characters(text: Text) -> list[Problem]:
    problems = [
        text.problem(found.start(), f"character U+{ord(found[0]):04X} is not allowed")
        for found in _FORBIDDEN.finditer(text.text)
    ]
    problems += [
        text.problem(text.text.index("\t", found.start()), "a tab in the indentation; YAML wants spaces")
        for found in _TAB_INDENT.finditer(text.text)
    ]
    return problems


# --- text to tree -----------------------------------------------------------------------------------------------------


# In braces, YAML ends a plain word at the next brace, but `{workdir: /var/tmp/sshgrid-{uid}}` is what people write. The
# braces of a placeholder inside a word are exchanged, for the parser alone, for characters no inventory may hold.
_INSIDE_WORD = re.compile(r"(?<=[A-Za-z0-9._/~-])\{(name|uid)\}")
_HIDDEN = "\ue000\\1\ue001"
_SHOWN = str.maketrans("\ue000\ue001", "{}")


class TooMuch(Exception):
    """Too deep, too many values, a second document: reading stops here."""


class Builder:
    """One tree out of the event stream, with a stack of its own: nothing recurses."""

    def __init__(self, text: Text) -> None:
        self.text = text
        self.root: Tree | None = None
        self.problems: list[Problem] = []
        self._open: list[Pairs | Items] = []
        self._keys: list[Scalar | None] = []  # for each open mapping: the key that waits for its value
        self._seen: list[dict[str, Scalar]] = []
        self._values = 0

    def feed(self, event: yaml.Event) -> None:
        assert event.start_mark is not None
        assert event.end_mark is not None
        offset, end = event.start_mark.index, event.end_mark.index
        if isinstance(event, yaml.NodeEvent):
            self._count(offset)
            self._refuse_decoration(event, offset)
        match event:
            case yaml.DocumentStartEvent() if self.root is not None:
                self._stop(offset, "a second document begins here; an inventory is one document")
            case yaml.AliasEvent():
                self._place(Scalar(offset, end, "", None))
            case yaml.ScalarEvent():
                words = event.value.translate(_SHOWN)
                self._place(Scalar(offset, end, words, resolve(words) if event.implicit[0] else words))
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
            self._stop(offset, f"nested more than {MAX_DEPTH} deep")

    def _stop(self, offset: int, message: str) -> None:
        self.problems.append(self.text.problem(offset, message))
        raise TooMuch

    def _refuse_decoration(self, event: yaml.NodeEvent, offset: int) -> None:
        if isinstance(event, yaml.AliasEvent):
            message = f"aliases are not allowed (*{event.anchor}); what nodes share goes into `defaults`"
            self.problems.append(self.text.problem(offset, message))
        elif event.anchor is not None:
            message = f"anchors are not allowed (&{event.anchor}); what nodes share goes into `defaults`"
            self.problems.append(self.text.problem(offset, message))
        if getattr(event, "tag", None) is not None:
            self.problems.append(self.text.problem(offset, "tags are not allowed; put quotes around what is text"))

    def _enter(self, collection: Pairs | Items) -> None:
        if self._is_key():
            self._stop(collection.start, "a key must be a word, not a list or a mapping")
        self._place(collection)
        self._open.append(collection)
        self._keys.append(None)
        self._seen.append({})

    def _leave(self, end: int) -> None:
        self._open.pop().end = end
        self._keys.pop()
        self._seen.pop()

    def _is_key(self) -> bool:
        return bool(self._open) and isinstance(self._open[-1], Pairs) and self._keys[-1] is None

    def _place(self, tree: Tree) -> None:
        if not self._open:
            self.root = tree
        elif isinstance(parent := self._open[-1], Items):
            parent.items.append(tree)
        elif (key := self._keys[-1]) is None:
            assert isinstance(tree, Scalar)
            self._keys[-1] = tree
            self._refuse_twice(tree)
        else:
            parent.items.append((key, tree))
            self._keys[-1] = None

    def _refuse_twice(self, key: Scalar) -> None:
        first = self._seen[-1].setdefault(key.text, key)
        if first is not key:
            line = self.text.place(first.start)[0]
            message = f"duplicate key {key.text!r}: first on line {line}, again on line {self.text.place(key.start)[0]}"
            self.problems.append(self.text.problem(key.start, message))


def read(text: Text) -> tuple[Tree | None, list[Problem]]:
    """The tree, or None when the text ends being YAML somewhere; with everything that was wrong on the way."""
    builder = Builder(text)
    try:
        for event in yaml.parse(_INSIDE_WORD.sub(_HIDDEN, text.text), Loader=_LOADER):
            builder.feed(event)
    except TooMuch:
        return None, builder.problems
    except yaml.MarkedYAMLError as error:
        return None, [*builder.problems, _syntax_problem(text, error)]
    except yaml.YAMLError as error:
        return None, [*builder.problems, Problem(0, 0, f"not YAML: {error}")]
    return builder.root, builder.problems


def _syntax_problem(text: Text, error: yaml.MarkedYAMLError) -> Problem:
    mark = error.problem_mark or error.context_mark
    context = f" {error.context}" if error.context else ""
    # A parser that has a limit of its own reads on to it before it tells of the first bracket.
    is_deep = "maximum nesting depth" in (error.problem or "")
    message = f"nested more than {MAX_DEPTH} deep" if is_deep else f"not YAML: {error.problem}{context}"
    if mark is None:
        return Problem(0, 0, message)
    line, column = text.place(min(mark.index, len(text.text)))
    hint = '; put a template in quotes: "{name}.lab"' if _BARE_TEMPLATE.search(text.line(line)) else ""
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
    """What a plain scalar means by the YAML 1.2 core schema (section 10.3.2): `no`, `1:30` and dates are text."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    return float(text) if _FLOAT.fullmatch(text) else text


_PLAIN = re.compile(r"[A-Za-z0-9_/][A-Za-z0-9_./~+@%-]*|~/[A-Za-z0-9_./-]+")
_old_resolver = yaml.SafeLoader("")


def emit(value: object) -> str:
    """A value as one line of YAML, in braces where it nests. Read back by us and by a YAML 1.1 reader alike."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{emit(str(key))}: {emit(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Iterable) and not isinstance(value, str):
        return "[" + ", ".join(emit(item) for item in value) + "]"
    return _emit_text(value) if isinstance(value, str) else json.dumps(value)


def _emit_text(text: str) -> str:
    old_tag = _old_resolver.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    plain = _PLAIN.fullmatch(text) and isinstance(resolve(text), str) and old_tag == "tag:yaml.org,2002:str"
    return text if plain else json.dumps(text, ensure_ascii=False)


# --- tree to plain values ---------------------------------------------------------------------------------------------

Path: TypeAlias = tuple[str | int, ...]


def plain(tree: Tree | None) -> object:
    """Dicts, lists and scalars; recursion is bounded by MAX_DEPTH."""
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
    """The entries; a second one of the same name, which is refused anyway, gets another so that its errors are seen."""
    seen: set[str] = set()
    for number, (key, value) in enumerate(pairs.items):
        yield (f"{key.text}\0{number}" if key.text in seen else key.text), key, value
        seen.add(key.text)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a value stands; for an entry of a mapping, where its key stands too."""

    key: int
    value: int


def places(tree: Tree, path: Path = (), key: int | None = None) -> Iterator[tuple[Path, Position]]:
    """Every path of the tree with its place."""
    start = tree.start if key is None or tree.end > tree.start else key
    yield path, Position(start if key is None else key, start)
    if isinstance(tree, Pairs):
        for name, key_scalar, value in _named(tree):
            yield from places(value, (*path, name), key_scalar.start)
    elif isinstance(tree, Items):
        for number, item in enumerate(tree.items):
            yield from places(item, (*path, number))


# --- problems to words ------------------------------------------------------------------------------------------------


def render(problems: Sequence[Problem], path: str, text: Text) -> str:
    """All problems in the order of the file, each as file:line:column, the line and a caret."""
    ordered = sorted(set(problems))
    blocks = [_block(problem, path, text) for problem in ordered[:MAX_SHOWN]]
    if len(ordered) > MAX_SHOWN:
        blocks.append(f"{path}: and {len(ordered) - MAX_SHOWN} more")
    return "\n".join(blocks)


def _block(problem: Problem, path: str, text: Text) -> str:
    if not problem.line:
        return f"{path}: {problem.message}"
    head = f"{path}:{problem.line}:{problem.column}: {problem.message}"
    line = text.line(problem.line)
    cut = max(0, problem.column - 80)  # a file of one endless line must not become an endless message
    shown = _SECRET.sub(r"\1 ***", line)[cut : cut + 160]
    shown = "".join(char if char == "\t" or char.isprintable() else "?" for char in shown)
    before = line[cut : problem.column - 1]
    caret = "".join("\t" if char == "\t" else " " for char in before) + "^"
    return f"{head}\n    {shown}\n    {caret}" if shown.strip() else head
