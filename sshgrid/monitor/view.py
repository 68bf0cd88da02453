"""The state of the monitor's screen, and how a key changes it.

Pure functions: a key gives the next view and, if something is to be done, a command for sshgrid.monitor.actions.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from sshgrid.client.poll import Snapshot
from sshgrid.model import NodeState
from sshgrid.protocol.messages import ClientLine, JobLine, NodeLine

ROWS_A_PAGE = 10
Row: TypeAlias = NodeLine | JobLine | ClientLine
_DRAINED = (NodeState.DRAINING, NodeState.DRAINED)


class Pane(enum.StrEnum):
    """A list on the screen."""

    NODES = "nodes"
    JOBS = "jobs"
    CLIENTS = "clients"


class Action(enum.StrEnum):
    """What a key can start."""

    LEAVE = "leave"
    HELP = "help"
    JOB = "job"
    NODE = "node"
    LOGS = "logs"
    KILL = "kill"
    DRAIN = "drain"
    RESUME = "resume"


class Command(msgspec.Struct, frozen=True):
    """An action on a job or a node."""

    action: Action
    subject: str = ""


class ListPosition(msgspec.Struct, frozen=True):
    """The selected line of a list, by its key, so that it stays selected while other lines come and go."""

    key: str = ""
    index: int = 0  # used when the line is gone
    sort: int = 0
    filter: str = ""


class Page(msgspec.Struct, frozen=True):
    """Text on the whole screen. `top` None: show its end, also when it grows."""

    command: Command
    title: str
    lines: tuple[str, ...]
    top: int | None = 0


class View(msgspec.Struct, frozen=True):
    """Everything that keys have changed."""

    pane: Pane = Pane.NODES
    positions: dict[Pane, ListPosition] = msgspec.field(default_factory=lambda: {pane: ListPosition() for pane in Pane})
    typing: bool = False  # keys go into the filter of the pane
    confirming: Command | None = None  # waits for y or n
    page: Page | None = None
    message: str = ""  # the result of the last command

    @property
    def position(self) -> ListPosition:
        return self.positions[self.pane]

    def with_position(self, **changes: object) -> View:
        positions = {**self.positions, self.pane: msgspec.structs.replace(self.position, **changes)}
        return msgspec.structs.replace(self, positions=positions)

    def with_changes(self, **changes: object) -> View:
        return msgspec.structs.replace(self, **changes)


# --- the lists --------------------------------------------------------------------------------------------------------


def _unknown_last(value: float | None) -> float:
    return 1.0 if value is None else -value


# pane -> (name of the order, sort key); the first keeps the order of the master
SORTS: dict[Pane, tuple[tuple[str, Callable[..., object]], ...]] = {
    Pane.NODES: (
        ("inventory", lambda node: 0),
        ("cpu", lambda node: _unknown_last(node.cpu)),
        ("load", lambda node: _unknown_last(node.load)),
        ("running", lambda node: -node.running),
        ("state", lambda node: str(node.state)),
        ("name", lambda node: node.name),
    ),
    Pane.JOBS: (
        ("running first", lambda job: 0),
        ("time", lambda job: -job.seconds),
        ("newest", lambda job: -job.id),
        ("user", lambda job: job.user),
        ("node", lambda job: (job.node == "", job.node)),
    ),
    Pane.CLIENTS: (
        ("since", lambda client: 0),
        ("running", lambda client: -client.running),
        ("programs", lambda client: -client.programs),
        ("user", lambda client: client.user),
    ),
}


def rows(snapshot: Snapshot, view: View, pane: Pane) -> list[Row]:
    """The lines of a pane: filtered, and sorted as chosen."""
    position = view.positions[pane]
    searched = position.filter.lower()
    lines: Sequence[Row] = getattr(snapshot, pane.value)
    found = [line for line in lines if not searched or searched in _searched_text(line)]
    return sorted(found, key=SORTS[pane][position.sort][1])  # type: ignore[arg-type]


def _searched_text(line: Row) -> str:
    """The text that a filter searches."""
    match line:
        case NodeLine():
            tags = (f"@{tag}" for tag in line.tags)
            return " ".join((line.name, line.state, line.reason, *line.toolchains, *tags)).lower()
        case JobLine():
            return " ".join(
                (str(line.id), line.user, line.state, line.node, line.name, line.program, line.reason)
            ).lower()
        case ClientLine():
            return f"{line.user} {line.address}".lower()


def key_of(line: Row) -> str:
    """The key that identifies a line."""
    match line:
        case NodeLine():
            return line.name
        case JobLine():
            return str(line.id)
        case ClientLine():
            return f"{line.user} {line.address}"


def chosen(lines: Sequence[Row], position: ListPosition) -> int:
    """The index of the selected line; when the line is gone, the index where it was."""
    for index, line in enumerate(lines):
        if key_of(line) == position.key:
            return index
    return max(0, min(position.index, len(lines) - 1))


# --- keys -------------------------------------------------------------------------------------------------------------

_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -ROWS_A_PAGE, "pagedown": ROWS_A_PAGE}
_ENDS = {"home": -(1 << 30), "end": 1 << 30}
_MOVES = _STEPS | _ENDS
_BACK = frozenset({"q", "escape", "enter", "left", "c-c"})
Pressed: TypeAlias = tuple[View, Command | None]


def press(view: View, key: str, snapshot: Snapshot | None, bottom: int = 0) -> Pressed:
    """The next view after a key ("enter", "up", or a letter), and a command. `bottom` is the greatest top of a page."""
    view = view.with_changes(message="")
    if view.page is not None:
        return _on_page(view, view.page, key, bottom), None
    if view.confirming is not None:
        confirmed = key in ("y", "Y")
        return view.with_changes(
            confirming=None, message="" if confirmed else "nothing changed"
        ), view.confirming if confirmed else None
    if view.typing:
        return _typed(view, key), None
    if snapshot is None:
        return view, Command(Action.LEAVE) if key in ("q", "c-c") else None
    return _on_lists(view, key, snapshot)


def _on_page(view: View, page: Page, key: str, bottom: int) -> View:
    if key in _BACK:
        return view.with_changes(page=None)
    if key == "end":
        return view.with_changes(page=msgspec.structs.replace(page, top=None))
    if key in _MOVES:
        here = bottom if page.top is None else page.top
        top = max(0, min(here + _MOVES[key], bottom))
        return view.with_changes(page=msgspec.structs.replace(page, top=top))
    return view


def _typed(view: View, key: str) -> View:
    text = view.position.filter
    match key:
        case "enter" | "tab":
            return view.with_changes(typing=False)
        case "escape" | "c-c":
            return view.with_position(filter="").with_changes(typing=False)
        case "backspace":
            return view.with_position(filter=text[:-1])
    return view.with_position(filter=text + key) if len(key) == 1 and key.isprintable() else view


def _on_lists(view: View, key: str, snapshot: Snapshot) -> Pressed:
    panes = list(Pane)
    here = panes.index(view.pane)
    match key:
        case "q" | "c-c":
            return view, Command(Action.LEAVE)
        case "?" | "h":
            return view, Command(Action.HELP)
        case "tab":
            return view.with_changes(pane=panes[(here + 1) % len(panes)]), None
        case "s-tab":
            return view.with_changes(pane=panes[here - 1]), None
        case "/":
            return view.with_changes(typing=True), None
        case "escape":
            return view.with_position(filter=""), None
        case "s":
            return view.with_position(sort=(view.position.sort + 1) % len(SORTS[view.pane])), None
    return _on_a_line(view, key, rows(snapshot, view, view.pane))


def _on_a_line(view: View, key: str, lines: Sequence[Row]) -> Pressed:
    if not lines:
        return view, None
    index = chosen(lines, view.position)
    if key in _MOVES:
        index = max(0, min(index + _MOVES[key], len(lines) - 1))
        return view.with_position(key=key_of(lines[index]), index=index), None
    line = lines[index]
    view = view.with_position(key=key_of(line), index=index)
    match line, key:
        case NodeLine(), "enter":
            return view, Command(Action.NODE, line.name)
        case NodeLine(), "d":
            action = Action.RESUME if line.state in _DRAINED else Action.DRAIN
            return view.with_changes(confirming=Command(action, line.name)), None
        case JobLine(), "enter":
            return view, Command(Action.JOB, str(line.id))
        case JobLine(), "l":
            return view, Command(Action.LOGS, str(line.id))
        case JobLine(), "x":
            return view.with_changes(confirming=Command(Action.KILL, str(line.id))), None
        case ClientLine(), "enter":
            return view.with_changes(pane=Pane.JOBS).with_position(filter=line.user), None
    return view.with_changes(message=_NOT_HERE.get(key, "")), None


_NOT_HERE = {
    "d": "d drains a node; Tab goes to the nodes",
    "l": "l shows the output of a job; Tab goes to the jobs",
    "x": "x kills a job; Tab goes to the jobs",
}
