"""The parameters of a sweep: tables of values, their notation on the command line, and the numbers of tasks.

A table is never expanded: the row of each task is computed from its number. Values are bytes, as arguments of programs
are; words of the command line are bytes too (`os.fsencode`). Values that are empty, ragged, ambiguous or larger than
the limits below are usage errors with a hint. The caller reads files.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from math import prod
from typing import Annotated, TypeAlias

import msgspec

from sshgrid.errors import UsageError
from sshgrid.model import Struct
from sshgrid.notation.quantities import format_size

MAX_TASKS = 2**20 - 1
MAX_COLUMNS = 1000
MAX_NAME_CHARACTERS = 100
MAX_VALUE_BYTES = 128 * 1024 - 1  # the longest argument of a program on Linux (MAX_ARG_STRLEN counts the NUL byte)
MAX_TABLE_BYTES = 32 * 1024 * 1024

Row: TypeAlias = tuple[bytes, ...]

_POSITION = re.compile(r"-?[0-9]+", re.ASCII)


class Axis(Struct, frozen=True):
    """Columns that advance together: each row has one value for each name."""

    names: Annotated[tuple[str, ...], msgspec.Meta(max_length=MAX_COLUMNS)]
    rows: Annotated[tuple[Row, ...], msgspec.Meta(max_length=MAX_TASKS)]

    def __post_init__(self) -> None:
        _check_names(self.names)
        _check_rows(self.names, self.rows)


class Table(Struct, frozen=True):
    """The product of its axes, the last one varying fastest; tasks are numbered from 1."""

    axes: Annotated[tuple[Axis, ...], msgspec.Meta(max_length=MAX_COLUMNS)]

    def __post_init__(self) -> None:
        if not self.axes:
            raise UsageError("a sweep needs a parameter", "-p x=1..100, --csv FILE, or ::: a b c")
        _check_names(self.names)
        _check_positions(self.names)
        if len(self) > MAX_TASKS:
            sizes = " x ".join(str(len(axis.rows)) for axis in self.axes)
            raise UsageError(f"{sizes} tasks: a sweep can have {MAX_TASKS}", "split the sweep, or use --zip")

    def __len__(self) -> int:
        return prod(len(axis.rows) for axis in self.axes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(chain.from_iterable(axis.names for axis in self.axes))

    def row(self, number: int) -> Row:
        """The values of task `number`, in the order of `names`. Raises UsageError when there is no such task."""
        rest, chosen = number - 1, []
        for axis in reversed(self.axes):
            rest, at = divmod(rest, len(axis.rows))
            chosen.append(axis.rows[at])
        if rest:
            raise UsageError(f"no task {number}: the sweep has the tasks 1 to {len(self)}")
        return tuple(chain.from_iterable(reversed(chosen)))


def _check_names(names: Sequence[str]) -> None:
    if not names or len(names) > MAX_COLUMNS:
        raise UsageError(f"{len(names)} parameters: a sweep can have 1 to {MAX_COLUMNS}")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UsageError(f"the parameter {name!r} is given {count} times", "use a different name for each parameter")
    for name in names:
        # The placeholder of a name must be unambiguous: {#}, {x.} and {x/} have other meanings.
        if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable() or name == "#" or name[-1] in "./":
            raise UsageError(f"{name!r} cannot be the name of a parameter", "use letters, digits, _ and -")
        if set("{}") & set(name):
            raise UsageError(f"{name!r} contains a brace, as placeholders do", "use letters, digits, _ and -")


def _check_positions(names: Sequence[str]) -> None:
    for position, name in enumerate(names, 1):
        if _POSITION.fullmatch(name) and name != str(position):
            raise UsageError(
                f"a number cannot be the name of a parameter: {{{name}}} is the value of column {name}",
                "give each column a name; the first line of a --csv file holds the names",
            )


def _check_rows(names: Sequence[str], rows: Sequence[Row]) -> None:
    title = ", ".join(names)
    if not rows or len(rows) > MAX_TASKS:
        raise UsageError(f"{title}: {len(rows)} rows of values: a sweep can have 1 to {MAX_TASKS}")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise UsageError(f"{title}: row {number} has {len(row)} values for {len(names)} parameters")
        for value in row:
            if b"\0" in value:
                raise UsageError(f"{title}: row {number} has a NUL byte, which an argument of a program cannot contain")
            if len(value) > MAX_VALUE_BYTES:
                size = f"{format_size(len(value))}; an argument of a program may have {format_size(MAX_VALUE_BYTES)}"
                raise UsageError(f"{title}: a value in row {number} has {size}", "pass the value in a file")


def encode(table: Table) -> bytes:
    """Encode a table for `decode`. Raises UsageError when it takes more than MAX_TABLE_BYTES."""
    packed = msgspec.msgpack.encode(table)
    _check_size(packed)
    return packed


def decode(packed: bytes) -> Table:
    """Decode and check a table of `encode`. Raises UsageError for anything else."""
    _check_size(packed)
    try:
        return msgspec.msgpack.decode(packed, type=Table)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"this is not a table of parameters: {error}") from error


def _check_size(packed: bytes) -> None:
    if len(packed) > MAX_TABLE_BYTES:
        sizes = f"{format_size(len(packed))} of values: a sweep can have {format_size(MAX_TABLE_BYTES)}"
        raise UsageError(sizes, "use names of files as values, or split the sweep")


# --- values on the command line ---------------------------------------------------------------------------------------

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
_NUMBER = r"-?[0-9]{1,15}(?:\.[0-9]{1,9})?"
_RANGE = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::({_NUMBER}))?", re.ASCII)
_MEANT_AS_RANGE = re.compile(r"[-+.]?[0-9][^/]*\.\.[^/]*|[A-Za-z]\.\.[A-Za-z]", re.ASCII)
_LEADING_ZERO = re.compile(r"-?0[0-9]", re.ASCII)
_FORMS = "write NAME=1..100, NAME=0..1:0.1, NAME=a,b,c or NAME=@FILE"


def parse_parameter(word: bytes, read: Callable[[str], bytes]) -> Axis:
    """The axis of ``-p``: ``x=1..100``, ``x=0..1:0.1``, ``x=a,b,5..9``, or ``x=@file`` with one value a line."""
    before, _, spec = word.partition(b"=")
    name = _shown(before)
    if not spec:
        raise UsageError(f"the parameter {name!r} has no values", _FORMS)
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a parameter", "use letters, digits, _ and -, a letter first")
    if spec.startswith(b"@"):
        return _axis_of_file(name, spec[1:].decode("utf-8", "surrogateescape"), read)
    values = chain.from_iterable(_values(part, name) for part in spec.split(b","))
    return Axis((name,), tuple((value,) for value in _limited(values, name)))


def _axis_of_file(name: str, path: str, read: Callable[[str], bytes]) -> Axis:
    if not path:
        raise UsageError(f"{name}=@ names no file", _FORMS)
    return each_line(name, read(path))


def _limited(values: Iterable[bytes], name: str) -> Iterator[bytes]:
    for count, value in enumerate(values):
        if count == MAX_TASKS:
            raise _too_many(name)
        yield value


def _too_many(name: str) -> UsageError:
    return UsageError(f"{name} has more than {MAX_TASKS} values", "give a larger step, or split the sweep")


def _values(part: bytes, name: str) -> Iterable[bytes]:
    """The values of one part between commas: the numbers of a range, or the part itself."""
    text = _shown(part)
    if not part:
        hint = f"write the values to a file, one in each line, where an empty line is an empty value: {name}=@FILE"
        raise UsageError(f"{name} has an empty value", hint)
    if found := _RANGE.fullmatch(text):
        return _numbers(found[1], found[2], found[3], name)
    if _MEANT_AS_RANGE.fullmatch(text):
        raise UsageError(f"{name}: {text!r} is not a range of numbers", f"write {name}=1..100 or {name}=0..1:0.1")
    return (part,)


def _numbers(first: str, last: str, step: str | None, name: str) -> Iterator[bytes]:
    """The numbers of a range as seq(1) prints them, with leading zeros as in bash.

    They have as many decimals as `first` or `step`, whichever has more.
    """
    finest = max(_decimals(text) for text in (first, last, step or "1"))
    start, end = _scaled(first, finest), _scaled(last, finest)
    stride = _scaled(step, finest) if step else (10**finest if start <= end else -(10**finest))
    _check_stride(start, end, stride, f"{first}..{last}", step or "", name)
    if (end - start) // stride >= MAX_TASKS:
        raise _too_many(name)
    shown = max(_decimals(first), _decimals(step or "1"))
    width = _width(first, last, shown)
    return (_decimal(at // 10 ** (finest - shown), shown, width) for at in range(start, end + _sign(stride), stride))


def _check_stride(start: int, end: int, stride: int, bounds: str, step: str, name: str) -> None:
    if stride == 0:
        raise UsageError(f"{name}: a step of 0 never reaches the end", f"write {name}={bounds}:1")
    if start != end and (start < end) != (stride > 0):
        other = step.removeprefix("-") if step.startswith("-") else f"-{step}"
        raise UsageError(f"{name}: the step {step} leads away from {bounds}", f"write {name}={bounds}:{other}")


def _sign(number: int) -> int:
    return 1 if number > 0 else -1


def _decimals(text: str) -> int:
    return len(text.partition(".")[2])


def _scaled(text: str, places: int) -> int:
    """`text` times 10 ** `places`, exactly: a sum of binary fractions gives 0.30000000000000004."""
    whole, _, fraction = text.partition(".")
    return int(whole + fraction.ljust(places, "0"))


def _width(first: str, last: str, places: int) -> int:
    if not any(_LEADING_ZERO.match(text) for text in (first, last)):
        return 0
    whole = max(len(text.partition(".")[0]) for text in (first, last))
    return whole + (places + 1 if places else 0)


def _decimal(scaled: int, places: int, width: int) -> bytes:
    digits = str(abs(scaled)).zfill(places + 1)
    sign = "-" if scaled < 0 else ""
    text = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    return (sign + text).zfill(width).encode("ascii")


def each_line(name: str, data: bytes) -> Axis:
    """One value in each line, as GNU parallel reads them: the last newline is optional, and empty lines are values.

    Unlike GNU parallel, drop a byte order mark, and the CRs of a file whose lines all end in CR LF.
    """
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    last = lines.pop()
    if lines and all(line.endswith(b"\r") for line in lines):
        lines = [line[:-1] for line in lines]
    if last:
        lines.append(last)
    if not lines:
        raise UsageError(f"{name}: the file has no lines", "write one value in each line")
    return Axis((name,), tuple((line,) for line in lines))


def zip_axes(axes: Sequence[Axis]) -> Axis:
    """One axis of which all the given ones are columns. Raises UsageError unless they have the same length."""
    if len({len(axis.rows) for axis in axes}) > 1:
        counts = ", ".join(f"{' '.join(axis.names)} has {len(axis.rows)}" for axis in axes)
        raise UsageError(
            f"linked parameters need the same number of values: {counts}", "give each the same number of values"
        )
    names = tuple(chain.from_iterable(axis.names for axis in axes))
    rows = zip(*(axis.rows for axis in axes), strict=True)
    return Axis(names, tuple(tuple(chain.from_iterable(row)) for row in rows))


def csv_axis(name: str, data: bytes) -> Axis:
    """The columns of a CSV file, named by its first line; blank lines are ignored. `name` names the file in errors."""
    lines = _csv_lines(name, data)
    at, header = next(lines, (1, []))
    names = tuple(title.strip() for title in header)
    _check_header(names, f"{name}:{at}")
    rows = tuple(_csv_row(fields, names, f"{name}:{at}") for at, fields in lines)
    if not rows:
        raise UsageError(f"{name} has no rows of values", "the first line holds the names, each other line a task")
    return Axis(names, rows)


def _csv_lines(name: str, data: bytes) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, fields) of each record that is not blank."""
    import csv

    text = data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    reader = csv.reader((f"{line}\n" for line in text.removesuffix("\n").split("\n")), strict=True)
    at = 1
    try:
        for fields in reader:
            if fields:
                yield at, fields
            at = reader.line_num + 1
    except csv.Error as error:
        raise UsageError(
            f"{name}:{at}: {error}", 'write a value with a comma, quote or line end as "a ""b"", c"'
        ) from error


