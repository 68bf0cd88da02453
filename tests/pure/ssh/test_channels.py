"""What is heard between two marks, in whatever pieces it comes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.ssh.channels import MOST_LINE_BYTES, CommandOutput, LineListener, Listener

MARK = b"f00d-run"


def heard(words: bytes, size: int, most_bytes: int = 1 << 20) -> CommandOutput | None:
    ears = Listener(MARK, most_bytes)
    for start in range(0, len(words), size):
        if spoken := ears.hear(words[start : start + size]):
            return spoken
    return None


@given(st.binary(max_size=2000), st.integers(1, 300), st.integers(0, 2500))
def test_every_byte_is_heard_up_to_the_limit(output: bytes, size: int, most_bytes: int) -> None:
    words = b"Welcome!\nf00d-\n\n" + MARK + b"\n" + output + b"\n" + MARK + b" 3 late\nlater"
    assert heard(words, size, most_bytes) == CommandOutput(output[:most_bytes], len(output) > most_bytes, "3 late")


@pytest.mark.parametrize("words", [b"", b"\nf00d-run\n", b"\nf00d-run\nx\nf00d-run 0", b"\nf00d-run 0\n"])
def test_without_both_marks_nothing_was_said(words: bytes) -> None:
    assert heard(words, 5) is None


@given(st.lists(st.binary(max_size=40).filter(lambda line: b"\n" not in line)), st.integers(1, 30))
def test_lines_are_handed_on_whole_however_they_come(lines: list[bytes], size: int) -> None:
    words, found = b"".join(line + b"\n" for line in lines) + b"not yet", list[bytes]()
    ears = LineListener(found.append)
    for start in range(0, len(words), size):
        ears.write(words[start : start + size])
    assert found == lines


def test_of_a_line_without_an_end_only_so_much_is_kept() -> None:
    found = list[bytes]()
    ears = LineListener(found.append)
    for _ in range(100):
        ears.write(b"x" * 1000)
    ears.write(b"\nshort\n")
    assert len(found[0]) <= MOST_LINE_BYTES + 1000
    assert found[1:] == [b"short"]
