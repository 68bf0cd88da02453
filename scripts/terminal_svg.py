"""Convert a recorded terminal session to an animated SVG with CSS and no script, which plays in an <img> on GitHub.

A terminal emulator (pyte) reads the bytes. Each line is drawn once for each text that it had; a line that only grows,
such as a typed one, is drawn once and uncovered from left to right. When the screen scrolls, one group moves. Viewers
without animation, and browsers with reduced motion, show the end of the session.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple
from xml.sax.saxutils import escape

import pyte

CELL_WIDTH, LINE_HEIGHT, FONT_SIZE = 8.4, 20, 14
MARGIN, TITLE_HEIGHT = 18, 38
# pyte does not support faint text: it is drawn grey.
FAINT, GREY = b"\x1b[2m", b"\x1b[90m"
# Output within this time becomes one picture.
PICTURE_SECONDS = 0.03
# The pause after the last picture, before the session starts again.
LAST_SECONDS = 6.0

FONT = "ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono','Liberation Mono',monospace"
NEW_LINE = "\n"  # Python 3.11 takes no backslash inside the braces of an f-string
BACKGROUND, FOREGROUND, FRAME, ACCENT = "#0d1117", "#d6deeb", "#30363d", "#5eead4"
COLOURS = {
    "black": "#7d8590",
    "red": "#ff7b72",
    "green": "#7ee787",
    "brown": "#f2cc60",
    "blue": "#79c0ff",
    "magenta": "#d2a8ff",
    "cyan": "#5eead4",
    "white": "#f0f6fc",
}


class Event(NamedTuple):
    """Bytes that a terminal received, `seconds` after the beginning."""

    seconds: float
    data: bytes


class Cell(NamedTuple):
    """One character of the screen; `colour` is `""` for the terminal's own."""

    text: str
    colour: str = ""
    bold: bool = False


Line = tuple[Cell, ...]


class Picture(NamedTuple):
    """The screen at a moment. `first` is the number of its top line, counted from the beginning of the session."""

    seconds: float
    first: int
    lines: tuple[Line, ...]
    cursor: tuple[int, int]  # line (counted from the beginning), column


class Stay(NamedTuple):
    """A text of a line from `begin` to `end` (None: to the end of the session), and its visible length over time."""

    number: int
    begin: float
    end: float | None
    line: Line
    growth: tuple[tuple[float, int], ...]  # (seconds, visible cells from then on)


# --- events to pictures -----------------------------------------------------------------------------------------------


def without_waiting(events: Iterable[Event], longest: float) -> list[Event]:
    """The same events, none of them more than `longest` seconds after the one before."""
    kept: list[Event] = []
    before, now = 0.0, 0.0
    for event in events:
        now += min(event.seconds - before, longest)
        before = event.seconds
        kept.append(Event(now, event.data))
    return kept


def pictures(events: Sequence[Event], columns: int, rows: int) -> list[Picture]:
    """The screens of a terminal of this size, one for each change."""
    screen = pyte.HistoryScreen(columns, rows, history=100_000)
    stream = pyte.ByteStream(screen)
    found: list[Picture] = []
    for event, following in zip(events, [*events[1:], None], strict=True):
        stream.feed(event.data.replace(FAINT, GREY))
        if following is None or following.seconds - event.seconds >= PICTURE_SECONDS:
            picture = _picture(event.seconds, screen)
            if not found or found[-1][1:] != picture[1:]:
                found.append(picture)
    return found


def _picture(seconds: float, screen: pyte.HistoryScreen) -> Picture:
    first = len(screen.history.top)
    lines = tuple(_line(screen.buffer[row], screen.columns) for row in range(screen.lines))
    return Picture(seconds, first, lines, (first + screen.cursor.y, screen.cursor.x))


def _line(cells: dict[int, pyte.screens.Char], columns: int) -> Line:
    line = [Cell(cells[column].data, _colour(cells[column].fg), cells[column].bold) for column in range(columns)]
    while line and line[-1].text == " ":
        line.pop()
    return tuple(line)


