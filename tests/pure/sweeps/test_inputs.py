"""The list of the input files of a sweep."""

from __future__ import annotations

from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.errors import UsageError
from sshgrid.model import SourceFile
from sshgrid.sweeps.inputs import MAX_BYTES, Inputs, collect, decode, encode


def file(content: bytes) -> SourceFile:
    return SourceFile("stdin", sha256(content).hexdigest(), len(content))


@given(st.dictionaries(st.integers(1, 30), st.binary(max_size=2).map(file), max_size=30))
def test_each_task_gets_its_file_and_equal_files_are_stored_once(given: dict[int, SourceFile]) -> None:
    inputs = decode(encode(collect(30, given)))
    assert len(inputs) == 30
    assert {task: inputs.of(task) for task in range(1, 31)} == {task: given.get(task) for task in range(1, 31)}
    names = list(inputs.sha256())
    assert sorted(names) == sorted({each.sha256 for each in given.values()})


def test_has_all_tells_whether_each_task_has_an_input() -> None:
    inputs = collect(9, {task: file(b"a") for task in (1, 2, 3, 5)})
    assert inputs.has_all([range(1, 4), range(5, 6)])
    assert not inputs.has_all([range(1, 6)])
    assert not inputs.has_all([range(9, 10)])


def test_100_000_input_files_take_a_few_megabytes() -> None:
    given = {task: file(b"%d" % task) for task in range(1, 100_001)}
    packed = encode(collect(100_000, given))
    assert len(packed) < 40 * 100_000
    assert decode(packed).of(77_777) == given[77_777]


WHOLE = collect(2, {1: file(b"a"), 2: file(b"b")})


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (b"", "not a list of inputs"),
        (b"\xc1", "not a list of inputs"),
        (encode(Inputs(WHOLE.digests[:-1], WHOLE.sizes, WHOLE.numbers)), "is truncated"),
        (encode(Inputs(WHOLE.digests, WHOLE.sizes, WHOLE.numbers[:-1])), "is truncated"),
        (encode(Inputs(WHOLE.digests, WHOLE.sizes, b"\3\0\0\0")), "does not contain"),
        (msgspec.msgpack.encode({"digests": "text"}), "not a list of inputs"),
        (bytes(MAX_BYTES + 1), "is larger than"),
    ],
)
def test_an_invalid_list_of_inputs_is_a_usage_error(packed: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        decode(packed)


def test_a_list_of_an_earlier_version_is_decoded() -> None:
    earlier = {"digests": WHOLE.digests, "sizes": WHOLE.sizes, "whose": WHOLE.numbers}
    assert decode(msgspec.msgpack.encode(earlier)) == WHOLE
    assert msgspec.msgpack.decode(encode(WHOLE)).keys() == earlier.keys()
