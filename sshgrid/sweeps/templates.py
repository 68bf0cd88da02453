"""What each task of a sweep is made of: its arguments and the file that it reads, both written with placeholders, and
the name of its results folder.

A template is compiled once against the names of a table's columns; `expand` is what each task pays. Braces follow GNU
parallel: what cannot be a placeholder stays as typed. Refuses a placeholder that looks like a name or position but is
none, and never looks into the values: braces in them are just bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

from sshgrid.errors import UsageError
from sshgrid.sweeps.parameters import Row, Table

_Change: TypeAlias = Callable[[bytes], bytes]
_Piece: TypeAlias = Callable[[Row, int], Sequence[bytes]]  # the arguments that one written argument becomes
_Part: TypeAlias = Callable[[Row, int], bytes]  # what one placeholder inside an argument becomes


class Template:
    """The arguments of a program: `expand` fills in one task's values.

    Without any placeholder the values are appended, in the order of their columns. UsageError for an unknown
    placeholder, and when one of `required` (columns that somebody named on the command line) is in no argument though
    others are.
    """

    __slots__ = ("_pieces", "used")

    def __init__(self, args: Sequence[bytes], names: Sequence[str], required: Collection[str] = ()) -> None:
        compiler = _Compiler(tuple(names))
        pieces = [compiler.piece(arg) for arg in args]
        if compiler.found:
            _check_used(compiler.used, names, required)
        else:
            pieces.append(_all_apart(None))
        self._pieces = tuple(pieces)
        self.used = frozenset(names[at] for at in compiler.used) if compiler.found else frozenset(names)

    def expand(self, row: Row, number: int) -> tuple[bytes, ...]:
        """The arguments of task `number`, whose values are `row`."""
        args: list[bytes] = []
        for piece in self._pieces:
            args += piece(row, number)
        return tuple(args)


class Word:
    """One word, such as the name of a file. `varies`: whether it has any placeholder. UsageError for an unknown one."""

    __slots__ = ("_piece", "used", "varies")

    def __init__(self, word: bytes, names: Sequence[str]) -> None:
        compiler = _Compiler(tuple(names))
        self._piece = compiler.joined(word)
        self.varies = compiler.found
        self.used = frozenset(names[at] for at in compiler.used)

    def expand(self, row: Row, number: int) -> bytes:
        """The word of task `number`, whose values are `row`."""
        (word,) = self._piece(row, number)
        return word


def _check_used(used: Collection[int], names: Sequence[str], required: Collection[str]) -> None:
    for at, name in enumerate(names):
        if name in required and at not in used:
            hint = f"write {{{name}}} where its value belongs, {{}} for all values, or leave out the parameter"
            raise UsageError(f"the parameter {name!r} is in no argument of the program, though others are", hint)


# --- compiling --------------------------------------------------------------------------------------------------------

_BRACES = re.compile(rb"\{([^{}]*)\}")
_INSIDE = re.compile(r"(.*?)(//|/\.|/|\.)?", re.DOTALL)
_POSITION = re.compile(r"-?[0-9]+", re.ASCII)
_LIKE_A_NAME = re.compile(r"[\w-]+")


class _Compiler:
    """Turns written arguments into pieces; `found` and `used` tell which placeholders there were."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self.found = False
        self.used: set[int] = set()

    def piece(self, arg: bytes) -> _Piece:
        if braces := _BRACES.fullmatch(arg):
            key, change = _split(braces[1])
            if not key:
                self._mark(range(len(self._names)))
                return _all_apart(change)
        return self.joined(arg)

    def joined(self, arg: bytes) -> _Piece:
        """What stays one word, whatever its values are."""
        fixed: list[bytes] = [b""]
        parts: list[_Part] = []
        end = 0
        for braces in _BRACES.finditer(arg):
            key, change = _split(braces[1])
            fixed[-1] += arg[end : braces.start()]
            end = braces.end()
            if (part := self._part(key, change)) is None:
                fixed[-1] += braces[0]
            else:
                parts.append(part)
                fixed.append(b"")
        fixed[-1] += arg[end:]
        return _piece(fixed, parts)

    def _mark(self, columns: Iterable[int]) -> None:
        self.found = True
        self.used.update(columns)

    def _part(self, key: str, change: _Change | None) -> _Part | None:
        """None for braces that are no placeholder."""
        if key == "#" and change is None:
            self._mark(())
            return lambda row, number: b"%d" % number
        if not key:
            self._mark(range(len(self._names)))
            return _all_joined(change)
        at = self._column(key)
        if at is None:
            return None
        self._mark((at,))
        return _one(at, change)

    def _column(self, key: str) -> int | None:
        if key in self._names:
            return self._names.index(key)
        if _POSITION.fullmatch(key) and len(key) < 10:
            at = int(key)
            if 0 < abs(at) <= len(self._names):
                return at - 1 if at > 0 else len(self._names) + at
        if _LIKE_A_NAME.fullmatch(key):
            raise _unknown(key, self._names)
        return None


