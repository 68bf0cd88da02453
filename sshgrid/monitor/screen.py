"""The monitor on a terminal: keys from prompt_toolkit, the lines of draw, drawn again after each change.

Requests to the master run in other threads. Layout and decisions are in draw and view.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from prompt_toolkit.application import Application
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import Layout, UIContent, UIControl, Window
from prompt_toolkit.output import ColorDepth
from prompt_toolkit.styles import Style

from sshgrid.client.poll import MasterPoller, fetch_snapshot
from sshgrid.client.session import Session
from sshgrid.monitor import actions, draw
from sshgrid.monitor.view import Action, Command, Page, View, press

EVERY_SECONDS = 2.0
_LIVE_PAGES = frozenset({Action.JOB, Action.LOGS, Action.NODE})  # fetched again while they are shown
_NAMES = {"c-m": "enter", "c-i": "tab", "c-h": "backspace"}
_STYLE = Style.from_dict(
    {
        "title": "bold",
        "header": "reverse nobold",
        "header-here": "reverse bold",
        "chosen": "reverse",
        "keys": "reverse nobold",
        "alarm": "bold fg:ansired",
        "dim": "fg:ansibrightblack",
        "red": "fg:ansired",
        "green": "fg:ansigreen",
        "yellow": "fg:ansiyellow",
        "cyan": "fg:ansicyan",
    }
)


class MonitorScreen:
    """The monitor on one terminal."""

    def __init__(self, session: Session) -> None:
        self._session = session.child()
        self._session.muted = True
        self._poller = MasterPoller(self._session.connect_running, fetch_snapshot, EVERY_SECONDS, self._changed)
        self._view = View()
        self._busy = False  # a thread performs a command
        self._queued: list[Command] = []
        self._size = (draw.MIN_COLUMNS, draw.MIN_ROWS)
        self._app: Application[None] = Application(
            layout=Layout(Window(_Canvas(self._draw), always_hide_cursor=True)),
            key_bindings=self._keys(),
            style=_STYLE,
            color_depth=None if session.out.colour else ColorDepth.DEPTH_1_BIT,
            full_screen=True,
        )
        self._app.ttimeoutlen = 0.05  # after Esc

    def run(self) -> None:
        """Show the monitor until the user leaves."""
        with self._poller:
            self._app.run()

    def _draw(self, columns: int, lines: int) -> list[draw.Line]:
        self._size = (columns, lines)
        return draw.frame(self._poller.newest, self._view, columns, lines, self._poller.problem)

    # --- keys

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        keys.add("<any>", eager=True)(self._pressed)
        return keys

    def _pressed(self, event: KeyPressEvent) -> None:
        key = str(getattr(event.key_sequence[0].key, "value", event.key_sequence[0].key))
        page = self._view.page
        bottom = draw.page_bottom(page, *self._size) if page else 0
        self._view, command = press(self._view, _NAMES.get(key, key), self._poller.newest, bottom)
        if command is not None:
            self._do(command)

    def _do(self, command: Command) -> None:
        """Perform commands one after the other: a kill waits while a page is being fetched."""
        if command.action is Action.LEAVE:
            self._app.exit()
        elif self._busy:
            self._queued.append(command)
        else:
            self._start(command, refresh=False)

    def _start(self, command: Command, *, refresh: bool) -> None:
        self._busy = True
        threading.Thread(target=self._work, args=(command, refresh), name=command.action.value, daemon=True).start()

    def _work(self, command: Command, refresh: bool) -> None:
        """Runs in a thread."""
        result = actions.perform(self._session, command, self._poller.newest)
        self._in_the_loop(lambda: self._show(command, result, refresh))

    def _show(self, command: Command, result: Page | str, refresh: bool) -> None:
        self._busy = False
        page = self._view.page
        if refresh:
            if isinstance(result, Page) and page is not None and page.command == command:
                self._view = self._view.with_changes(page=Page(command, result.title, result.lines, page.top))
        elif isinstance(result, Page):
            self._view = self._view.with_changes(page=result)
        else:
            self._view = self._view.with_changes(message=result)
            self._poller.refresh()
        if self._queued:
            self._start(self._queued.pop(0), refresh=False)
        self._app.invalidate()

    # --- updates

    def _changed(self) -> None:
        """Runs in the thread of the poller."""
        self._in_the_loop(self._redraw)

    def _redraw(self) -> None:
        page = self._view.page
        if page is not None and page.command.action in _LIVE_PAGES and not self._busy:
            self._start(page.command, refresh=True)
        self._app.invalidate()

    def _in_the_loop(self, work: Callable[[], None]) -> None:
        loop = self._app.loop
        if loop is not None:
            try:
                loop.call_soon_threadsafe(work)
            except RuntimeError:  # the loop was just closed: the user left
                return


class _Canvas(UIControl):
    """Lines drawn for the size of the window."""

    def __init__(self, lines: Callable[[int, int], Sequence[draw.Line]]) -> None:
        self._lines = lines

    def create_content(self, width: int, height: int) -> UIContent:
        drawn = [
            [(f"class:{style}" if style else "", text) for style, text in line] for line in self._lines(width, height)
        ]
        return UIContent(get_line=lambda index: list(drawn[index]), line_count=len(drawn), show_cursor=False)

    def is_focusable(self) -> bool:
        return True