def _colour(name: str) -> str:
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    return COLOURS.get(name.removeprefix("bright"), "")


# --- pictures to the stays of lines -----------------------------------------------------------------------------------


def stays(found: Sequence[Picture]) -> list[Stay]:
    """All texts of all lines, with the times at which they are shown."""
    texts: dict[int, list[tuple[float, Line]]] = {}
    for picture in found:
        for row, line in enumerate(picture.lines):
            versions = texts.setdefault(picture.first + row, [])
            if line != (versions[-1][1] if versions else ()):
                versions.append((picture.seconds, line))
    return [stay for number, versions in sorted(texts.items()) for stay in _stays(number, versions)]


def _stays(number: int, versions: list[tuple[float, Line]]) -> Iterator[Stay]:
    """Join texts of which each continues the one before."""
    begin = 0
    for index in range(1, len(versions) + 1):
        if index < len(versions) and _continues(versions[index - 1][1], versions[index][1]):
            continue
        run = versions[begin:index]
        end = versions[index][0] if index < len(versions) else None
        if run[-1][1]:
            growth = tuple((seconds, len(line)) for seconds, line in run)
            yield Stay(number, run[0][0], end, run[-1][1], growth)
        begin = index


def _continues(before: Line, after: Line) -> bool:
    return bool(before) and len(after) > len(before) and after[: len(before)] == before


# --- SVG --------------------------------------------------------------------------------------------------------------


