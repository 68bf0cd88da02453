"""The placeholders of a sweep: in the arguments of a task, in the name of its input file; and its results folder.

A template is compiled once with the names of the columns, and expanded for each task. Braces follow GNU parallel: text
that cannot be a placeholder stays as it is. A placeholder that looks like a name or a position but does not exist is a
usage error. Braces in values have no meaning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeAlias

from sshgrid.errors import UsageError
from sshgrid.sweeps.parameters import Row, Table

_Change: TypeAlias = Callable[[bytes], bytes]
_Piece: TypeAlias = Callable[[Row, int], Sequence[bytes]]  # the arguments of a task for one argument of the template
_Part: TypeAlias = Callable[[Row, int], bytes]  # the text of a task for one placeholder


class Template:
    """The arguments of a program with placeholders; `expand` inserts the values of one task.

    Without any placeholder the values are appended, in the order of their columns. Raises UsageError for an unknown
    placeholder, and when arguments contain some columns but not all of `required`, the columns that the command line
    names.
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
    """One word, such as the name of a file. Raises UsageError for an unknown placeholder.

    `varies` says whether the word has any placeholder.
    """

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
            raise UsageError(f"the parameter {name!r} is in no argument of the program, but others are", hint)


# --- compiling --------------------------------------------------------------------------------------------------------

_BRACES = re.compile(rb"\{([^{}]*)\}")
_INSIDE = re.compile(r"(.*?)(//|/\.|/|\.)?", re.DOTALL)
_POSITION = re.compile(r"-?[0-9]+", re.ASCII)
_LIKE_A_NAME = re.compile(r"[\w-]+")


class _Compiler:
    """Compiles arguments to pieces; `found` is set by any placeholder, `used` has the columns of all of them."""

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
        """The piece of an argument that stays one argument, whatever its values are."""
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
        """The part of a placeholder; None for braces that are not a placeholder."""
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
    known = f"the placeholders are {listed} {positions} {{}} {{#}}".replace("  ", " ")
    literal = f"to pass {{{key}}} itself, make it a value: -p brace={{{key}}}"
    return UsageError(f"unknown placeholder {{{key}}}{meant}", f"{known}; {literal}")


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


# --- {.} {/} {//} {/.} change a value as in GNU parallel, also for unusual paths ----------------------------


def _without_extension(value: bytes) -> bytes:
    dot = value.rfind(b".")
    return value[:dot] if dot > value.rfind(b"/") else value


def _basename(value: bytes) -> bytes:
    return value[value.rfind(b"/") + 1 :]


def _dirname(value: bytes) -> bytes:
    """As dirname(1): ``x`` for ``x/y/``, ``.`` for a name without a folder."""
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
    """The results folder of a row, such as ``x=1,y=b``; `number` (when not 0) is appended as ``#17``.

    A name has at most MAX_FOLDER_BYTES, and each row has its own. Bytes other than letters, digits and ``._-+`` are
    written like ``%2F``. A long name is cut and ends in ``~`` and a digest of the whole name.
    """
    pairs = (f"{_escaped(name.encode())}={_escaped(value)}" for name, value in zip(names, row, strict=True))
    whole = ",".join(pairs)
    if whole[0] in ".-":  # a hidden folder, or an option of a command
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
    """Whether two tasks have the same folder when upper and lower case are the same; then use numbers in the names.

    A name contains each column separately, so each axis can be checked by itself.
    """
    return any(len({tuple(map(bytes.lower, row)) for row in axis.rows}) < len(axis.rows) for axis in table.axes)
