"""The list of a sweep's inputs: whose each file is, in a few bytes."""

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
def test_each_task_gets_its_own_file_back_and_equal_files_are_one(given: dict[int, SourceFile]) -> None:
    inputs = decode(encode(collect(30, given)))
    assert len(inputs) == 30
    assert {task: inputs.of(task) for task in range(1, 31)} == {task: given.get(task) for task in range(1, 31)}
    names = list(inputs.sha256())
    assert sorted(names) == sorted({each.sha256 for each in given.values()})


def test_it_knows_which_tasks_have_one() -> None:
    inputs = collect(9, {task: file(b"a") for task in (1, 2, 3, 5)})
    assert inputs.has_all([range(1, 4), range(5, 6)])
    assert not inputs.has_all([range(1, 6)])
    assert not inputs.has_all([range(9, 10)])


def test_a_hundred_thousand_files_are_a_few_megabytes() -> None:
    given = {task: file(b"%d" % task) for task in range(1, 100_001)}
    packed = encode(collect(100_000, given))
    assert len(packed) < 40 * 100_000
    assert decode(packed).of(77_777) == given[77_777]


WHOLE = collect(2, {1: file(b"a"), 2: file(b"b")})


@pytest.mark.parametrize(
    ("packed", "words"),
    [
        (b"", "no list of inputs"),
        (b"\xc1", "no list of inputs"),
        (encode(Inputs(WHOLE.digests[:-1], WHOLE.sizes, WHOLE.whose)), "was cut"),
        (encode(Inputs(WHOLE.digests, WHOLE.sizes, WHOLE.whose[:-1])), "was cut"),
        (encode(Inputs(WHOLE.digests, WHOLE.sizes, b"\3\0\0\0")), "not in it"),
        (msgspec.msgpack.encode({"digests": "text"}), "no list of inputs"),
        (bytes(MAX_BYTES + 1), "is more than"),
    ],
)
def test_what_is_no_whole_list_is_refused(packed: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        decode(packed)