def svg(found: Sequence[Picture], columns: int, rows: int, title: str) -> str:
    """The whole session as one SVG."""
    total = found[-1].seconds + LAST_SECONDS
    width, height = columns * CELL_WIDTH + 2 * MARGIN, rows * LINE_HEIGHT + TITLE_HEIGHT + MARGIN
    rules, drawn = [], []
    for number, stay in enumerate(stays(found)):
        new_rules, element = _stay(f"l{number}", stay, total, columns)
        rules += new_rules
        drawn.append(element)
    rules.append(_moves("s", [(picture.seconds, 0, -picture.first) for picture in found], total))
    rules.append(_moves("c", [(picture.seconds, picture.cursor[1], picture.cursor[0]) for picture in found], total))
    last = found[-1]
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_n(width)} {_n(height)}" \
width="{_n(width)}" height="{_n(height)}" role="img" aria-labelledby="t">
<title id="t">{escape(title)}</title>
<style>
text{{font:{FONT_SIZE}px {FONT};fill:{FOREGROUND};white-space:pre}}
.b{{font-weight:700}}.h{{visibility:hidden}}.v{{fill:{BACKGROUND}}}
.p{{transform:scaleX(0);transform-box:fill-box;transform-origin:left}}
@media (prefers-reduced-motion:no-preference){{
.a{{animation:{_n(total)}s step-end infinite}}
.p{{animation:p {_n(total)}s linear infinite}}
@keyframes p{{to{{transform:none}}}}
{NEW_LINE.join(rules)}
}}
</style>
<rect x=".5" y=".5" width="{_n(width - 1)}" height="{_n(height - 1)}" rx="10" fill="{BACKGROUND}" stroke="{FRAME}"/>
<g fill="{FRAME}"><circle cx="20" cy="19" r="6"/><circle cx="40" cy="19" r="6"/><circle cx="60" cy="19" r="6"/></g>
<svg x="{MARGIN}" y="{TITLE_HEIGHT}" width="{_n(columns * CELL_WIDTH + 1)}" height="{rows * LINE_HEIGHT}">
<g id="s" class="a" style="transform:translate(0,{_n(-last.first * LINE_HEIGHT)}px)">
{NEW_LINE.join(drawn)}
<rect id="c" class="a" width="{CELL_WIDTH}" height="{LINE_HEIGHT - 2}" y="1" fill="{ACCENT}" opacity=".7" \
style="transform:translate({_at(last.cursor[1], last.cursor[0])})"/>
</g></svg>
<rect class="p" x="12" y="{_n(height - 4)}" width="{_n(width - 24)}" height="2" fill="{ACCENT}"/>
</svg>
"""


def _stay(name: str, stay: Stay, total: float, columns: int) -> tuple[list[str], str]:
    """The CSS rules that show and uncover a text of a line, and its element."""
    rules, y = [], stay.number * LINE_HEIGHT
    shown = [] if stay.begin <= 0 else [(stay.begin, "visible")]
    hidden = [] if stay.end is None else [(stay.end, "hidden")]
    marks = f' id="{name}" class="a{" h" if hidden else ""}"' if shown or hidden else ""
    if marks:
        first = [(0.0, "hidden")] if shown else [(0.0, "visible")]
        rules.append(_rule(name, [(when, f"visibility:{state}") for when, state in (*first, *shown, *hidden)], total))
    runs = "".join(_run(column, cells, y) for column, cells in _runs(stay.line))
    if len(stay.growth) == 1:
        return rules, f"<g{marks}>{runs}</g>"
    # Without animation, the cover is behind the end of the text.
    steps = [
        (when, f"transform:translate({_n((cells - len(stay.line)) * CELL_WIDTH)}px)") for when, cells in stay.growth
    ]
    rules.append(_rule(f"{name}v", [(0.0, steps[0][1]), *steps[1:]], total))
    cover = f'<rect id="{name}v" class="a v" x="{_n(len(stay.line) * CELL_WIDTH)}" y="{y}" '
    cover += f'width="{_n(columns * CELL_WIDTH)}" height="{LINE_HEIGHT}"/>'
    return rules, f"<g{marks}>{runs}{cover}</g>"


def _runs(line: Line) -> Iterator[tuple[int, list[Cell]]]:
    """Parts of a line with one style; two spaces separate columns, which start at their own x."""
    column, run, begin = 0, list[Cell](), 0
    while column <= len(line):
        blank = column == len(line) or all(cell.text == " " for cell in line[column : column + 2])
        if run and (blank or line[column][1:] != run[-1][1:]):
            yield begin, run
            run = []
        if not blank and not (line[column].text == " " and not run):
            begin = begin if run else column
            run.append(line[column])
        column += 1


def _run(column: int, cells: list[Cell], y: int) -> str:
    text = "".join(cell.text for cell in cells)
    length = len(text.rstrip()) * CELL_WIDTH
    style = f' style="fill:{cells[0].colour}"' if cells[0].colour else ""
    style += ' class="b"' if cells[0].bold else ""
    return (
        f'<text x="{_n(column * CELL_WIDTH)}" y="{y + 15}" textLength="{_n(length)}" '
        f'lengthAdjust="spacingAndGlyphs"{style}>{escape(text.rstrip())}</text>'
    )


def _moves(name: str, steps: Iterable[tuple[float, int, int]], total: float) -> str:
    """A rule that moves an element to positions in cells; equal positions in a row are one step."""
    places = [next(group) for _, group in groupby(steps, key=lambda step: step[1:])]
    first = [] if places and places[0][0] <= 0 else [(0.0, *places[0][1:])]
    return _rule(name, [(when, f"transform:translate({_at(x, y)})") for when, x, y in (*first, *places)], total)


def _at(column: int, line: int) -> str:
    return f"{_n(column * CELL_WIDTH)}px,{_n(line * LINE_HEIGHT)}px"


def _rule(name: str, steps: Sequence[tuple[float, str]], total: float) -> str:
    frames = "".join(f"{_n(100 * when / total, 3)}%{{{words}}}" for when, words in steps)
    return f"#{name}{{animation-name:{name}}}@keyframes {name}{{{frames}}}"


def _n(number: float, places: int = 1) -> str:
    """A number without trailing zeros."""
    return f"{number:.{places}f}".rstrip("0").rstrip(".") if places else str(number)
