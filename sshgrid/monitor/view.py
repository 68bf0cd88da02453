"""What a person looks at in the monitor, and what a key changes in it: values in, values out.

A key gives the next view and, where something is to be done or asked of the master, a command. Refuses to do anything
itself.
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
    """One of the lists."""

    NODES = "nodes"
    JOBS = "jobs"
    CLIENTS = "clients"


class Action(enum.StrEnum):
    """What a key can ask for."""

    LEAVE = "leave"
    HELP = "help"
    JOB = "job"
    NODE = "node"
    LOGS = "logs"
    KILL = "kill"
    DRAIN = "drain"
    RESUME = "resume"


class Command(msgspec.Struct, frozen=True):
    """Something to be done, to a job or a node."""

    deed: Action
    subject: str = ""


class Selection(msgspec.Struct, frozen=True):
    """Where the person is in a list. The line is known by its key, so that it stays chosen while others come and go."""

    key: str = ""
    index: int = 0  # where it was, for when it is gone
    sort: int = 0
    filter: str = ""


class Page(msgspec.Struct, frozen=True):
    """Words over the whole screen. `top` None: its end, also when it grows."""

    command: Command
    title: str
    lines: tuple[str, ...]
    top: int | None = 0


class View(msgspec.Struct, frozen=True):
    """Everything that the keys have chosen."""

    pane: Pane = Pane.NODES
    places: dict[Pane, Selection] = msgspec.field(default_factory=lambda: {pane: Selection() for pane in Pane})
    typing: bool = False  # the filter of the pane
    asking: Command | None = None  # y or n?
    page: Page | None = None
    said: str = ""  # the last word about what was asked for

    @property
    def place(self) -> Selection:
        return self.places[self.pane]

    def with_place(self, **changes: object) -> View:
        places = {**self.places, self.pane: msgspec.structs.replace(self.place, **changes)}
        return msgspec.structs.replace(self, places=places)

    def but(self, **changes: object) -> View:
        return msgspec.structs.replace(self, **changes)


# --- the lists --------------------------------------------------------------------------------------------------------


def _unknown_last(value: float | None) -> float:
    return 1.0 if value is None else -value


# pane -> (what it is sorted by, the key of a line); the first is how the master says it
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
    place = view.places[pane]
    wanted = place.filter.lower()
    lines: Sequence[Row] = getattr(snapshot, pane.value)
    found = [line for line in lines if not wanted or wanted in _words(line)]
    return sorted(found, key=SORTS[pane][place.sort][1])  # type: ignore[arg-type]


def _words(line: Row) -> str:
    """What a filter looks into."""
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
    """By what a line is known."""
    match line:
        case NodeLine():
            return line.name
        case JobLine():
            return str(line.id)
        case ClientLine():
            return f"{line.user} {line.address}"


def chosen(lines: Sequence[Row], place: Selection) -> int:
    """The index of the chosen line; where it was when it is gone."""
    for index, line in enumerate(lines):
        if key_of(line) == place.key:
            return index
    return max(0, min(place.index, len(lines) - 1))


# --- keys -------------------------------------------------------------------------------------------------------------

_STEPS = {"up": -1, "k": -1, "down": 1, "j": 1, "pageup": -ROWS_A_PAGE, "pagedown": ROWS_A_PAGE}
_ENDS = {"home": -(1 << 30), "end": 1 << 30}
_MOVES = _STEPS | _ENDS
_BACK = frozenset({"q", "escape", "enter", "left", "c-c"})
Pressed: TypeAlias = tuple[View, Command | None]


def press(view: View, key: str, snapshot: Snapshot | None, bottom: int = 0) -> Pressed:
    """What a key does: "enter", "up" or the letter itself. `bottom`: the last line that a page can have at its top."""
    view = view.but(said="")
    if view.page is not None:
        return _on_page(view, view.page, key, bottom), None
    if view.asking is not None:
        sure = key in ("y", "Y")
        return view.but(asking=None, said="" if sure else "left as it is"), view.asking if sure else None
    if view.typing:
        return _typed(view, key), None
    if snapshot is None:
        return view, Command(Action.LEAVE) if key in ("q", "c-c") else None
    return _on_lists(view, key, snapshot)


def _on_page(view: View, page: Page, key: str, bottom: int) -> View:
    if key in _BACK:
        return view.but(page=None)
    if key == "end":
        return view.but(page=msgspec.structs.replace(page, top=None))
    if key in _MOVES:
        here = bottom if page.top is None else page.top
        top = max(0, min(here + _MOVES[key], bottom))
        return view.but(page=msgspec.structs.replace(page, top=top))
    return view


def _typed(view: View, key: str) -> View:
    text = view.place.filter
    match key:
        case "enter" | "tab":
            return view.but(typing=False)
        case "escape" | "c-c":
            return view.with_place(filter="").but(typing=False)
        case "backspace":
            return view.with_place(filter=text[:-1])
    return view.with_place(filter=text + key) if len(key) == 1 and key.isprintable() else view


def _on_lists(view: View, key: str, snapshot: Snapshot) -> Pressed:
    panes = list(Pane)
    here = panes.index(view.pane)
    match key:
        case "q" | "c-c":
            return view, Command(Action.LEAVE)
        case "?" | "h":
            return view, Command(Action.HELP)
        case "tab":
            return view.but(pane=panes[(here + 1) % len(panes)]), None
        case "s-tab":
            return view.but(pane=panes[here - 1]), None
        case "/":
            return view.but(typing=True), None
        case "escape":
            return view.with_place(filter=""), None
        case "s":
            return view.with_place(sort=(view.place.sort + 1) % len(SORTS[view.pane])), None
    return _on_a_line(view, key, rows(snapshot, view, view.pane))


def _on_a_line(view: View, key: str, lines: Sequence[Row]) -> Pressed:
    if not lines:
        return view, None
    index = chosen(lines, view.place)
    if key in _MOVES:
        index = max(0, min(index + _MOVES[key], len(lines) - 1))
        return view.with_place(key=key_of(lines[index]), index=index), None
    line = lines[index]
    view = view.with_place(key=key_of(line), index=index)
    match line, key:
        case NodeLine(), "enter":
            return view, Command(Action.NODE, line.name)
        case NodeLine(), "d":
            deed = Action.RESUME if line.state in _DRAINED else Action.DRAIN
            return view.but(asking=Command(deed, line.name)), None
        case JobLine(), "enter":
            return view, Command(Action.JOB, str(line.id))
        case JobLine(), "l":
            return view, Command(Action.LOGS, str(line.id))
        case JobLine(), "x":
            return view.but(asking=Command(Action.KILL, str(line.id))), None
        case ClientLine(), "enter":
            return view.but(pane=Pane.JOBS).with_place(filter=line.user), None
    return view.but(said=_NOT_HERE.get(key, "")), None


_NOT_HERE = {
    "d": "d drains a node: Tab goes to the nodes",
    "l": "l shows the output of a job: Tab goes to the jobs",
    "x": "x kills a job: Tab goes to the jobs",
}
