"""The recording of the README: what the terminal showed, as one animated SVG (scripts/terminal_svg.py)."""

from __future__ import annotations

import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("terminal_svg", ROOT / "scripts" / "terminal_svg.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["terminal_svg"] = module
    spec.loader.exec_module(module)
    return module


script = _script()


def shown(*parts: tuple[float, bytes], columns: int = 20, rows: int = 4) -> Any:
    return script.pictures([script.Event(*part) for part in parts], columns, rows)


def words(line: Any) -> str:
    return "".join(cell.text for cell in line)


def texts(drawing: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(drawing).iter(f"{SVG}text")]


def test_a_long_wait_is_cut_and_the_order_stays() -> None:
    events = [script.Event(0.5, b"a"), script.Event(20.5, b"b"), script.Event(21.0, b"c")]
    assert [event.seconds for event in script.without_waiting(events, 2.0)] == [0.5, 2.5, 3.0]


def test_bytes_that_come_together_are_one_picture() -> None:
    found = shown((0.0, b"a"), (0.01, b"b"), (0.5, b"c"))
    assert [(picture.seconds, words(picture.lines[0])) for picture in found] == [(0.01, "ab"), (0.5, "abc")]


def test_a_screen_that_does_not_change_is_no_new_picture() -> None:
    assert len(shown((0.0, b"a"), (1.0, b"\x1b]133;A\x07"))) == 1


def test_lines_are_counted_from_the_beginning_of_the_session() -> None:
    found = shown((0.0, b"1\r\n2\r\n3\r\n4\r\n5\r\n6"))
    assert found[-1].first == 2
    assert [words(line) for line in found[-1].lines] == ["3", "4", "5", "6"]
    assert found[-1].cursor == (5, 1)


def test_colours_and_bold_are_kept_and_faint_is_grey() -> None:
    [picture] = shown((0.0, b"\x1b[32mok\x1b[0m \x1b[1mB\x1b[0m \x1b[2mf"))
    line = picture.lines[0]
    assert line[0] == ("o", script.COLOURS["green"], False)
    assert line[3] == ("B", "", True)
    assert line[5].colour == script.COLOURS["black"]


def test_a_typed_line_is_one_text_that_grows() -> None:
    [stay] = script.stays(shown((0.0, b"$ "), (1.0, b"l"), (2.0, b"s")))
    assert words(stay.line) == "$ ls"
    assert stay.growth == ((0.0, 1), (1.0, 3), (2.0, 4))
    assert stay.end is None


def test_a_line_that_is_overwritten_ends_where_the_next_begins() -> None:
    first, second = script.stays(shown((1.0, b"1 of 2"), (2.0, b"\r\x1b[Kdone")))
    assert (words(first.line), first.begin, first.end) == ("1 of 2", 1.0, 2.0)
    assert (words(second.line), second.begin, second.end) == ("done", 2.0, None)


def test_an_erased_line_ends_and_is_not_drawn_again() -> None:
    [stay] = script.stays(shown((1.0, b"gone"), (2.0, b"\r\x1b[K")))
    assert stay.end == 2.0


def test_columns_of_a_table_begin_at_their_own_place() -> None:
    drawing = script.svg(shown((0.0, b"NAME  CPU\r\na      1%")), 20, 4, "t")
    places = {element.text: float(element.get("x", "-1")) for element in ET.fromstring(drawing).iter(f"{SVG}text")}
    assert places == {
        "NAME": 0,
        "CPU": pytest.approx(6 * script.CELL_WIDTH, abs=0.06),
        "a": 0,
        "1%": pytest.approx(7 * script.CELL_WIDTH, abs=0.06),
    }


def test_each_text_is_as_wide_as_its_cells() -> None:
    drawing = script.svg(shown((0.0, b"a b")), 20, 4, "t")
    [element] = ET.fromstring(drawing).iter(f"{SVG}text")
    assert float(element.get("textLength", "0")) == pytest.approx(3 * script.CELL_WIDTH, abs=0.06)


def test_what_a_program_prints_is_never_markup() -> None:
    drawing = script.svg(shown((0.0, b"<script>&amp;")), 20, 4, "a < b")
    assert texts(drawing) == ["<script>&amp;"]
    assert "<script" not in drawing


def test_without_animation_the_end_of_the_session_is_shown() -> None:
    drawing = script.svg(shown((1.0, b"old"), (2.0, b"\r\x1b[Knew")), 20, 4, "t")
    hidden = {
        text.text
        for group in ET.fromstring(drawing).iter(f"{SVG}g")
        if "h" in group.get("class", "").split()
        for text in group.iter(f"{SVG}text")
    }
    assert hidden == {"old"}
    style = drawing[drawing.index("<style>") : drawing.index("</style>")]
    before, media, after = style.partition("@media (prefers-reduced-motion:no-preference){")
    assert media
    assert "animation" not in before
    assert "animation" in after


def test_a_text_is_visible_from_its_first_picture_until_its_last() -> None:
    drawing = script.svg(shown((0.0, b"\r"), (1.0, b"old"), (4.0, b"\r\x1b[Knew")), 20, 4, "t")
    total = 4.0 + script.LAST_SECONDS
    assert (
        f"0%{{visibility:hidden}}{100 / total:g}%{{visibility:visible}}{400 / total:g}%{{visibility:hidden}}" in drawing
    )


def test_the_committed_recording_is_small_and_loads_nothing() -> None:
    drawing = (ROOT / "docs" / "_static" / "demo.svg").read_text(encoding="utf-8")
    assert len(drawing.encode()) < 200_000
    ET.fromstring(drawing)
    assert re.findall(r"<script|<image|<a |<foreignObject|@import|url\(|href|\son\w+=", drawing) == []
    shown_texts = " ".join(texts(drawing))
    for command in ("sshgrid nodes", "sshgrid run primes.c 50", "sshgrid sweep", "sshgrid ps -a"):
        assert command in shown_texts
