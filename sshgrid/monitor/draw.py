"""The screen of the monitor as lines of styled words: what is known of the grid and what a person looks at.

Pure: the same snapshot and view give the same lines. Words of others (names, reasons, output) have their control
characters escaped. Refuses to lay anything out in less than 80x24, and says so instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

from sshgrid.client.poll import Snapshot
from sshgrid.monitor.view import SORTS, Action, Command, Page, Pane, Row, Selection, View, chosen, rows
from sshgrid.notation.quantities import format_duration, format_size
from sshgrid.protocol.messages import ClientLine, JobLine, NodeLine
from sshgrid.terminal import render

LEAST_COLUMNS, LEAST_ROWS = 80, 24
UNCUT = 1 << 20  # columns of a pipe
Part: TypeAlias = tuple[str, str]  # (style, words)
Line: TypeAlias = tuple[Part, ...]

_LEVELS = "▁▂▃▄▅▆▇█"
_AWAY = frozenset({"DOWN", "UNKNOWN"})
_KEYS = "Tab pane  / filter  s sort  Enter info  l logs  d drain  x kill  ? help  q quit"
_EMPTY = {Pane.NODES: "no nodes", Pane.JOBS: "no job waits or runs", Pane.CLIENTS: "nobody is connected"}


class Column(NamedTuple):
    """One of a pane's; the last one takes what is left."""

    title: str
    width: int
    right: bool = False


# --- words and cells --------------------------------------------------------------------------------------------------


def clean(text: str) -> str:
    """Others' words, in one line and without a character that a terminal would act upon."""
    return render.escape(text).replace("\n", "\\n").replace("\t", "\\t")


def width(text: str) -> int:
    """How many cells it takes."""
    if text.isascii():
        return len(text)
    from prompt_toolkit.utils import get_cwidth

    return get_cwidth(text)


def fit(text: str, cells: int, *, right: bool = False) -> str:
    """Exactly so many cells: padded, or cut with an ellipsis."""
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
    """The last minute, its newest end at the right; each cell is the mean of what falls into it."""
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


def as_many_as_fit(words: Sequence[str], cells: int) -> str:
    """`c cpp java +4`"""
    for count in range(len(words), -1, -1):
        more = f"+{len(words) - count}" if count < len(words) else ""
        text = " ".join(filter(None, (*words[:count], more)))
        if width(text) <= cells:
            return text
    return ""


# --- the panes --------------------------------------------------------------------------------------------------------


def _columns(pane: Pane, lines: Sequence[Row], total: int) -> list[Column]:
    room = 120 if total >= UNCUT else total
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
    """As long as the longest name where there is room for it."""
    most = least if total < 100 else least + (total - 80) // 8
    return min(max([least, *(width(clean(name)) for name in names)]), most)


def _node_cells(node: NodeLine, columns: Sequence[Column], room: int) -> list[str]:
    state = str(node.state)
    if node.state in _AWAY and (node.reason or node.next_try_seconds is not None):
        return [clean(node.name), state, _why_away(node)]
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


def _why_away(node: NodeLine) -> str:
    again = node.next_try_seconds
    when = "" if again is None else "next try now" if again < 1 else f"next try in {format_duration(round(again))}"
    return clean(", ".join(filter(None, (when, node.reason))))


def _job_cells(job: JobLine, columns: Sequence[Column], room: int) -> list[str]:
    _, user, state, node, time, tries, _, program, reason = map(clean, render.job_row(job))
    return [str(job.id), user, state, node, time, tries, reason, program]


def _client_cells(client: ClientLine, columns: Sequence[Column], room: int) -> list[str]:
    gone = "" if client.connections else "has left"
    return [
        clean(client.user),
        clean(client.address),
        render.local_time(client.since),
        str(client.programs),
        str(client.running),
        gone,
    ]


_CELLS: dict[Pane, Callable[..., list[str]]] = {
    Pane.NODES: _node_cells,
    Pane.JOBS: _job_cells,
    Pane.CLIENTS: _client_cells,
}


def _row(cells: Sequence[str], columns: Sequence[Column], total: int) -> str:
    """Cells beside each other; the last of them, whichever it is, goes to the edge."""
    text = ""
    for cell, column in zip(cells[:-1], columns, strict=False):
        text += fit(cell, column.width, right=column.right) + " "
    return text + (cells[-1] if total >= UNCUT else fit(cells[-1], max(total - width(text), 0)))