def _check_header(names: Sequence[str], place: str) -> None:
    if not any(names):
        raise UsageError(f"{place}: no names of parameters", "write the names in the first line: x,y")
    if "" in names:
        raise UsageError(f"{place}: column {names.index('') + 1} has no name", "give each column a name")
    try:
        _check_names(names)
    except UsageError as error:
        raise UsageError(f"{place}: {error.message}", error.hint) from error
    if number := next((name for name in names if _POSITION.fullmatch(name)), ""):
        hint = f"write the names in the first line; {{{number}}} is the value of column {number}"
        raise UsageError(f"{place}: {number} cannot be the name of a parameter", hint)


def _csv_row(fields: Sequence[str], names: Sequence[str], place: str) -> Row:
    if len(fields) != len(names):
        counts = f"this row has {len(fields)} values, the first line {len(names)} names"
        raise UsageError(f"{place}: {counts}", "put a value that contains a comma in double quotes")
    return tuple(field.encode("utf-8", "surrogateescape") for field in fields)


# --- ::: as in GNU parallel -------------------------------------------------------------------------------------------

_SEPARATORS = (b":::", b":::+", b"::::", b"::::+")


def split_inputs(words: Sequence[bytes]) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """The arguments of the program, and the words for `parse_inputs`, from the first ``:::`` on."""
    at = next((at for at, word in enumerate(words) if word in _SEPARATORS), len(words))
    return tuple(words[:at]), tuple(words[at:])


