"""Tables of values, their notation, and the numbers of tasks."""

from __future__ import annotations

from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.errors import UsageError
from sshgrid.sweeps.parameters import (
    MAX_TABLE_BYTES,
    MAX_TASKS,
    MAX_VALUE_BYTES,
    Axis,
    Table,
    csv_axis,
    decode,
    each_line,
    encode,
    parse_inputs,
    parse_parameter,
    parse_ranges,
    spell_ranges,
    split_inputs,
    zip_axes,
)

FILES = {"values": b"a\n\nb\n"}

values = st.binary(max_size=6).map(lambda value: value.replace(b"\0", b""))


def axes_of(sizes: list[int]) -> tuple[Axis, ...]:
    """One column each: a0, a1, ... in the axis `a`."""
    return tuple(
        Axis((name,), tuple((f"{name}{row}".encode(),) for row in range(size)))
        for name, size in zip("abcdefgh", sizes, strict=False)
    )


def written(word: str) -> list[str]:
    """The values of -p `word`."""
    return [value.decode() for (value,) in parse_parameter(word.encode(), FILES.__getitem__).rows]


# --- tables -----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4))
def test_the_tasks_are_the_product_of_the_axes_the_last_one_varying_fastest(sizes: list[int]) -> None:
    table = Table(axes_of(sizes))
    rows = [table.row(number) for number in range(1, len(table) + 1)]
    expected = product(*([value for (value,) in axis.rows] for axis in table.axes))
    assert rows == list(expected)


def test_a_large_table_is_not_expanded() -> None:
    table = Table(axes_of([1000, 1000]))
    assert len(table) == 1_000_000
    assert table.row(1_000_000) == (b"a999", b"b999")


@pytest.mark.parametrize("number", [-1, 0, 7, 10**30])
def test_the_row_of_a_task_that_does_not_exist_is_a_usage_error(number: int) -> None:
    with pytest.raises(UsageError, match="tasks 1 to 6"):
        Table(axes_of([2, 3])).row(number)


@given(st.lists(st.tuples(values, values), min_size=1, max_size=5), st.lists(values, min_size=1, max_size=5))
def test_a_table_with_any_bytes_is_decoded_as_it_was_encoded(
    pairs: list[tuple[bytes, bytes]], more: list[bytes]
) -> None:
    table = Table((Axis(("x", "größe"), tuple(pairs)), Axis(("3",), tuple((value,) for value in more))))
    assert decode(encode(table)) == table


@given(st.binary(max_size=60))
def test_any_bytes_decode_to_a_table_or_a_usage_error(packed: bytes) -> None:
    try:
        table = decode(packed)
    except UsageError:
        return
    assert len(table) >= 1


ONE_ROW = [[b"1"]]