def _painted(text: str, line: Row) -> Line:
    state = "" if isinstance(line, ClientLine) else str(line.state)
    before, found, after = text.partition(f" {state} ") if state else (text, "", "")
    style = render.STATE_COLOURS.get(state, "")
    return (("", before), (style, found), ("", after)) if found else (("", text),)


def pane_lines(snapshot: Snapshot, view: View | None, pane: Pane, total: int, height: int) -> list[Line]:
    """A header and so many lines; without a view nothing is chosen."""
    looking = view or View()
    lines = rows(snapshot, looking, pane)
    here = view is not None and view.pane is pane
    place = looking.places[pane]
    index = chosen(lines, place)
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
        drawn.append((("dim", f" {_nothing(pane, place)}"),))
    return drawn


def _nothing(pane: Pane, place: Selection) -> str:
    return f"nothing here has {clean(place.filter)!r} in it" if place.filter else _EMPTY[pane]


# --- above and below them ---------------------------------------------------------------------------------------------


def head(snapshot: Snapshot, trouble: str, total: int) -> list[Line]:
    """Who is asked, whether it answers, and the sums."""
    status = snapshot.status
    up = sum(line.state not in _AWAY for line in snapshot.nodes)
    running = sum(status.jobs_by_state.get(state, 0) for state in ("RUNNING", "DISCONNECTED"))
    pending = status.jobs_by_state.get("PENDING", 0)
    slots = sum(line.slots or 0 for line in snapshot.nodes if line.state not in _AWAY)
    taken = sum(line.running for line in snapshot.nodes)
    title = f"sshgrid {clean(status.version)}  up {format_duration(round(status.uptime_seconds))}  "
    news: Part = ("dim", render.local_time(snapshot.at))
    if trouble:
        news = ("alarm", f"looking for the master: {clean(trouble)}")
    elif status.inventory_error:
        news = ("alarm", "the inventory has errors: sshgrid inventory check")
    sums = (
        f"nodes {up} of {len(snapshot.nodes)} up   slots {taken} of {slots}   "
        f"jobs {running} running, {pending} pending   {status.ended_last_minute} ended/min"
    )
    return [(("title", title), (news[0], _cut(news[1], total - len(title)))), (("", _cut(sums, total)),)]


def _cut(text: str, total: int) -> str:
    return text if width(text) <= total else fit(text, max(total, 0))


def foot(snapshot: Snapshot, view: View, total: int) -> list[Line]:
    """What was said or is asked, and the keys."""
    place = view.place
    if view.asking is not None:
        return [(("alarm", _cut(f"{question(view.asking)} [y/N] ", total)),), _keys("y yes  any other key no", total)]
    if view.typing:
        return [(("title", _cut(f"/{clean(place.filter)}_", total)),), _keys("Enter keep  Esc clear", total)]
    words = [f"{len(rows(snapshot, view, view.pane))} of {len(getattr(snapshot, view.pane.value))} {view.pane.value}"]
    words.append(f"by {SORTS[view.pane][place.sort][0]}")
    if place.filter:
        words.append(f"with {clean(place.filter)!r} (Esc clears)")
    waiting = snapshot.status.jobs_by_state.get("PENDING", 0) - sum(job.state == "PENDING" for job in snapshot.jobs)
    if view.pane is Pane.JOBS and waiting > 0:
        words.append(f"{waiting} more wait")
    said: Line = (("title", _cut(clean(view.said), total)),) if view.said else (("dim", _cut("  ".join(words), total)),)
    return [said, _keys(_KEYS, total)]


def _keys(text: str, total: int) -> Line:
    return (("keys", fit(text, total)),)


def question(command: Command) -> str:
    """What is asked before it is done."""
    match command.deed:
        case Action.KILL:
            return f"kill job {command.subject}?"
        case Action.DRAIN:
            return f"start nothing more on {clean(command.subject)}?"
        case Action.RESUME:
            return f"let {clean(command.subject)} take jobs again?"
    return f"{command.deed.value} {clean(command.subject)}?"


# --- the whole screen -------------------------------------------------------------------------------------------------