def parse_inputs(words: Sequence[bytes], before: int = 0) -> tuple[Axis, ...]:
    """The axes of ``::: a b ::: x y``, with ``:::+ 1 2`` linked with the source before it, as in GNU parallel.

    The columns are named by their position, counted after `before` other columns. Linked sources must have the same
    length; GNU parallel drops the rest of the longer one.
    """
    groups: list[list[Axis]] = []
    for count, (separator, values) in enumerate(_sources(words)):
        if not values:
            raise UsageError(f"{_shown(separator)} has no values", "write ::: a b c")
        axis = Axis((str(before + count + 1),), tuple((value,) for value in values))
        if separator == b":::":
            groups.append([axis])
        elif groups:
            groups[-1].append(axis)
        else:
            raise UsageError(":::+ has no ::: before it to be linked with", "write ::: a b :::+ 1 2")
    return tuple(zip_axes(group) for group in groups)


def _sources(words: Sequence[bytes]) -> Iterator[tuple[bytes, Sequence[bytes]]]:
    starts = [at for at, word in enumerate(words) if word in _SEPARATORS]
    for start, end in zip(starts, [*starts[1:], len(words)], strict=True):
        if words[start].startswith(b"::::"):
            raise UsageError(f"{_shown(words[start])} is not supported", "for values in a file write -p NAME=@FILE")
        yield words[start], words[start + 1 : end]


