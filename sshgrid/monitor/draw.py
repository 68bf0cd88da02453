"""The screen of the monitor as lines of styled text, made from a snapshot of the grid and a view.

Pure functions: the same snapshot and view give the same lines. Control characters in text from others (names, reasons,
output) are escaped. A terminal smaller than 80x24 gets a message instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from sshgrid.client.poll import Snapshot
from sshgrid.monitor.view import SORTS, Action, Command, ListPosition, Page, Pane, Row, View, chosen, rows
from sshgrid.notation.quantities import format_duration, format_size
from sshgrid.protocol.messages import ClientLine, JobLine, NodeLine
from sshgrid.terminal import render

MIN_COLUMNS, MIN_ROWS = 80, 24
UNLIMITED = 1 << 20  # columns of a pipe
Part: TypeAlias = tuple[str, str]  # (style, text)
Line: TypeAlias = tuple[Part, ...]

_LEVELS = "▁▂▃▄▅▆▇█"
_DOWN_STATES = frozenset({"DOWN", "UNKNOWN"})
_KEYS = "Tab pane  / filter  s sort  Enter info  l logs  d drain  x kill  ? help  q quit"
_EMPTY = {Pane.NODES: "no nodes", Pane.JOBS: "no jobs wait or run", Pane.CLIENTS: "no clients are connected"}


class Column(NamedTuple):
    """A column of a pane; the last one takes the remaining width."""

    title: str
    width: int
    right: bool = False


# --- text and cells ---------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Text from others in one line, with escaped control characters."""
    return render.escape(text).replace("\n", "\\n").replace("\t", "\\t")


def width(text: str) -> int:
    """The number of cells that the text takes."""
    if text.isascii():
        return len(text)
    from prompt_toolkit.utils import get_cwidth

    return get_cwidth(text)


def fit(text: str, cells: int, *, right: bool = False) -> str:
    """The text in exactly this many cells: padded, or cut with an ellipsis."""
    wide = width(text)
    if wide <= cells:
        return " " * (cells - wide) + text if right else text + " " * (cells - wide)
    kept, used = [], 0
    for letter in text:
        used += width(letter)
        if used > cells - 1:
            break
        kept.append(letter)
    cut = "".join(kept) + "…" if cells else ""
    return cut + " " * (cells - width(cut))


def bar(share: float | None, cells: int) -> str:
    """`[|||   45%]`"""
    if share is None:
        return fit("-", cells)
    inner = cells - 2
    percent = f"{share:.0%}"
    return f"[{('|' * round(share * inner)).ljust(inner)[: inner - len(percent)]}{percent}]"


def sparkline(percents: Sequence[int], cells: int, samples: int = 60) -> str:
    """The last minute, newest at the right; each cell shows the mean of its samples."""
    each = max(samples / cells, 1.0)
    drawn = ""
    for cell in range(cells):
        end = len(percents) - round(cell * each)
        part = percents[max(0, len(percents) - round((cell + 1) * each)) : max(0, end)]
        if not part:
            break
        mean = min(max(sum(part) / len(part), 0), 100)
        drawn = _LEVELS[min(int(mean / 100 * len(_LEVELS)), len(_LEVELS) - 1)] + drawn
    return drawn.rjust(cells)


def as_many_as_fit(names: Sequence[str], cells: int) -> str:
    """`c cpp java +4`"""
    for count in range(len(names), -1, -1):
        more = f"+{len(names) - count}" if count < len(names) else ""
        text = " ".join(filter(None, (*names[:count], more)))
        if width(text) <= cells:
            return text
    return ""


# --- the panes --------------------------------------------------------------------------------------------------------


