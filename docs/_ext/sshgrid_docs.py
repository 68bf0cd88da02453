"""Pages that cannot drift: `<!-- generated: NAME -->` becomes what GENERATORS[NAME] reads from the code.

Each generator is a function without arguments that gives Markdown; the tests call them too. Refuses an unknown NAME.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from docutils import nodes

from sshgrid import inventory
from sshgrid.cli.verbs import cli
from sshgrid.protocol import messages
from sshgrid.toolchains import LANGUAGES

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "sshgrid"
sys.path.append(str(ROOT / "scripts"))

import draw_layout  # noqa: E402 - needs the path above

MARKER = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)


# --- Markdown ---------------------------------------------------------------------------------------------------------


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; the cells are Markdown already."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def prose(text: str) -> str:
    """A docstring's words as one Markdown paragraph: what Markdown would take for markup outside code is escaped."""
    words = " ".join(text.split()).replace("``", "`")
    parts = words.split("`")
    parts[::2] = [re.sub(r"([<*_\[\]{}])", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


# --- the module map ---------------------------------------------------------------------------------------------------


def modules() -> dict[str, str]:
    """Dotted name -> docstring of every module that says something; the empty ones only make packages."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        words = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if words:
            found[name.removesuffix(".__init__")] = words
    return found


def other_files() -> dict[str, str]:
    """What is not Python: the shell code for nodes and the SQL, with the first sentence of its first comment."""
    found = {}
    for path in sorted([*PACKAGE.rglob("*.sh"), *PACKAGE.rglob("*.sql")]):
        lines = path.read_text(encoding="utf-8").splitlines()
        comment = []
        for line in lines:
            if not line.startswith(("# ", "-- ")):
                break
            if not line.startswith("# shellcheck "):
                comment.append(line.split(" ", 1)[1])
        found[path.relative_to(PACKAGE).as_posix()] = re.split(r"(?<=\.)\s", " ".join(comment), maxsplit=1)[0]
    return found


def module_map() -> str:
    """A table for each folder, those that import most first, and one of the modules at the top level."""
    rooms = draw_layout.rooms()
    level = draw_layout.floors({name: room.imports for name, room in rooms.items()})
    by_room: dict[str, list[tuple[str, str]]] = {}
    for name, words in modules().items():
        by_room.setdefault(name.split(".")[0], []).append((code(name), prose(words.split("\n\n")[0])))
    for name, words in other_files().items():
        by_room.setdefault(name.split("/")[0], []).append((code(name), prose(words)))
    folders = [name for name in rooms if (PACKAGE / name).is_dir()]
    parts = [
        f"### {name}\n\nFloor {level[name]}.\n\n{table(('module', 'purpose'), by_room[name])}"
        for name in sorted(folders, key=lambda name: (-level[name], name))
    ]
    single = [row for name, rows in by_room.items() if name not in folders for row in rows]
    return "\n".join([*parts, f"### The top level\n\n{table(('module', 'purpose'), single)}"])


def layout() -> str:
    """The picture of folders and imports, inside the page, so that it has the page's colours."""
    return f'```{{raw}} html\n<div class="drawing">\n{draw_layout.svg(draw_layout.rooms())}</div>\n```\n'


# --- the command line -------------------------------------------------------------------------------------------------


def command_tree() -> Iterator[tuple[str, click.Context]]:
    """("sshgrid node add", its context) of every command, as `--help` lists them."""
    yield from _commands(click.Context(cli, info_name="sshgrid", **cli.context_settings))


def _commands(context: click.Context) -> Iterator[tuple[str, click.Context]]:
    yield context.command_path, context
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            assert command is not None
            yield from _commands(click.Context(command, info_name=name, parent=context))


def command_reference() -> str:
    return "\n".join(_command(path, context) for path, context in command_tree())


def _command(path: str, context: click.Context) -> str:
    command = context.command
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    help_text = textwrap.dedent(command.help or command.short_help or "").strip()
    text = f"{'##' if path.count(' ') < 2 else '###'} {path}\n\n```text\n{usage}\n```\n\n"
    text += "\n\n".join(prose(paragraph) for paragraph in help_text.split("\n\n")) + "\n"
    rows = [record for parameter in command.params if (record := parameter.get_help_record(context))]
    if isinstance(command, click.Group) and path != "sshgrid":
        names = command.list_commands(context)
        text += "\nCommands: " + ", ".join(f"[{name}](#{path.replace(' ', '-')}-{name})" for name in names) + "\n"
    if rows:
        text += "\n" + table(
            ("option", "meaning"), ((code(option), prose(meaning)) for option, meaning in rows if meaning)
        )
    return text


# --- inventory.yaml ---------------------------------------------------------------------------------------------------


def inventory_reference() -> str:
    schema: Mapping[str, Any] = inventory.json_schema()
    kinds = schema["$defs"]
    top = {name: value for name, value in schema["properties"].items() if name not in _SECTIONS}
    text = "### The whole file\n\n" + _keys({**top, **{name: {"section": name} for name in _SECTIONS}})
    for name, (kind, words) in _SECTIONS.items():
        text += f"\n### `{name}`\n\n{words}\n\n" + _keys(kinds[kind]["properties"], kinds[kind].get("required", ()))
    return text


_SECTIONS = {
    "defaults": ("Defaults", "Values for all nodes. Groups and nodes override them."),
    "nodes": (
        "NodeFields",
        "One entry for each node or range of nodes: `node[01-10]`, where `{name}` in `host`, `ssh_config`, "
        "`identity_file`, `known_hosts` and `workdir` stands for each node's name.",
    ),
    "toolchains": (
        "LanguageFields",
        "A new language, or a change to a built-in one. Commands are lists of words, not shell strings.",
    ),
    "groups": (
        "GroupFields",
        "Values that several nodes share: `nodes`, `max_jobs_per_user`, and all keys of `defaults`.",
    ),
    "retry": ("RetryFields", "The retries after a host failure."),
}


def _keys(properties: Mapping[str, Mapping[str, Any]], required: Iterable[str] = ()) -> str:
    rows = []
    for name, value in properties.items():
        if "section" in value:
            rows.append((code(name), "a mapping", f"see [below](#{name})"))
            continue
        words = prose(str(value.get("description", "")))
        if "default" in value and "default" not in words:
            words += ("; " if words else "") + f"default: `{_yaml(value['default'])}`"
        rows.append((code(name), _kind(value), words + (" (must be there)" if name in required else "")))
    return table(("key", "value", "meaning"), rows)


def _kind(value: Mapping[str, Any]) -> str:
    """What may be written there, in words."""
    if "const" in value:
        return code(str(value["const"]))
    if "enum" in value:
        return " or ".join(code(str(each)) for each in value["enum"])
    if "anyOf" in value:
        return " or ".join(_kind(each) for each in value["anyOf"])
    kind = value.get("type", "anything")
    words = " or ".join([kind] if isinstance(kind, str) else list(kind))
    if kind == "array":
        items = _kind(value.get("items", {}))
        return "list of lists of words" if items.startswith("list") else f"list of {items}"
    low, high = value.get("minimum", value.get("exclusiveMinimum")), value.get("maximum")
    if isinstance(kind, str) and high is not None:
        words += f", {low} to {high}"
    return {"string": "text", "boolean": "`true` or `false`", "string or number": _measure(value)}.get(words, words)


def _measure(value: Mapping[str, Any]) -> str:
    return "a share: `80%` or `0.8`" if "%" in str(value.get("pattern")) else "a duration: `500ms`, `10s`, `5m`, `2h`"


def _yaml(value: object) -> str:
    match value:
        case list():
            return "[" + ", ".join(_yaml(each) for each in value) + "]"
        case float():
            return f"{value:g}s"
        case _:
            return str(value)


# --- languages and the wire -------------------------------------------------------------------------------------------


def language_table() -> str:
    rows = (
        (
            f"`{row.name}`",
            " ".join(code(glob) for glob in row.match) or "mode x",
            "<br>".join(code(" ".join(command)) for command in row.compile) or "-",
            code(" ".join(row.run)),
        )
        for row in LANGUAGES
    )
    return table(("language", "files", "compile", "run"), rows)


def requests() -> str:
    return _messages(get_args(messages.Request))


def events() -> str:
    return _messages(get_args(messages.Event))


def _messages(kinds: Iterable[type[Any]]) -> str:
    rows = []
    for kind in kinds:
        words = kind.__doc__ or ""
        fields = ", ".join(code(name) for name in kind.__struct_fields__)
        rows.append((code(kind.__struct_config__.tag), fields, prose(words.split("\n\n")[0])))
    return table(('"type"', "fields", "meaning"), rows)


# --- the extension ----------------------------------------------------------------------------------------------------

GENERATORS: Mapping[str, Callable[[], str]] = {
    "commands": command_reference,
    "events": events,
    "inventory": inventory_reference,
    "languages": language_table,
    "layout": layout,
    "modules": module_map,
    "requests": requests,
}


def fill(text: str) -> str:
    """A page with everything generated in its place."""
    return MARKER.sub(lambda found: GENERATORS[found[1]](), text)


def _fill_page(_: Sphinx, __: str, source: list[str]) -> None:
    source[0] = fill(source[0])


# A drawing whose colours are those of the page it stands in: it must be part of the page, not an <img>.
_THEMED = "var(--color-foreground-primary"


def _put_drawings_into_pages(app: Sphinx, doctree: nodes.document) -> None:
    """Replace each image that is a themed SVG by the SVG itself."""
    if app.builder.format != "html":
        return
    for image in list(doctree.findall(nodes.image)):
        path = Path(app.srcdir, image["uri"])
        if path.suffix == ".svg" and _THEMED in (drawing := path.read_text(encoding="utf-8")):
            image.replace_self(nodes.raw("", f'<div class="drawing">{drawing}</div>', format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.connect("source-read", _fill_page)
    app.connect("doctree-read", _put_drawings_into_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