def _shown(word: bytes) -> str:
    return word.decode("utf-8", "backslashreplace")


# --- numbers of tasks -------------------------------------------------------------------------------------------------

_TASKS = re.compile(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", re.ASCII)


def spell_ranges(numbers: Iterable[int]) -> str:
    """The notation of `parse_ranges`, such as ``1-3,7``; "" for no numbers."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def parse_ranges(text: str, most: int) -> tuple[range, ...]:
    """The tasks of ``1-3,7`` as ascending ranges, each task once. Raises UsageError for one outside 1 to `most`."""
    merged: list[range] = []
    for span in sorted((_span(part.strip(), most) for part in text.split(",") if text), key=lambda span: span.start):
        if merged and span.start <= merged[-1].stop:
            merged[-1] = range(merged[-1].start, max(span.stop, merged[-1].stop))
        else:
            merged.append(span)
    return tuple(merged)


def _span(part: str, most: int) -> range:
    found = _TASKS.fullmatch(part)
    if found is None:
        raise UsageError(f"{part!r} is not a task number", "write for example: 1-3,7")
    first, last = int(found[1]), int(found[2] or found[1])
    if first > last:
        raise UsageError(f"the range {part} runs backwards", f"write {last}-{first}")
    if first < 1 or last > most:
        raise UsageError(f"no task {part}: the sweep has the tasks 1 to {most}")
    return range(first, last + 1)
