"""Arguments of tasks from placeholders, and names of results folders."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sshgrid.errors import UsageError
from sshgrid.sweeps.parameters import Axis, Table
from sshgrid.sweeps.templates import MAX_FOLDER_BYTES, Template, Word, folder_name, folders_clash

NAMES = ("x", "in-file", "3", "größe")
ROW = (b"7", b"d/a.tar.gz", b"%b {x}", b"\xff")

values = st.binary(max_size=8).map(lambda value: value.replace(b"\0", b""))


def expanded(*args: str) -> list[str]:
    found = Template([arg.encode() for arg in args], NAMES).expand(ROW, 17)
    return [arg.decode("utf-8", "backslashreplace") for arg in found]


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        ("{x}", "7"),
        ("--n={x}", "--n=7"),
        ("{x}{x}", "77"),
        ("{1}:{2}", "7:d/a.tar.gz"),
        ("{-4}", "7"),
        ("{01}", "7"),
        ("{-1}", "\\xff"),
        ("{größe}", "\\xff"),
        ("{#}", "17"),
        ("out/{#}.txt", "out/17.txt"),
        ("100%{x}%d", "100%7%d"),
        ("{3}", "%b {x}"),
        ("{in-file}", "d/a.tar.gz"),
        ("{in-file.}", "d/a.tar"),
        ("{in-file/}", "a.tar.gz"),
        ("{in-file//}", "d"),
        ("{in-file/.}", "a.tar"),
        ("{2/.}-{-3//}", "a.tar-d"),
        ("{{x}}", "{7}"),
        ('{"x": {x}}', '{"x": 7}'),
    ],
)
def test_a_placeholder_becomes_its_value(arg: str, expected: str) -> None:
    assert expanded(arg) == [expected]


@pytest.mark.parametrize(
    "literal",
    ['{"a": 1}', "{ x }", "{", "}", "{x", "x}", "{a,b}", "{1..3}", "{%}", "{= $_ =}", "{#.}", "{..}", "$"],
)
def test_braces_that_cannot_be_a_placeholder_stay_as_they_are(literal: str) -> None:
    assert expanded(literal, "{x}") == [literal, "7"]


def test_all_values_become_one_argument_each_alone_and_one_argument_inside_another() -> None:
    assert expanded("{}") == ["7", "d/a.tar.gz", "%b {x}", "\\xff"]
    assert expanded("{/}") == ["7", "a.tar.gz", "%b {x}", "\\xff"]
    assert expanded("<{}>") == ["<7 d/a.tar.gz %b {x} \\xff>"]
    assert expanded("{.},") == ["7 d/a.tar %b {x} \\xff,"]


def test_without_a_placeholder_the_values_are_appended() -> None:
    assert expanded("-v", '{"a": 1}') == ["-v", '{"a": 1}', "7", "d/a.tar.gz", "%b {x}", "\\xff"]
    assert expanded() == ["7", "d/a.tar.gz", "%b {x}", "\\xff"]


# What GNU parallel 20221122 makes of these values.
PATHS = [
    ("a/b.c.d", "a/b.c", "b.c.d", "a", "b.c"),
    ("/x/y/", "/x/y/", "", "/x", ""),
    (".hid", "", ".hid", ".", ""),
    ("d.e/f", "d.e/f", "f", "d.e", "f"),
    ("x.", "x", "x.", ".", "x"),
    ("/a", "/a", "a", "/", "a"),
    ("/.b", "/", ".b", "/", ""),
    ("", "", "", ".", ""),
    ("//", "//", "", "/", ""),
    ("/", "/", "", "/", ""),
    ("a//b", "a//b", "b", "a", "b"),
    ("a//b//", "a//b//", "", "a", ""),
    ("///x", "///x", "x", "/", "x"),
    ("x//", "x//", "", ".", ""),
    ("..", ".", "..", ".", "."),
]


@pytest.mark.parametrize("expected", PATHS, ids=[path[0] for path in PATHS])
def test_parts_of_paths_are_as_in_gnu_parallel(expected: tuple[str, ...]) -> None:
    template = Template([b"{f}", b"{f.}", b"{f/}", b"{f//}", b"{f/.}"], ("f",))
    assert template.expand((expected[0].encode(),), 1) == tuple(part.encode() for part in expected)


@pytest.mark.parametrize(
    ("arg", "words", "hint"),
    [
        ("{foo}", "{foo}", "{x} {in-file} {größe} {1} to {4}"),
        ("{in_file}", "did you mean {in-file}?", "{x}"),
        ("{in_file/.}", "did you mean {in-file}?", "{x}"),
        ("--a={5}", "{5}", "{1} to {4}"),
        ("{0}", "{0}", "{1} to {4}"),
        ("{-5}", "{-5}", "{1} to {4}"),
        ("{" + "9" * 5000 + "}", "{9999", "{1} to {4}"),
        ("a{-}", "{-}", "-p brace={-}"),
    ],
)
def test_an_unknown_placeholder_is_a_usage_error_that_lists_the_known_ones(arg: str, words: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        expanded(arg)
    assert words in caught.value.message
    assert hint in caught.value.hint


def test_a_named_parameter_must_be_in_an_argument_when_another_one_is() -> None:
    with pytest.raises(UsageError, match="'y' is in no argument") as caught:
        Template([b"{x}"], ("x", "y", "z"), required={"x", "y"})
    assert "{y}" in caught.value.hint
    assert Template([b"{x}{2}"], ("x", "y", "z"), required={"x", "y"}).used == {"x", "y"}
    assert Template([b"v"], ("x", "y"), required={"x", "y"}).used == {"x", "y"}
    assert Template([b"{}"], ("x", "y"), required={"x", "y"}).used == {"x", "y"}


@pytest.mark.parametrize(
    ("word", "made", "used"),
    [
        (b"in/{x}.txt", b"in/a/b.c.txt", "x"),
        (b"{x/.}{#}", b"b7", "x"),
        (b"{}", b"a/b.c 2", "xy"),
        (b"{2}", b"2", "y"),
        (b"{#}", b"7", ""),
    ],
)
def test_a_word_with_placeholders_expands_to_one_word(word: bytes, made: bytes, used: str) -> None:
    found = Word(word, ("x", "y"))
    assert (found.expand((b"a/b.c", b"2"), 7), found.used, found.varies) == (made, frozenset(used), True)


def test_a_word_without_placeholders_is_the_same_for_all_tasks() -> None:
    found = Word(b"a{1,2}{ }", ("x",))
    assert (found.expand((b"v",), 1), found.used, found.varies) == (b"a{1,2}{ }", frozenset(), False)
    with pytest.raises(UsageError, match=re.escape("{y}")):
        Word(b"{y}", ("x",))


@given(st.lists(values, min_size=1, max_size=4), st.binary(max_size=12))
def test_values_and_other_text_are_kept_byte_for_byte(row: list[bytes], text: bytes) -> None:
    text = text.replace(b"{", b"").replace(b"}", b"")
    names = [f"n{at}" for at in range(len(row))]
    args = [text, *(text + b"{" + name.encode() + b"}" + text for name in names)]
    assert Template(args, names).expand(tuple(row), 1) == (text, *(text + value + text for value in row))


# --- results folders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "row", "number", "expected"),
    [
        (("x", "y"), (b"1", b"b"), 0, "x=1,y=b"),
        (("x",), (b"0.5",), 17, "x=0.5#17"),
        (("1", "2"), (b"a", b"../b"), 0, "1=a,2=..%2Fb"),
        (("x",), (b"",), 0, "x="),
        (("x",), (b"a=b,c#d~e%",), 0, "x=a%3Db%2Cc%23d%7Ee%25"),
        (("größe m",), (b"\xff \n",), 0, "gr%C3%B6%C3%9Fe%20m=%FF%20%0A"),
        ((".x",), (b"1",), 0, "%2Ex=1"),
        (("-x",), (b"1",), 0, "%2Dx=1"),
    ],
)
def test_a_folder_is_named_after_the_values(
    names: tuple[str, ...], row: tuple[bytes, ...], number: int, expected: str
) -> None:
    assert folder_name(names, row, number) == expected


PORTABLE = set(string.ascii_letters + string.digits + "._-+=,%#~")


@given(st.lists(st.binary(max_size=80), min_size=1, max_size=4), st.integers(0, 2**20 - 1))
@example([b"v" * 500], 2**20 - 1)
def test_a_folders_name_is_short_and_portable(row: list[bytes], number: int) -> None:
    name = folder_name([f"n{at}" for at in range(len(row))], tuple(row), number)
    assert 0 < len(name) <= MAX_FOLDER_BYTES
    assert set(name) <= PORTABLE
    assert name[0] not in ".-"


tricky = st.text("aA,=%~#2C", max_size=6).map(str.encode) | st.binary(max_size=4) | st.just(b"v" * 200)


@given(st.lists(st.tuples(tricky, tricky), min_size=2, max_size=2, unique=True))
@example([(b"v" * 500 + b"a", b""), (b"v" * 500 + b"b", b"")])
@example([(b"1,y=2", b""), (b"1", b"2,y=")])
def test_two_rows_have_different_folders(rows: list[tuple[bytes, bytes]]) -> None:
    one, other = (folder_name(("x", "y"), row) for row in rows)
    assert one != other


column = st.lists(st.tuples(st.text("aA,=%~#2C", max_size=6).map(str.encode)), min_size=1, max_size=4).map(tuple)


@given(column, column)
def test_folders_that_do_not_clash_differ_in_more_than_their_case(
    first: tuple[tuple[bytes]], second: tuple[tuple[bytes]]
) -> None:
    table = Table((Axis(("x",), first), Axis(("y",), second)))
    numbers = range(1, len(table) + 1)
    clash = folders_clash(table)
    plain = {folder_name(table.names, table.row(number)).lower() for number in numbers}
    assert clash or len(plain) == len(table)
    numbered = {folder_name(table.names, table.row(number), number).lower() for number in numbers}
    assert len(numbered) == len(table)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([b"a", b"b"], False), ([b"a", b"a"], True), ([b"a", b"A"], True), ([b"\xe9", b"\xc9"], False)],
)
def test_rows_clash_when_they_differ_only_in_case(rows: list[bytes], expected: bool) -> None:
    assert folders_clash(Table((Axis(("x",), tuple((value,) for value in rows)),))) is expected