def _columns(pane: Pane, lines: Sequence[Row], total: int) -> list[Column]:
    room = 120 if total >= UNLIMITED else total
    wide, very_wide = room >= 120, room >= 160
    match pane:
        case Pane.NODES:
            name = _name_width((line.name for line in lines if isinstance(line, NodeLine)), 10, total)
            cpu, minute = (20 if wide else 10), (60 if room >= 190 else 30 if very_wide else 20 if wide else 10)
            return [
                Column("NODE", name),
                Column("STATE", 9),
                Column("CPU", cpu),
                Column("LAST MINUTE" if wide else "MINUTE", minute),
                Column("LOAD", 5, right=True),
                Column("FREE", 5, right=True),
                Column("SLOTS", 5, right=True),
                Column("TOOLCHAINS", 0),
            ]
        case Pane.JOBS:
            jobs = [line for line in lines if isinstance(line, JobLine)]
            return [
                Column("JOB", max([5, *(len(str(job.id)) for job in jobs)]), right=True),
                Column("USER", _name_width((job.user for job in jobs), 8, total)),
                Column("STATE", 12),
                Column("NODE", _name_width((job.node for job in jobs), 9, total)),
                Column("TIME", 6, right=True),
                Column("TRY", 5, right=True) if wide else Column("TRY", 3, right=True),
                Column("REASON", 40 if very_wide else 24 if wide else 12),
                Column("PROGRAM", 0),
            ]
        case Pane.CLIENTS:
            clients = [line for line in lines if isinstance(line, ClientLine)]
            return [
                Column("CLIENT", _name_width((client.user for client in clients), 10, total)),
                Column("ADDRESS", 39 if wide else 20),
                Column("SINCE", 19),
                Column("PROGRAMS", 8, right=True),
                Column("RUNNING", 7, right=True),
                Column("", 0),
            ]


def _name_width(names: Iterable[str], least: int, total: int) -> int:
    """The width of the longest name, if there is room for it."""
    most = least if total < 100 else least + (total - 80) // 8
    return min(max([least, *(width(clean(name)) for name in names)]), most)


def _node_cells(node: NodeLine, columns: Sequence[Column], room: int) -> list[str]:
    state = str(node.state)
    if node.state in _DOWN_STATES and (node.reason or node.next_try_seconds is not None):
        return [clean(node.name), state, _why_down(node)]
    return [
        clean(node.name),
        state,
        bar(node.cpu, columns[2].width),
        sparkline(node.cpu_minute, columns[3].width),
        "-" if node.load is None else f"{node.load:.2f}" if node.load < 100 else f"{node.load:.0f}",
        "-" if node.memory_free is None else format_size(node.memory_free),
        f"{node.running}/{'-' if node.slots is None else node.slots}",
        clean(node.reason) or as_many_as_fit(node.toolchains, room),
    ]


def _why_down(node: NodeLine) -> str:
    again = node.next_try_seconds
    when = "" if again is None else "next try now" if again < 1 else f"next try in {format_duration(round(again))}"
    return clean(", ".join(filter(None, (when, node.reason))))


def _job_cells(job: JobLine, columns: Sequence[Column], room: int) -> list[str]:
    _, user, state, node, time, tries, _, program, reason = map(clean, render.job_row(job))
    return [str(job.id), user, state, node, time, tries, reason, program]


def _client_cells(client: ClientLine, columns: Sequence[Column], room: int) -> list[str]:
    status = "" if client.connections else "gone"
    return [
        clean(client.user),
        clean(client.address),
        render.local_time(client.since),
        str(client.programs),
        str(client.running),
        status,
    ]


_CELLS: dict[Pane, Callable[..., list[str]]] = {
    Pane.NODES: _node_cells,
    Pane.JOBS: _job_cells,
    Pane.CLIENTS: _client_cells,
}


def _row(cells: Sequence[str], columns: Sequence[Column], total: int) -> str:
    """Join the cells of a row; the last one takes the remaining width."""
    text = ""
    for cell, column in zip(cells[:-1], columns, strict=False):
        text += fit(cell, column.width, right=column.right) + " "
    return text + (cells[-1] if total >= UNLIMITED else fit(cells[-1], max(total - width(text), 0)))


def _painted(text: str, line: Row) -> Line:
    state = "" if isinstance(line, ClientLine) else str(line.state)
    before, found, after = text.partition(f" {state} ") if state else (text, "", "")
    style = render.STATE_COLOURS.get(state, "")
    return (("", before), (style, found), ("", after)) if found else (("", text),)