def frame(snapshot: Snapshot | None, view: View, columns: int, lines: int, trouble: str = "") -> list[Line]:
    """Exactly so many lines, none longer than so many columns."""
    if columns < LEAST_COLUMNS or lines < LEAST_ROWS:
        words = f"the monitor needs {LEAST_COLUMNS}x{LEAST_ROWS}, this is {columns}x{lines} (q leaves)"
        drawn: list[Line] = [((("alarm", piece)),) for piece in wrap(words, columns)]
    elif view.page is not None:
        drawn = page_lines(view.page, columns, lines, trouble)
    elif snapshot is None:
        drawn = [(("alarm", _cut(f"looking for the master: {clean(trouble)}", columns)),)]
    else:
        drawn = _panes(snapshot, view, columns, lines, trouble)
    return drawn[:lines] + [()] * (lines - len(drawn))


def _panes(snapshot: Snapshot, view: View, columns: int, lines: int, trouble: str) -> list[Line]:
    above, below = head(snapshot, trouble, columns), foot(snapshot, view, columns)
    heights = share(lines - len(above) - len(below) - len(Pane), snapshot)
    drawn = above
    for pane in Pane:
        body = pane_lines(snapshot, view, pane, columns, heights[pane])[: heights[pane] + 1]
        drawn += body + [()] * (heights[pane] + 1 - len(body))
    return drawn + below


def share(room: int, snapshot: Snapshot) -> dict[Pane, int]:
    """How many lines each pane gets: clients a few, nodes half of the rest, or more where jobs need less."""
    clients = min(max(len(snapshot.clients), 1), max(2, room // 5))
    rest = room - clients
    nodes = min(max(len(snapshot.nodes), 1), max(rest // 2, rest - max(len(snapshot.jobs), 2)))
    return {Pane.NODES: nodes, Pane.JOBS: rest - nodes, Pane.CLIENTS: clients}


def page_lines(page: Page, columns: int, lines: int, trouble: str = "") -> list[Line]:
    """A title, as much of the words as there is room for, and how to leave."""
    room = lines - 2
    drawn = _wrapped(page, columns)
    bottom = page_bottom(page, columns, lines)
    top = bottom if page.top is None else min(page.top, bottom)
    shown: list[Line] = [(("", piece),) for piece in drawn[top : top + room]]
    where = f"  {top + 1} to {min(top + room, len(drawn))} of {len(drawn)}" if bottom else ""
    lost = f"  looking for the master: {clean(trouble)}" if trouble else ""
    keys = _keys(f"arrows PgUp PgDn Home End  q back{lost}", columns)
    return [(("header-here", fit(clean(page.title) + where, columns)),), *shown, *[()] * (room - len(shown)), keys]


def page_bottom(page: Page, columns: int, lines: int) -> int:
    """The last line that can stand at the top of the screen."""
    return max(0, len(_wrapped(page, columns)) - (lines - 2))


def _wrapped(page: Page, columns: int) -> list[str]:
    return [piece for line in page.lines for piece in wrap(clean(line.expandtabs(8)), columns)]


def wrap(text: str, cells: int) -> list[str]:
    """Pieces of at most so many cells."""
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
    """Everything, as text without colours or keys; `columns` 0 = never cut."""
    total = columns or UNCUT
    lines = head(snapshot, "", total)
    for pane in Pane:
        lines += [(), *pane_lines(snapshot, None, pane, total, UNCUT)]
    return "".join("".join(words for _, words in line).rstrip() + "\n" for line in lines)


HELP = """\
up, down, PgUp, PgDn, Home, End   choose a line (also j and k)
Tab, Shift-Tab                    the next pane: nodes, jobs, clients
/                                 show only lines with these letters in them; Esc shows all again
s                                 sort by the next column that makes sense
Enter                             all about this job or node; of a client, its jobs
l                                 the output of this job, to its end and on
d                                 drain this node, or let it take jobs again (asks)
x                                 kill this job (asks)
?, h                              this page
q, Ctrl-C                         leave

CPU      the busy share of all of a node's cores, now and over the last minute
FREE     memory that programs can still have
SLOTS    runs that it has, of those it takes at once
REASON   why a job waits; info (Enter) says it node by node
"""
