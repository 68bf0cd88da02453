"""Output between two marks, and complete lines, in pieces of any size."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.ssh.channels import MOST_LINE_BYTES, CommandOutput, LineWriter, MarkedOutput

MARK = b"f00d-run"


def collected(words: bytes, size: int, most_bytes: int = 1 << 20) -> CommandOutput | None:
    output = MarkedOutput(MARK, most_bytes)
    for start in range(0, len(words), size):
        if found := output.feed(words[start : start + size]):
            return found
    return None


@given(st.binary(max_size=2000), st.integers(1, 300), st.integers(0, 2500))
def test_output_between_the_marks_is_kept_exactly_up_to_the_limit(output: bytes, size: int, most_bytes: int) -> None:
    words = b"Welcome!\nf00d-\n\n" + MARK + b"\n" + output + b"\n" + MARK + b" 3 late\nlater"
    assert collected(words, size, most_bytes) == CommandOutput(output[:most_bytes], len(output) > most_bytes, "3 late")


@pytest.mark.parametrize("words", [b"", b"\nf00d-run\n", b"\nf00d-run\nx\nf00d-run 0", b"\nf00d-run 0\n"])
def test_without_both_marks_there_is_no_output(words: bytes) -> None:
    assert collected(words, 5) is None


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line)), st.integers(1, 30))
def test_lines_are_passed_on_complete_whatever_the_pieces(lines: list[bytes], size: int) -> None:
    words, found = b"".join(line + b"\n" for line in lines) + b"not yet", list[bytes]()
    writer = LineWriter(found.append)
    for start in range(0, len(words), size):
        writer.write(words[start : start + size])
    assert found == lines


def test_line_without_an_end_is_cut() -> None:
    found = list[bytes]()
    writer = LineWriter(found.append)
    for _ in range(100):
        writer.write(b"x" * 1000)
    writer.write(b"\nshort\n")
    assert len(found[0]) <= MOST_LINE_BYTES + 1000
    assert found[1:] == [b"short"]