def pane_lines(snapshot: Snapshot, view: View | None, pane: Pane, total: int, height: int) -> list[Line]:
    """The header and up to `height` lines of a pane; without a view no line is selected."""
    shown = view or View()
    lines = rows(snapshot, shown, pane)
    here = view is not None and view.pane is pane
    position = shown.positions[pane]
    index = chosen(lines, position)
    top = max(0, min(index - height // 2, len(lines) - height))
    columns = _columns(pane, lines, total)
    cells_of, room = _CELLS[pane], total - 1 - sum(column.width + 1 for column in columns[:-1])
    titles = [column.title.rjust(column.width) if column.right else column.title for column in columns]
    header = " " + _row(titles, columns, total - 1)
    drawn: list[Line] = [(("header-here" if here else "header", header),)]
    for number, line in enumerate(lines[top : top + height], top):
        text = _row(cells_of(line, columns, room), columns, total - 1)
        drawn.append((("chosen", f">{text}"),) if here and number == index else (("", " "), *_painted(text, line)))
    if not lines:
        drawn.append((("dim", f" {_empty_text(pane, position)}"),))
    return drawn


def _empty_text(pane: Pane, position: ListPosition) -> str:
    return f"no line contains {clean(position.filter)!r}" if position.filter else _EMPTY[pane]


# --- header and footer ------------------------------------------------------------------------------------------------


def head(snapshot: Snapshot, problem: str, total: int) -> list[Line]:
    """The header: version, time or problem, and totals."""
    status = snapshot.status
    up = sum(line.state not in _DOWN_STATES for line in snapshot.nodes)
    running = sum(status.jobs_by_state.get(state, 0) for state in ("RUNNING", "DISCONNECTED"))
    pending = status.jobs_by_state.get("PENDING", 0)
    slots = sum(line.slots or 0 for line in snapshot.nodes if line.state not in _DOWN_STATES)
    taken = sum(line.running for line in snapshot.nodes)
    title = f"sshgrid {clean(status.version)}  up {format_duration(round(status.uptime_seconds))}  "
    note: Part = ("dim", render.local_time(snapshot.at))
    if problem:
        note = ("alarm", f"reconnecting: {clean(problem)}")
    elif status.inventory_error:
        note = ("alarm", "the inventory has errors: sshgrid inventory check")
    sums = (
        f"nodes {up} of {len(snapshot.nodes)} up   slots {taken} of {slots}   "
        f"jobs {running} running, {pending} pending   {status.ended_last_minute} ended/min"
    )
    return [(("title", title), (note[0], _cut(note[1], total - len(title)))), (("", _cut(sums, total)),)]


def _cut(text: str, total: int) -> str:
    return text if width(text) <= total else fit(text, max(total, 0))


def foot(snapshot: Snapshot, view: View, total: int) -> list[Line]:
    """The footer: a message, a question or a summary, and the keys."""
    position = view.position
    if view.confirming is not None:
        return [
            (("alarm", _cut(f"{question(view.confirming)} [y/N] ", total)),),
            _keys("y yes  any other key no", total),
        ]
    if view.typing:
        return [(("title", _cut(f"/{clean(position.filter)}_", total)),), _keys("Enter keep  Esc clear", total)]
    parts = [f"{len(rows(snapshot, view, view.pane))} of {len(getattr(snapshot, view.pane.value))} {view.pane.value}"]
    parts.append(f"by {SORTS[view.pane][position.sort][0]}")
    if position.filter:
        parts.append(f"containing {clean(position.filter)!r} (Esc clears)")
    waiting = snapshot.status.jobs_by_state.get("PENDING", 0) - sum(job.state == "PENDING" for job in snapshot.jobs)
    if view.pane is Pane.JOBS and waiting > 0:
        parts.append(f"{waiting} more waiting")
    message: Line = (
        (("title", _cut(clean(view.message), total)),) if view.message else (("dim", _cut("  ".join(parts), total)),)
    )
    return [message, _keys(_KEYS, total)]


def _keys(text: str, total: int) -> Line:
    return (("keys", fit(text, total)),)


def question(command: Command) -> str:
    """The question that confirms a command."""
    match command.action:
        case Action.KILL:
            return f"kill job {command.subject}?"
        case Action.DRAIN:
            return f"drain {clean(command.subject)} (start no more jobs)?"
        case Action.RESUME:
            return f"start jobs on {clean(command.subject)} again?"
    return f"{command.action.value} {clean(command.subject)}?"


# --- the whole screen -------------------------------------------------------------------------------------------------


def frame(snapshot: Snapshot | None, view: View, columns: int, lines: int, problem: str = "") -> list[Line]:
    """The screen: exactly this many lines, none longer than `columns`."""
    if columns < MIN_COLUMNS or lines < MIN_ROWS:
        text = f"the monitor needs {MIN_COLUMNS}x{MIN_ROWS}, the terminal has {columns}x{lines} (q quits)"
        drawn: list[Line] = [((("alarm", piece)),) for piece in wrap(text, columns)]
    elif view.page is not None:
        drawn = page_lines(view.page, columns, lines, problem)
    elif snapshot is None:
        drawn = [(("alarm", _cut(f"reconnecting: {clean(problem)}", columns)),)]
    else:
        drawn = _panes(snapshot, view, columns, lines, problem)
    return drawn[:lines] + [()] * (lines - len(drawn))


def _panes(snapshot: Snapshot, view: View, columns: int, lines: int, problem: str) -> list[Line]:
    above, below = head(snapshot, problem, columns), foot(snapshot, view, columns)
    heights = heights_of(lines - len(above) - len(below) - len(Pane), snapshot)
    drawn = above
    for pane in Pane:
        body = pane_lines(snapshot, view, pane, columns, heights[pane])[: heights[pane] + 1]
        drawn += body + [()] * (heights[pane] + 1 - len(body))
    return drawn + below


def heights_of(room: int, snapshot: Snapshot) -> dict[Pane, int]:
    """The height of each pane: a few lines for clients, half of the rest for nodes, or more when jobs need less."""
    clients = min(max(len(snapshot.clients), 1), max(2, room // 5))
    rest = room - clients
    nodes = min(max(len(snapshot.nodes), 1), max(rest // 2, rest - max(len(snapshot.jobs), 2)))
    return {Pane.NODES: nodes, Pane.JOBS: rest - nodes, Pane.CLIENTS: clients}


def page_lines(page: Page, columns: int, lines: int, problem: str = "") -> list[Line]:
    """The lines of a page: a title, the visible part of the text, and the keys."""
    room = lines - 2
    drawn = _wrapped(page, columns)
    bottom = page_bottom(page, columns, lines)
    top = bottom if page.top is None else min(page.top, bottom)
    shown: list[Line] = [(("", piece),) for piece in drawn[top : top + room]]
    where = f"  {top + 1} to {min(top + room, len(drawn))} of {len(drawn)}" if bottom else ""
    status = f"  reconnecting: {clean(problem)}" if problem else ""
    keys = _keys(f"arrows PgUp PgDn Home End  q back{status}", columns)
    return [(("header-here", fit(clean(page.title) + where, columns)),), *shown, *[()] * (room - len(shown)), keys]


def page_bottom(page: Page, columns: int, lines: int) -> int:
    """The greatest index of a line that can be at the top of the page."""
    return max(0, len(_wrapped(page, columns)) - (lines - 2))


def _wrapped(page: Page, columns: int) -> list[str]:
    return [piece for line in page.lines for piece in wrap(clean(line.expandtabs(8)), columns)]


def wrap(text: str, cells: int) -> list[str]:
    """The text in pieces of at most this many cells."""
    if width(text) <= cells:
        return [text]
    pieces, piece, used = [], "", 0
    for letter in text:
        wide = width(letter)
        if used + wide > cells:
            pieces.append(piece)
            piece, used = "", 0
        piece, used = piece + letter, used + wide
    return [*pieces, piece]


def plain(snapshot: Snapshot, columns: int) -> str:
    """The whole snapshot as text without colours and keys; `columns` 0 = lines are not cut."""
    total = columns or UNLIMITED
    lines = head(snapshot, "", total)
    for pane in Pane:
        lines += [(), *pane_lines(snapshot, None, pane, total, UNLIMITED)]
    return "".join("".join(text for _, text in line).rstrip() + "\n" for line in lines)


HELP = """\
up, down, PgUp, PgDn, Home, End   select a line (also j and k)
Tab, Shift-Tab                    go to the next pane: nodes, jobs, clients
/                                 show only lines that contain a text; Esc shows all lines
s                                 sort by the next column
Enter                             show details of the job or node, or the jobs of the client
l                                 show the output of the job, and follow it
d                                 drain the node, or resume it (asks for confirmation)
x                                 kill the job (asks for confirmation)
?, h                              show this page
q, Ctrl-C                         quit

CPU      use of all cores of the node, now and over the last minute
FREE     memory that is available to programs
SLOTS    runs on the node, of those that it takes at once
REASON   why a job waits; Enter shows the reason for each node
"""
