"""The monitor's screens and keys as values. The expected screens are in tests/pure/monitor/screens.

`SSHGRID_NEW_SCREENS=1` writes them again; read the difference before committing it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sshgrid.client.poll import Snapshot
from sshgrid.model import NodeState
from sshgrid.monitor import draw
from sshgrid.monitor.view import Action, Command, Page, Pane, View, press, rows
from sshgrid.protocol.messages import ClientLine, StatusReply
from tests.service.fake_master import job_line, node_line

SCREENS = Path(__file__).parent / "screens"
EVIL = "\x1b[2J\x1b]0;owned\x07\r\n\u202e"
AT = 1_700_000_100.0


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def snapshot(nodes: int = 12, jobs: int = 14, **jobs_by_state: int) -> Snapshot:
    """A grid with all kinds of nodes, jobs and clients."""
    status = StatusReply(
        4242, "0.1.0", "", "", "", "", 7265.0, nodes, {"RUNNING": 3, "PENDING": 11, **jobs_by_state}, 2
    )
    return Snapshot(AT, status, tuple(_nodes(nodes)), tuple(_jobs(jobs)), _clients())


def _nodes(count: int) -> Iterator[Any]:
    climbing = tuple(range(0, 100, 2))
    many = ("bash", "c", "cpp", "go", "java", "javascript", "make", "perl", "python", "rust", "sh")
    special = [
        node_line("alpha", state=NodeState.MIXED, cpu=0.42, running=2, cpu_minute=climbing, toolchains=many),
        node_line("beta", state=NodeState.DOWN, reason="10.0.0.12: no route to host", next_try_seconds=12.2),
        node_line("gamma" + EVIL, state=NodeState.DRAINING, running=1, cpu=1.0, load=130.25, cpu_minute=(100,) * 60),
        node_line("new", state=NodeState.UNKNOWN, cpu=None, load=None, memory_free=None, slots=None, toolchains=()),
        node_line("ノード", cpu=0.07, cpu_minute=(7,) * 30, tags=("lab",)),
    ]
    yield from special[:count]
    for number in range(len(special), count):
        yield node_line(f"h{number}", cpu=number / 50, load=number / 7, cpu_minute=(number * 2,) * 60)


def _jobs(count: int) -> Iterator[Any]:
    special = [
        job_line(7, state="RUNNING", phase="running", exit_code=None, seconds=3725.0, node="alpha"),
        job_line(9, state="RUNNING", phase="compiling", exit_code=None, seconds=1.5, node="alpha", user="bob"),
        job_line(11, state="DISCONNECTED", exit_code=None, seconds=61.0, node="gamma", reason="gamma is silent"),
        job_line(12, state="PENDING", node="", attempt=0, seconds=0.0, reason="Resources", program=f"x.py {EVIL}"),
    ]
    yield from special[:count]
    for number in range(len(special), count):
        yield job_line(number + 20, state="PENDING", node="", attempt=0, seconds=0.0, reason="NoToolchain")


def _clients() -> tuple[ClientLine, ...]:
    return (
        ClientLine("ann", "local", 1_700_000_000.0, 12, 3, 2),
        ClientLine("bob", "10.0.0.7:40222", 1_700_000_050.0, 1, 1, 0),
    )


def text_of(lines: list[draw.Line]) -> list[str]:
    return ["".join(words for _, words in line) for line in lines]


def screen(view: View, columns: int = 80, lines: int = 24, problem: str = "") -> str:
    return "\n".join(line.rstrip() for line in text_of(draw.frame(snapshot(), view, columns, lines, problem))) + "\n"


def after(*keys: str, view: View | None = None, of: Snapshot | None = None) -> tuple[View, Command | None]:
    """The view after these keys, and the command of the last one."""
    view, command = view or View(), None
    for key in keys:
        view, command = press(view, key, of or snapshot())
    return view, command


# --- screens ----------------------------------------------------------------------------------------------------------

VIEWS = {
    "nodes": View(),
    "kill": after("tab", "down", "x")[0],
    "filter": after("/", *"lab")[0],
    "no-master": View(),
}


@pytest.mark.parametrize("size", [(80, 24), (200, 50)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("name", VIEWS)
def test_screens_equal_the_expected_files(name: str, size: tuple[int, int]) -> None:
    path = SCREENS / f"{name}-{size[0]}x{size[1]}.txt"
    drawn = screen(VIEWS[name], *size, problem="the master closed the connection" if name == "no-master" else "")
    if os.environ.get("SSHGRID_NEW_SCREENS"):
        path.write_text(drawn, encoding="utf-8")
    assert drawn == path.read_text(encoding="utf-8")


_MOVES = ("up", "down", "pageup", "pagedown", "home", "end", "tab", "s-tab")
_OTHERS = ("/", "s", "d", "x", "l", "y", "n", "escape", "enter", "backspace", "a", "ノ", "\x1b", "f1")
KEYS = st.sampled_from(_MOVES + _OTHERS)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(KEYS, max_size=12),
    st.integers(1, 220),
    st.integers(1, 60),
    st.integers(0, 70),
    st.integers(0, 30),
    st.sampled_from(["", EVIL]),
)
def test_a_screen_fits_its_window_after_any_keys(
    keys: list[str], columns: int, lines: int, nodes: int, jobs: int, problem: str
) -> None:
    seen = snapshot(nodes, jobs)
    view, _ = after(*keys, of=seen)
    drawn = text_of(draw.frame(seen, view, columns, lines, problem))
    assert len(drawn) == lines
    assert all(draw.width(line) <= columns and line.isprintable() for line in drawn)


def test_A34_control_characters_are_never_drawn() -> None:
    page = Page(Command(Action.LOGS, "7"), f"output of {EVIL}", (f"text {EVIL}", "a\tb"))
    for view in (View(), View(page=page)):
        assert all(line.isprintable() for line in text_of(draw.frame(snapshot(), view, 120, 40, EVIL)))
    assert "\\x1b[2J" in screen(View(page=page))
    assert "a       b" in screen(View(page=page))
    assert draw.plain(snapshot(), 0).replace("\n", "").isprintable()


@pytest.mark.parametrize("size", [(79, 24), (80, 23), (20, 5)])
def test_a_window_that_is_too_small_shows_the_minimum_size(size: tuple[int, int]) -> None:
    text = "".join(screen(View(), *size).split("\n"))
    assert text == f"the monitor needs 80x24, the terminal has {size[0]}x{size[1]} (q quits)"


def test_once_cuts_nothing_without_a_terminal() -> None:
    long = snapshot(0, 0)
    reason = "because " * 40
    whole = Snapshot(AT, long.status, (node_line("x" * 90), node_line("y", state=NodeState.DOWN, reason=reason)))
    assert "x" * 90 in draw.plain(whole, 0)
    assert reason.strip() in draw.plain(whole, 0)
    assert max(map(len, draw.plain(snapshot(), 80).splitlines())) <= 80


def test_panes_share_the_height() -> None:
    for nodes, jobs, room, heights in ((50, 99, 17, (7, 8, 2)), (50, 0, 17, (13, 2, 2)), (1, 99, 17, (1, 14, 2))):
        assert tuple(draw.heights_of(room, snapshot(nodes, jobs)).values()) == heights


@pytest.mark.parametrize(
    ("percents", "cells", "drawn"),
    [
        ((), 5, "     "),
        ((0, 100), 4, "  ▁█"),
        ((100,) * 60, 10, "█" * 10),
        ((0,) * 30 + (100,) * 30, 10, "▁▁▁▁▁█████"),
        ((50,) * 12, 10, "        ▅▅"),
    ],
)
def test_a_sparkline_has_its_newest_sample_at_the_right(percents: tuple[int, ...], cells: int, drawn: str) -> None:
    each = draw.sparkline(percents, cells, 60 if len(percents) > 4 else cells)
    assert each == drawn


@pytest.mark.parametrize(
    ("text", "cells", "cut"), [("abc", 5, "abc  "), ("abcdef", 4, "abc…"), ("ノード", 5, "ノー…"), ("", 0, "")]
)
def test_text_is_cut_to_its_cells(text: str, cells: int, cut: str) -> None:
    assert draw.fit(text, cells) == cut
    assert draw.width(draw.fit(text, cells)) == cells


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "command"),
    [
        ("q", Command(Action.LEAVE)),
        ("c-c", Command(Action.LEAVE)),
        ("?", Command(Action.HELP)),
        ("enter", Command(Action.NODE, "alpha")),
        ("down enter", Command(Action.NODE, "beta")),
        ("end up down enter", Command(Action.NODE, "h11")),
        ("pagedown pageup down j k enter", Command(Action.NODE, "beta")),
        ("tab enter", Command(Action.JOB, "7")),
        ("tab down l", Command(Action.LOGS, "9")),
        ("tab x y", Command(Action.KILL, "7")),
        ("d y", Command(Action.DRAIN, "alpha")),
        ("down down d y", Command(Action.RESUME, "gamma" + EVIL)),
        ("d n", None),
        ("d enter", None),
        ("x", None),
        ("x y", None),
        ("/ h 1 0 enter enter", Command(Action.NODE, "h10")),
        ("/ h 1 q backspace 1 enter enter", Command(Action.NODE, "h11")),
        ("/ h 1 0 escape enter", Command(Action.NODE, "alpha")),
        ("/ z z z enter enter", None),
        ("tab tab down enter enter", Command(Action.JOB, "9")),
        ("s-tab s-tab l", Command(Action.LOGS, "7")),
        ("s enter", Command(Action.NODE, "gamma" + EVIL)),
        ("tab s s enter", Command(Action.JOB, "33")),
    ],
)
def test_keys_give_commands(keys: str, command: Command | None) -> None:
    assert after(*keys.split())[1] == command


def test_a_question_is_shown_and_any_key_but_y_declines() -> None:
    view, _ = after("tab", "x")
    assert "kill job 7? [y/N]" in screen(view)
    view, command = after("n", view=view)
    assert (view.confirming, view.message, command) == (None, "nothing changed", None)


def test_the_selected_line_stays_selected_while_others_come_and_go() -> None:
    view, _ = after("tab", "down", "down")
    before = snapshot()
    later = Snapshot(AT, before.status, before.nodes, (job_line(5, state="RUNNING"), *before.jobs), before.clients)
    assert after("l", view=view, of=later)[1] == Command(Action.LOGS, "11")
    gone = Snapshot(AT, before.status, before.nodes, tuple(job for job in before.jobs if job.id != 11), before.clients)
    assert after("l", view=view, of=gone)[1] == Command(Action.LOGS, "12")


def test_every_sort_order_keeps_all_lines() -> None:
    for pane in Pane:
        view = View(pane=pane)
        lines = rows(snapshot(), view, pane)
        for _ in range(7):
            view, _ = after("s", view=view)
            assert sorted(map(str, rows(snapshot(), view, pane))) == sorted(map(str, lines))


def test_a_page_scrolls_and_follows_its_end() -> None:
    lines = tuple(f"line {number}" for number in range(100))
    view = View(page=Page(Command(Action.LOGS, "7"), "output", lines, None))
    assert "line 99" in screen(view)
    bottom = draw.page_bottom(view.page, 80, 24) if view.page else 0
    view, _ = press(view, "up", snapshot(), bottom)
    assert "line 98" in screen(view)
    assert "line 99" not in screen(view)
    view, _ = press(view, "home", snapshot(), bottom)
    assert "line 0\n" in screen(view)
    view, _ = press(view, "pagedown", snapshot(), bottom)
    assert "11 to 32 of 100" in screen(view)
    view, _ = press(view, "end", snapshot(), bottom)
    assert view.page
    assert view.page.top is None
    assert press(view, "q", snapshot(), bottom)[0].page is None