def _split(inside: bytes) -> tuple[str, _Change | None]:
    found = _INSIDE.fullmatch(inside.decode("utf-8", "surrogateescape"))
    assert found is not None  # any text matches
    return found[1], _CHANGES[found[2] or ""]


def _unknown(key: str, names: Sequence[str]) -> UsageError:
    import difflib

    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    meant = f"; did you mean {{{close[0]}}}?" if close else ""
    listed = " ".join(f"{{{name}}}" for name in names[:20] if not _POSITION.fullmatch(name))
    positions = "{1}" if len(names) == 1 else f"{{1}} to {{{len(names)}}}"
    there = f"there is {listed} {positions} {{}} {{#}}".replace("  ", " ")
    itself = f"to hand over {{{key}}} itself, make it a value: -p brace={{{key}}}"
    return UsageError(f"no parameter belongs to the placeholder {{{key}}}{meant}", f"{there}; {itself}")


def _piece(fixed: Sequence[bytes], parts: Sequence[_Part]) -> _Piece:
    if not parts:
        literal = (fixed[0],)
        return lambda row, number: literal
    if len(parts) == 1 and fixed[0] == fixed[1] == b"":
        only = parts[0]
        return lambda row, number: (only(row, number),)
    form = b"%b".join(text.replace(b"%", b"%%") for text in fixed)
    filled = tuple(parts)
    return lambda row, number: (form % tuple([part(row, number) for part in filled]),)


def _all_apart(change: _Change | None) -> _Piece:
    if change is None:
        return lambda row, number: row
    return lambda row, number: tuple(map(change, row))


def _all_joined(change: _Change | None) -> _Part:
    if change is None:
        return lambda row, number: b" ".join(row)
    return lambda row, number: b" ".join(map(change, row))


def _one(at: int, change: _Change | None) -> _Part:
    if change is None:
        return lambda row, number: row[at]
    return lambda row, number: change(row[at])


# --- what {.} {/} {//} {/.} do to a value: the same as in GNU parallel, odd paths included ----------------------------


def _without_extension(value: bytes) -> bytes:
    dot = value.rfind(b".")
    return value[:dot] if dot > value.rfind(b"/") else value


def _basename(value: bytes) -> bytes:
    return value[value.rfind(b"/") + 1 :]


def _dirname(value: bytes) -> bytes:
    """As dirname(1): ``x/y/`` is in ``x``, a name alone in ``.``."""
    folder, name = _folder(value)
    return folder if name else _folder(folder)[0]


def _folder(value: bytes) -> tuple[bytes, bytes]:
    start = value.rfind(b"/") + 1
    folder = value[:start].rstrip(b"/") or b"/" if start else b"."
    return folder, value[start:]


def _basename_without_extension(value: bytes) -> bytes:
    return _without_extension(_basename(value))


_CHANGES: dict[str, _Change | None] = {
    "": None,
    ".": _without_extension,
    "/": _basename,
    "//": _dirname,
    "/.": _basename_without_extension,
}


# --- results folders --------------------------------------------------------------------------------------------------

MAX_FOLDER_BYTES = 120

_KEPT = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-+")
_ESCAPED = tuple(chr(byte) if byte in _KEPT else f"%{byte:02X}" for byte in range(256))
_MAX_NUMBER = len("#1048575")
_DIGEST_DIGITS = 24


def folder_name(names: Sequence[str], row: Row, number: int = 0) -> str:
    """``x=1,y=b``: one name of at most MAX_FOLDER_BYTES for each row; `number` (when not 0) is appended as ``#17``.

    All but letters, digits and ``._-+`` is written like ``%2F``. A long name is cut and ends in ``~`` and a digest of
    the whole, so it still belongs to one row.
    """
    pairs = (f"{_escaped(name.encode())}={_escaped(value)}" for name, value in zip(names, row, strict=True))
    whole = ",".join(pairs)
    if whole[0] in ".-":  # hidden, or taken for an option
        whole = f"%{ord(whole[0]):02X}{whole[1:]}"
    if len(whole) > MAX_FOLDER_BYTES - _MAX_NUMBER:
        whole = _cut(whole)
    return f"{whole}#{number}" if number else whole


def _escaped(value: bytes) -> str:
    return "".join([_ESCAPED[byte] for byte in value])


def _cut(whole: str) -> str:
    from hashlib import sha256  # rare, and it loads OpenSSL

    kept = MAX_FOLDER_BYTES - _MAX_NUMBER - 1 - _DIGEST_DIGITS
    return f"{whole[:kept]}~{sha256(whole.encode('ascii')).hexdigest()[:_DIGEST_DIGITS]}"


def folders_clash(table: Table) -> bool:
    """Whether two tasks of `table` would write one folder, were upper and lower case the same.

    Then give `folder_name` the tasks' numbers. A name holds each column apart, so no product is needed to tell.
    """
    return any(len({tuple(map(bytes.lower, row)) for row in axis.rows}) < len(axis.rows) for axis in table.axes)
