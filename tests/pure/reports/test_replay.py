"""The output that a watcher is shown across attempts: at the end it is the output of the last attempt."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from sshgrid.reports.replay import Piece, Read, Shown, advance

A = st.binary(max_size=12).map(lambda piece: bytes(byte % 2 + 97 for byte in piece))  # two attempts often begin alike


def reader(kept: Mapping[int, bytes]) -> Read:
    return lambda attempt, offset, count: kept[attempt][offset : offset + count]


class Screen:
    """The text on the screen of a client that clears it at each `restarted`."""

    def __init__(self) -> None:
        self.shown = Shown()
        self.text = b""
        self.restarts = 0
        self.pieces: list[Piece] = []

    def look(self, attempt: int, kept: Mapping[int, bytes], most: int = 4, over: bool = False) -> None:
        while True:
            self.shown, piece = advance(self.shown, attempt, reader(kept), most, over)
            if piece is None:
                return
            self.pieces.append(piece)
            self.restarts += piece.restarted
            self.text = (b"" if piece.restarted else self.text) + piece.data


def test_one_attempt_is_shown_as_it_grows_and_once() -> None:
    screen = Screen()
    for kept in (b"", b"one", b"one two", b"one two"):
        screen.look(1, {1: kept})
    assert (screen.text, screen.restarts) == (b"one two", 0)


def test_output_that_a_new_attempt_repeats_is_shown_once() -> None:
    screen = Screen()
    screen.look(1, {1: b"one two"})
    screen.look(2, {1: b"one two", 2: b"one"})
    assert screen.text == b"one two"
    screen.look(2, {1: b"one two", 2: b"one two three"}, over=True)
    assert (screen.text, screen.restarts) == (b"one two three", 0)


def test_different_output_of_a_new_attempt_restarts_the_output() -> None:
    screen = Screen()
    screen.look(1, {1: b"pid 17\n"})
    screen.look(2, {1: b"pid 17\n", 2: b"pid 99\nx"})
    assert (screen.text, screen.restarts) == (b"pid 99\nx", 1)


def test_shorter_output_of_the_last_attempt_restarts_the_output_at_its_end() -> None:
    screen = Screen()
    kept = {1: b"one two", 2: b"one"}
    screen.look(1, kept)
    screen.look(2, kept)
    assert (screen.text, screen.restarts) == (b"one two", 0), "it may still say the rest"
    screen.look(2, kept, over=True)
    assert (screen.text, screen.restarts) == (b"one", 1)


def test_a_last_attempt_without_output_clears_the_output() -> None:
    screen = Screen()
    screen.look(1, {1: b"one"})
    screen.look(2, {1: b"one", 2: b""}, over=True)
    assert (screen.text, screen.restarts, screen.pieces[-1]) == (b"", 1, Piece(b"", restarted=True))


def test_a_short_attempt_in_between_does_not_restart_the_output() -> None:
    kept = {1: b"one two", 2: b"one", 3: b"one two three"}
    screen = Screen()
    for attempt in kept:
        screen.look(attempt, kept)
    assert (screen.text, screen.restarts) == (b"one two three", 0)


@given(outputs=st.lists(A, min_size=1, max_size=5), steps=st.data(), most=st.integers(1, 5))
def test_the_screen_ends_as_the_output_of_the_last_attempt(
    outputs: list[bytes], steps: st.DataObject, most: int
) -> None:
    screen, kept = Screen(), dict[int, bytes]()
    for attempt, output in enumerate(outputs, 1):
        kept[attempt] = b""
        for size in sorted(steps.draw(st.lists(st.integers(0, len(output)), max_size=3))):
            kept[attempt] = output[:size]
            screen.look(attempt, kept, most)
        kept[attempt] = output  # the watcher may not have looked at this attempt at all
    screen.look(len(outputs), kept, most, over=True)
    assert screen.text == outputs[-1]


@given(outputs=st.lists(A, min_size=2, max_size=4), most=st.integers(1, 5))
def test_the_output_restarts_only_when_it_differs(outputs: list[bytes], most: int) -> None:
    screen, kept = Screen(), dict[int, bytes]()
    seen, restarts = b"", 0
    for attempt, output in enumerate(outputs, 1):
        kept[attempt] = output
        over = attempt == len(outputs)
        screen.look(attempt, kept, most, over)
        short = len(output) < len(seen) and not over
        differs = not (seen.startswith(output) if short else output.startswith(seen))
        restarts += differs
        seen = seen if short and not differs else output
    assert (screen.text, screen.restarts) == (seen, restarts)


@given(output=st.binary(max_size=300), most=st.integers(1, 70))
def test_no_piece_is_empty_or_larger_than_requested(output: bytes, most: int) -> None:
    screen = Screen()
    screen.look(1, {1: output}, most, over=True)
    assert screen.text == output
    assert all(0 < len(piece.data) <= most for piece in screen.pieces)


@given(first=st.binary(min_size=1, max_size=40), most=st.integers(1, 50))
def test_a_late_watcher_sees_only_the_newest_attempt(first: bytes, most: int) -> None:
    screen = Screen()
    screen.look(2, {1: first, 2: b"second"}, most, over=True)
    assert (screen.text, screen.restarts) == (b"second", 0)
