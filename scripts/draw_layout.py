#!/usr/bin/env python3
"""Draw the imports between the folders of sshgrid/: the figure that docs/_ext puts into the manual.

A room is a folder, or a module at the top level. Its floor is one more than the highest floor that it imports from;
rooms in an import cycle share a floor. Imports inside functions count, those under TYPE_CHECKING do not. As a command,
the script prints the SVG, or with `--text` one line for each room.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "sshgrid"

WIDTH, ROOM_HEIGHT, FLOOR_HEIGHT, GAP, LEFT, TOP = 960, 44, 92, 14, 34, 18


@dataclass
class Room:
    """A folder or a top-level module."""

    name: str
    purpose: str = ""
    modules: int = 0
    lines: int = 0
    imports: set[str] = field(default_factory=set)


# --- imports of the code ----------------------------------------------------------------------------------------------


def rooms(package: Path = PACKAGE) -> dict[str, Room]:
    """Name -> room, without `__init__` and `__main__` of the package. The shell code for nodes imports nothing."""
    found: dict[str, Room] = {}
    for path in sorted([*package.rglob("*.py"), *package.glob("*/*.sh")]):
        inside = path.relative_to(package)
        name = inside.parts[0].removesuffix(".py")
        if name in ("__init__", "__main__"):
            continue
        source = path.read_text(encoding="utf-8")
        room = found.setdefault(name, Room(name))
        room.modules += 1
        room.lines += source.count("\n")
        if path.suffix == ".sh":
            room.purpose = "POSIX shell code that runs on nodes"
            continue
        tree = ast.parse(source)
        room.imports |= {other for other in _imported(tree, package.name) if other != name}
        if len(inside.parts) == 1 or inside.parts[1:] == ("__init__.py",):
            room.purpose = first_sentence(ast.get_docstring(tree) or "")
    for room in found.values():
        room.imports &= found.keys()
    return found


def first_sentence(docstring: str) -> str:
    return " ".join(docstring.split("\n\n")[0].split()).split(". ")[0].rstrip(".").replace("`", "")


def _imported(tree: ast.Module, package: str) -> Iterator[str]:
    """The names of the rooms that are imported at run time."""
    for node in _at_run_time(tree):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str(module), names=names):
                modules = [f"{module}.{alias.name}" for alias in names]
            case _:
                continue
        yield from (module.split(".")[1] for module in modules if module.startswith(f"{package}."))


def _at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those under `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")):
            yield from _at_run_time(child)
        else:
            for other in child.orelse:
                yield from _at_run_time(other)


def reachable(imports: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """The rooms that each room imports, directly or indirectly."""
    found = {}
    for name in imports:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            new = set(imports[waiting.pop()]) - seen
            seen |= new
            waiting += new
        found[name] = seen
    return found


def floors(imports: Mapping[str, Iterable[str]]) -> dict[str, int]:
    """Room -> floor: 0 without imports; all rooms of a cycle have the same floor."""
    below = reachable(imports)
    found: dict[str, int] = {}
    # In the order of how many rooms each reaches: those below a room have their floor before it, except for its cycle.
    for name in sorted(imports, key=lambda name: (len(below[name]), name)):
        cycle = {other for other in below[name] if name in below[other]}
        under = [found[other] + 1 for other in below[name] - cycle]
        found[name] = max(under, default=0)
    return found


def needed(imports: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """The imports without those that follow from others: `a -> c` is left out if there is `a -> b -> c`."""
    below = reachable(imports)
    return {
        name: {
            other
            for other in others
            if not any(
                other in below[between] and between not in below[other] for between in others if between != other
            )
        }
        for name, others in imports.items()
    }


# --- the picture ------------------------------------------------------------------------------------------------------

STYLE = """
.layout{--ink:var(--color-foreground-primary,#1f2328);--soft:var(--color-foreground-muted,#59636e);\
--paper:var(--color-background-primary,#fff);--box:var(--color-background-secondary,#f6f8fa);\
--edge:var(--color-background-border,#d1d9e0);--mark:var(--color-brand-primary,#0f766e)}
@media (prefers-color-scheme:dark){.layout{--ink:var(--color-foreground-primary,#e6edf3);\
--soft:var(--color-foreground-muted,#9198a1);--paper:var(--color-background-primary,#0d1117);\
--box:var(--color-background-secondary,#151b23);--edge:var(--color-background-border,#3d444d);\
--mark:var(--color-brand-primary,#5eead4)}}
.layout text{font:13px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:var(--ink);\
text-anchor:middle}
.layout .n{font-weight:600}.layout .s,.layout .f{font-size:11px;fill:var(--soft)}.layout .f{text-anchor:start}
.layout .paper{fill:var(--paper)}.layout .floor{stroke:var(--edge);stroke-dasharray:2 5}
.layout .room rect{fill:var(--box);stroke:var(--edge)}.layout .room:hover rect{stroke:var(--mark);stroke-width:2}
.layout .way{fill:none;stroke:var(--soft);stroke-width:1;opacity:.6}
"""


def svg(found: Mapping[str, Room]) -> str:
    """Draw all rooms, the highest floor at the top, and the imports that do not follow from others."""
    imports = {name: room.imports for name, room in found.items()}
    level = floors(imports)
    ways = needed(imports)
    places = _places(level, ways)
    top = max(level.values(), default=0)
    height = TOP * 2 + top * FLOOR_HEIGHT + ROOM_HEIGHT
    lines, boxes, rules = [], [], []
    for floor in range(top + 1):
        y = TOP + (top - floor) * FLOOR_HEIGHT + ROOM_HEIGHT / 2
        lines.append(
            f'<path class="floor" d="M{LEFT} {y:g}H{WIDTH}"/><text class="f" x="6" y="{y + 4:g}">{floor}</text>'
        )
    for name, (x, width) in places.items():
        y = TOP + (top - level[name]) * FLOOR_HEIGHT
        rules.append(f".layout:has(.r-{name}:hover) .from-{name}")
        lines += [
            _way(name, other, x + width / 2, y, places[other], TOP + (top - level[other]) * FLOOR_HEIGHT)
            for other in sorted(ways[name])
        ]
        boxes.append(_box(found[name], x, y, width))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="layout" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="The folders of sshgrid, from the command line down to the model, and the imports between them">'
        f"<style>{STYLE}{','.join(rules)}{{stroke:var(--mark);stroke-width:2;opacity:1}}\n</style>"
        f'<rect class="paper" width="{WIDTH}" height="{height}"/>'
        f'<text class="f" x="6" y="{TOP - 4}">below a name: files · lines</text>'
        + "\n".join([*lines, *boxes])
        + "</svg>\n"
    )


def _places(level: Mapping[str, int], ways: Mapping[str, Iterable[str]]) -> dict[str, tuple[float, float]]:
    """Room -> (left, width), floor by floor from the lowest: a room is placed above the rooms that it imports."""
    places: dict[str, tuple[float, float]] = {}
    for floor in range(max(level.values(), default=0) + 1):
        names = sorted(name for name, its_floor in level.items() if its_floor == floor)
        names.sort(key=lambda name: _middle([places[other] for other in ways[name] if other in places]))
        widths = [max(74.0, 8.2 * len(name) + 26) for name in names]
        free = WIDTH - LEFT - sum(widths)
        space = max(GAP, free / (len(names) + 1))
        x = LEFT + max(0.0, (WIDTH - LEFT - sum(widths) - space * (len(names) - 1)) / 2)
        for name, width in zip(names, widths, strict=True):
            places[name] = (x, width)
            x += width + space
    return places


def _middle(places: list[tuple[float, float]]) -> float:
    return sum(x + width / 2 for x, width in places) / len(places) if places else WIDTH / 2


def _way(name: str, other: str, x: float, y: float, place: tuple[float, float], other_y: float) -> str:
    begin, end = (x, y + ROOM_HEIGHT), (place[0] + place[1] / 2, other_y)
    if other_y <= y:  # in a cycle, on one floor
        return (
            f'<path class="way from-{name}" d="M{begin[0]:.0f} {begin[1]:.0f}'
            f'Q{(begin[0] + end[0]) / 2:.0f} {begin[1] + 30:.0f} {end[0]:.0f} {end[1] + ROOM_HEIGHT:.0f}"/>'
        )
    bend = min(46.0, (end[1] - begin[1]) / 2)
    return (
        f'<path class="way from-{name}" d="M{begin[0]:.0f} {begin[1]:.0f}'
        f'C{begin[0]:.0f} {begin[1] + bend:.0f} {end[0]:.0f} {end[1] - bend:.0f} {end[0]:.0f} {end[1]:.0f}"/>'
    )


def _box(room: Room, x: float, y: float, width: float) -> str:
    size = f"{room.modules} files, {room.lines} lines" if room.modules > 1 else f"{room.lines} lines"
    short = f"{room.modules} · {room.lines}" if room.modules > 1 else f"{room.lines}"
    title = f"{room.name}: {room.purpose} ({size}). Imports {', '.join(sorted(room.imports)) or 'nothing of sshgrid'}."
    middle = x + width / 2
    return (
        f'<g class="room r-{room.name}"><title>{escape(title)}</title>'
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{ROOM_HEIGHT}" rx="8"/>'
        f'<text class="n" x="{middle:.0f}" y="{y + 19:.0f}">{escape(room.name)}</text>'
        f'<text class="s" x="{middle:.0f}" y="{y + 35:.0f}">{short}</text></g>'
    )


def as_text(found: Mapping[str, Room]) -> str:
    """A line for each room: floor, name, size, imports."""
    level = floors({name: room.imports for name, room in found.items()})
    return "".join(
        f"{level[name]:2} {name:12} {room.modules:3} files {room.lines:6} lines  {' '.join(sorted(room.imports))}\n"
        for name, room in sorted(found.items(), key=lambda item: (-level[item[0]], item[0]))
    )


if __name__ == "__main__":
    sys.stdout.write(as_text(rooms()) if sys.argv[1:] == ["--text"] else svg(rooms()))