@pytest.mark.parametrize(
    ("axes", "words"),
    [
        ([], "needs a parameter"),
        ([{"names": [], "rows": ONE_ROW}], "0 parameters"),
        ([{"names": ["x"], "rows": []}], "0 rows"),
        ([{"names": ["x"], "rows": [[b"1"], [b"2", b"3"]]}], "row 2 has 2 values"),
        ([{"names": ["x", "x"], "rows": [[b"1", b"2"]]}], "'x' is given 2 times"),
        ([{"names": ["x"], "rows": ONE_ROW}] * 2, "'x' is given 2 times"),
        ([{"names": ["x"], "rows": [[b"a\0b"]]}], "NUL"),
        ([{"names": ["x"], "rows": [[bytes([65]) * (MAX_VALUE_BYTES + 1)]]}], "128K"),
        ([{"names": ["x"], "rows": [["text"]]}], "bytes"),
        ([{"names": [""], "rows": ONE_ROW}], "cannot be the name"),
        ([{"names": ["#"], "rows": ONE_ROW}], "cannot be the name"),
        ([{"names": ["x."], "rows": ONE_ROW}], "cannot be the name"),
        ([{"names": ["x\n"], "rows": ONE_ROW}], "cannot be the name"),
        ([{"names": ["x" * 101], "rows": ONE_ROW}], "cannot be the name"),
        ([{"names": ["{x}"], "rows": ONE_ROW}], "brace"),
        ([{"names": ["2"], "rows": ONE_ROW}], "a number cannot be the name"),
        ([{"names": [name], "rows": [[b"1"]] * 1024} for name in "xy"], "1024 x 1024 tasks"),
        ([{"names": ["x"], "rows": [[b"1"]] * (MAX_TASKS + 1)}], "length <="),
        ([{"names": ["x"], "rows": ONE_ROW, "more": 1}], "unknown field"),
    ],
)
def test_an_invalid_table_is_a_usage_error_when_decoded(axes: list[object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        decode(msgspec.msgpack.encode({"axes": axes}))
    assert words in caught.value.message


def test_an_array_with_a_false_length_is_refused_before_it_is_allocated() -> None:
    with pytest.raises(UsageError, match="length <="):
        decode(b"\x81\xa4axes\xdd\xff\xff\xff\xff")


def test_a_table_over_the_size_limit_is_refused_on_both_sides() -> None:
    row = (b"v" * MAX_VALUE_BYTES,)
    table = Table((Axis(("x",), (row,) * (MAX_TABLE_BYTES // MAX_VALUE_BYTES + 1)),))
    with pytest.raises(UsageError, match="a sweep can have 32M"):
        encode(table)
    with pytest.raises(UsageError, match="a sweep can have 32M"):
        decode(bytes(MAX_TABLE_BYTES + 1))


# --- -p ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("x=1..5", "1 2 3 4 5"),
        ("x=10..7", "10 9 8 7"),
        ("x=-2..1", "-2 -1 0 1"),
        ("x=5..5", "5"),
        ("x=1..10:4", "1 5 9"),
        ("x=10..1:-4", "10 6 2"),
        ("x=08..11", "08 09 10 11"),
        ("x=1..003", "001 002 003"),
        ("x=-01..1", "-01 000 001"),
        ("x=0..0.5:0.1", "0.0 0.1 0.2 0.3 0.4 0.5"),
        ("x=-0.5..0.5:0.25", "-0.50 -0.25 0.00 0.25 0.50"),
        ("x=0..0.95:0.5", "0.0 0.5"),
        ("x=0.5..2.5", "0.5 1.5 2.5"),
        ("x=00.5..10.5:5", "00.5 05.5 10.5"),
        ("x=999999999999998..999999999999999", "999999999999998 999999999999999"),
        ("x=a,b,c", "a b c"),
        ("x=a", "a"),
        ("x=a=b", "a=b"),
        ("x=7,1..3,9", "7 1 2 3 9"),
        ("x=../a,1../b", "../a 1../b"),
        ("learning-rate_2=0.1,1e-3", "0.1 1e-3"),
    ],
)
def test_the_notation_of_values(word: str, expected: str) -> None:
    assert written(word) == expected.split()


@given(st.integers(-200, 200), st.integers(-200, 200), st.integers(1, 50), st.integers(0, 3))
def test_a_range_of_decimals_is_exact_and_within_its_bounds(first: int, last: int, step: int, places: int) -> None:
    one = 10**places
    stride = step if first <= last else -step
    found = written(f"x={first / one:.{places}f}..{last / one:.{places}f}:{stride / one:.{places}f}")
    end = last + (1 if stride > 0 else -1)
    assert found == [f"{at / one:.{places}f}" for at in range(first, end, stride)]


def test_a_value_need_not_be_text() -> None:
    assert parse_parameter(b"x=\xff,b", FILES.__getitem__).rows == ((b"\xff",), (b"b",))


def test_a_file_has_one_value_in_each_line_also_in_an_empty_one() -> None:
    assert written("x=@values") == ["a", "", "b"]


@pytest.mark.parametrize(
    ("word", "words", "hint"),
    [
        ("x", "no values", "NAME=1..100"),
        ("x=", "no values", "NAME=1..100"),
        ("x=@", "names no file", "NAME=@FILE"),
        ("x=a,,b", "empty value", "x=@FILE"),
        ("x=a,", "empty value", "x=@FILE"),
        ("=1", "cannot be the name", "a letter first"),
        ("1x=1", "cannot be the name", "a letter first"),
        ("x y=1", "cannot be the name", "a letter first"),
        ("größe=1", "cannot be the name", "a letter first"),
        ("x=1..3:0", "step of 0", "x=1..3:1"),
        ("x=10..1:2", "leads away", "x=10..1:-2"),
        ("x=1..10:-2", "leads away", "x=1..10:2"),
        ("x=1..", "not a range", "x=1..100"),
        ("x=1...5", "not a range", "x=1..100"),
        ("x=1..1e6", "not a range", "x=1..100"),
        ("x=a..f", "not a range", "x=1..100"),
        ("x=1..999999999999", "more than 1048575 values", "larger step"),
        ("x=1..600000,1..600000", "more than 1048575 values", "larger step"),
    ],
)
def test_invalid_values_are_a_usage_error_with_a_hint(word: str, words: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        written(word)
    assert words in caught.value.message
    assert hint in caught.value.hint


# --- lines, columns, sources ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a\nb\n", [b"a", b"b"]),
        (b"a\nb", [b"a", b"b"]),
        (b"a b\n\n", [b"a b", b""]),
        (b"\n", [b""]),
        (b"a\r\nb\r\n", [b"a", b"b"]),
        (b"a\r\nb", [b"a", b"b"]),
        (b"a\r\nb\n", [b"a\r", b"b"]),
        (b"\xef\xbb\xbfa\xff\n", [b"a\xff"]),
    ],
)
def test_each_line_is_a_task(data: bytes, expected: list[bytes]) -> None:
    assert each_line("1", data) == Axis(("1",), tuple((value,) for value in expected))


def test_a_file_without_lines_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no lines"):
        each_line("1", b"")


def test_zipped_parameters_advance_together() -> None:
    a, b = axes_of([2, 2])
    assert zip_axes([a, b]) == Axis(("a", "b"), ((b"a0", b"b0"), (b"a1", b"b1")))
    assert zip_axes([a]) == a


def test_zipped_parameters_must_have_the_same_length() -> None:
    with pytest.raises(UsageError, match="a has 2, b has 3"):
        zip_axes(axes_of([2, 3]))


@pytest.mark.parametrize(
    ("data", "names", "rows"),
    [
        (b"x,y\n1,2\n", ("x", "y"), ((b"1", b"2"),)),
        (b"\xef\xbb\xbfx, y \r\n1, 2\r\n3,4", ("x", "y"), ((b"1", b" 2"), (b"3", b"4"))),
        (b'learning rate\n"a,""b"""\n\n""\n', ("learning rate",), ((b'a,"b"',), (b"",))),
        (b'x\n"a\nb"\n', ("x",), ((b"a\nb",),)),
        (b"x\n\xff\xc2\x85\x0b\n", ("x",), ((b"\xff\xc2\x85\x0b",),)),
        ("größe\n1\n".encode(), ("größe",), ((b"1",),)),
    ],
)
def test_the_columns_of_a_csv_file_are_parameters(
    data: bytes, names: tuple[str, ...], rows: tuple[tuple[bytes, ...], ...]
) -> None:
    assert csv_axis("f.csv", data) == Axis(names, rows)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "f.csv:1: no names"),
        (b"\n\n", "f.csv:1: no names"),
        (b"x,y\n", "f.csv has no rows"),
        (b"x,y\n1,2\n3\n", "f.csv:3: this row has 1"),
        (b'\nx,y\n"1\n",2\n3\n', "f.csv:5: this row has 1"),
        (b"x,x\n1,2\n", "f.csv:1: the parameter 'x' is given 2 times"),
        (b"x,\n1,2\n", "f.csv:1: column 2 has no name"),
        (b"1,2\n3,4\n", "f.csv:1: 1 cannot be the name"),
        (b"\xff\n1\n", "f.csv:1:"),
        (b'x\n"a\nb\n', "f.csv:2:"),
        (b'x\n"a"b\n', "f.csv:2:"),
        (b"x\ra\r", "f.csv:1:"),
        (b"x\na\0b\n", "NUL"),
    ],
)
def test_an_error_in_a_csv_file_names_the_line(data: bytes, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        csv_axis("f.csv", data)
    assert words in caught.value.message


def task_list(line: str, before: int = 0) -> str:
    """The rows of `::: ..` as text: a/x b/y."""
    table = Table(parse_inputs(line.encode().split(), before))
    return " ".join(b"/".join(table.row(number)).decode() for number in range(1, len(table) + 1))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("::: a b", "a b"),
        ("::: a b ::: x y", "a/x a/y b/x b/y"),
        ("::: a b :::+ 1 2", "a/1 b/2"),
        ("::: a b :::+ 1 2 ::: x y :::+ 7 8", "a/1/x/7 a/1/y/8 b/2/x/7 b/2/y/8"),
        ("::: a b ::: x y :::+ 7 8 :::+ 9 10", "a/x/7/9 a/y/8/10 b/x/7/9 b/y/8/10"),
    ],
)
def test_sources_are_combined_as_in_gnu_parallel(line: str, expected: str) -> None:
    assert task_list(line) == expected


def test_the_columns_of_sources_are_named_by_their_position() -> None:
    assert Table(parse_inputs([b":::", b"a", b":::+", b"1", b":::", b"x"])).names == ("1", "2", "3")
    named = parse_parameter(b"x=1..2", FILES.__getitem__)
    assert Table((named, *parse_inputs([b":::", b"a"], before=1))).names == ("x", "2")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (":::", "::: has no values"),
        ("::: a :::", "::: has no values"),
        ("::: ::: a", "::: has no values"),
        (":::+ a", "no ::: before it"),
        ("::: a b :::+ 1", "1 has 2, 2 has 1"),
        (":::: f", ":::: is not supported"),
        ("::: a ::::+ f", "::::+ is not supported"),
    ],
)
def test_invalid_sources_are_a_usage_error(line: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        task_list(line)
    assert words in caught.value.message
    assert caught.value.hint


def test_the_arguments_of_the_program_end_at_the_first_source() -> None:
    assert split_inputs([b"-n", b"{1}", b":::", b"a", b":::+", b"b"]) == (
        (b"-n", b"{1}"),
        (b":::", b"a", b":::+", b"b"),
    )
    assert split_inputs([b"a::b", b"::"]) == ((b"a::b", b"::"), ())


# --- numbers of tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("numbers", "text"), [(set(), ""), ({1}, "1"), ({3, 1, 2, 7}, "1-3,7"), (range(1, 100_001), "1-100000")]
)
def test_task_numbers_are_written_as_ranges(numbers: set[int], text: str) -> None:
    assert spell_ranges(numbers) == text


@given(st.frozensets(st.integers(1, 60)))
def test_written_ranges_are_parsed_to_the_same_numbers(numbers: frozenset[int]) -> None:
    spans = parse_ranges(spell_ranges(numbers), 60)
    assert [number for span in spans for number in span] == sorted(numbers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1-3,2-5", "1-5"), ("7, 1-3", "1-3,7"), ("1-9,2-3", "1-9"), ("1,2,3", "1-3"), ("4,4", "4")],
)
def test_ranges_are_parsed_in_ascending_order_without_duplicates(text: str, expected: str) -> None:
    spans = parse_ranges(text, 10)
    assert ",".join(spell_ranges(span) for span in spans) == expected


@pytest.mark.parametrize("text", ["0", "11", "3-11", "5-3", "1-", "-1", "a", "1,", ",", "1-2-3", "٣", "9" * 40])
def test_numbers_of_tasks_that_do_not_exist_are_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_ranges(text, 10)
