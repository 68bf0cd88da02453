#!/usr/bin/env python3
"""Write the man pages, one for each command: `make man`, or scripts/build_man.py [FOLDER] (default: docs/man).

The options come from the commands, the table of exit codes from docs/exit-codes.md, and the examples, files and
environment variables from docs/man/sections.toml. The pages are committed, so that building a wheel does not need this
script; a test checks that they are up to date.

click-man (0.6) is not used: it reads `Group.commands` and does not find the verbs, which are imported on demand; it
cuts the sentence under NAME at 45 characters, escapes neither backslashes nor `--` in the text, and cannot add
defaults, examples, exit codes, files or the environment.
"""

from __future__ import annotations

import re
import sys
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs" / "_ext"), str(ROOT)]

from sshgrid_docs import command_tree  # noqa: E402 - needs the path above

from sshgrid.cli.verbs import VERBS  # noqa: E402
from sshgrid.version import VERSION  # noqa: E402

FOLDER = ROOT / "docs" / "man"
EXIT_CODES = ROOT / "docs" / "exit-codes.md"
WIDTH = 78

# The rows of the table of exit codes that a page shows, by their first column; other pages show OTHER.
PROGRAM = ("the program's", "128+N", "2", "124", "125", "126", "127", "130", "137", "141")
SWEEP = ("0 to 101", "2", "125", "130", "141")
OTHER = ("1", "2", "125")
EXIT_STATUS = {
    "sshgrid": (*PROGRAM, "0 to 101", "1"),
    "sshgrid run": PROGRAM,
    "sshgrid attach": PROGRAM,
    "sshgrid wait": (*PROGRAM, "1"),
    "sshgrid sweep": SWEEP,
}


# --- roff -------------------------------------------------------------------------------------------------------------

_NAMED = {"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "~": r"\(ti", "^": r"\(ha", '"': r"\(dq"}


def literal(text: str) -> str:
    """Escape text that must be copied unchanged: option names, commands."""
    return _start_of_line("".join(_NAMED.get(char, _plain(char)) for char in text))


def prose(text: str) -> str:
    """Wrap a help text, each sentence on a new line; text in backquotes becomes bold."""
    words = re.sub(r"`+", "`", " ".join(text.split()))
    return "\n".join(line for sentence in re.split(r"(?<=[.;])\s(?=[A-Z`])", words) for line in _wrapped(sentence))


def _wrapped(sentence: str) -> Iterator[str]:
    parts = sentence.split("`")
    marked = (rf"\fB{_fixed(part)}\fP" if number % 2 else _words(part) for number, part in enumerate(parts))
    for line in textwrap.wrap("".join(marked), WIDTH, break_on_hyphens=False, break_long_words=False):
        yield _start_of_line(line)


def _fixed(text: str) -> str:
    """A span of code: lines do not break at its spaces."""
    return literal(text).removeprefix(r"\&").replace(" ", r"\ ")


def _words(text: str) -> str:
    r"""A hyphen in a word stays a hyphen; `-d` and `--to` are options, whose hyphens must be minus signs (`\-`)."""
    escaped = "".join(char if char in "-'" else _NAMED.get(char, _plain(char)) for char in text)
    return re.sub(r"(?<![\w-])-{1,2}(?=\w)", lambda found: r"\-" * len(found[0]), escaped)


def _plain(char: str) -> str:
    return char if char.isascii() else rf"\[u{ord(char):04X}]"


def _start_of_line(text: str) -> str:
    """Escape a control character at the start of a line, which would make the line a roff request."""
    return r"\&" + text if text.startswith((".", "'")) else text


def block(text: str) -> str:
    r"""Indented lines that keep their breaks; without `.EX`, which only GNU roff has."""
    lines = "\n".join(literal(line) for line in text.splitlines())
    return f".PP\n.RS 4\n.nf\n{lines}\n.fi\n.RE\n"


def item(head: str, text: str) -> str:
    return f".TP\n{head}\n{prose(text)}\n"


def section(title: str, body: str) -> str:
    return f".SH {title}\n{body}" if body else ""


# --- a command --------------------------------------------------------------------------------------------------------


def page_name(path: str) -> str:
    """ "sshgrid node add" -> "sshgrid-node-add"."""
    return path.replace(" ", "-")


def purpose(path: str, context: click.Context) -> str:
    """One line for `whatis`, without capital letter and full stop."""
    verb = path.removeprefix("sshgrid ")
    text = VERBS[verb][2] if verb in VERBS else context.command.get_short_help_str(400)
    if path == "sshgrid":
        text = "run programs on the machines that you can ssh into"
    text = re.split(r"[.:;] ", text.replace("`", ""), maxsplit=1)[0].strip().rstrip(".:;")
    return text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def option_head(names: str) -> str:
    r""" "-d, --detach" and "--on SEL" with bold names and italic values."""
    marked = []
    for part in names.split(", "):
        name, space, value = part.partition(" ")
        marked.append(rf"\fB{literal(name)}\fP" + (rf" \fI{literal(value)}\fP" if space else ""))
    return ", ".join(marked)


def option_text(option: click.Option) -> str:
    words = [option.help or ""]
    if isinstance(option.type, click.IntRange) and not option.count and (bounds := _bounds(option.type)):
        words.append(bounds)
    shown = option.default
    if isinstance(shown, int | float | str) and not option.is_flag and not option.count and shown != "":
        words.append(f"Default: `{shown}`.")
    return " ".join(word for word in words if word)


def _bounds(kind: click.IntRange) -> str:
    if kind.min is not None and kind.max is not None:
        return f"From {kind.min} to {kind.max}."
    return f"At least {kind.min}." if kind.min is not None else ""


def options(context: click.Context) -> Iterator[tuple[str, click.Option]]:
    """("-d, --detach", the option) for each option that `--help` shows."""
    for parameter in context.command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Option) and record:
            yield record[0], parameter


def _description(context: click.Context) -> str:
    paragraphs = textwrap.dedent(context.command.help or "").strip().split("\n\n")
    if context.command.epilog:
        paragraphs.append(context.command.epilog)
    return "\n.PP\n".join(prose(paragraph) for paragraph in paragraphs) + "\n"


def _commands(path: str, context: click.Context) -> str:
    command = context.command
    if not isinstance(command, click.Group):
        return ""
    return "".join(
        item(
            rf"\fB{literal(page_name(path))}\-{literal(name)}\fP(1)",
            VERBS[name][2] if path == "sshgrid" else _child(context, name).get_short_help_str(400),
        )
        for name in command.list_commands(context)
    )


def _child(context: click.Context, name: str) -> click.Command:
    assert isinstance(context.command, click.Group)
    child = context.command.get_command(context, name)
    assert child is not None
    return child


def _global_options(path: str, context: click.Context, root: click.Context) -> str:
    if path == "sshgrid":
        return ""
    names = ", ".join(names.split(", ")[0].split(" ")[0] for names, option in options(root) if not option.expose_value)
    where = "before the command and after it" if _takes_global_options(context) else "before the command"
    where = "before FILE" if path in ("sshgrid run", "sshgrid sweep") else where
    shown = ", ".join(f"`{name}`" for name in names.split(", ") if name not in ("--version", "-h"))
    return f".PP\n{prose(f'The global options {shown} can be given {where};')}\nsee\n.BR sshgrid (1).\n"


def _takes_global_options(context: click.Context) -> bool:
    return any("--inventory" in parameter.opts for parameter in context.command.params)


# --- sections from other sources -----------------------------------------------------------------------------------


def exit_codes() -> dict[str, str]:
    """Code -> meaning, from docs/exit-codes.md; Markdown links become their text."""
    rows = re.findall(r"^\| ([^|]+?) \| ([^|]+?) \| [^|]*\|$", EXIT_CODES.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        code: re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", meaning) for code, meaning in rows if code not in ("code", "---")
    }


def _exit_status(path: str) -> str:
    codes, wanted = exit_codes(), EXIT_STATUS.get(path, OTHER)
    success = "" if wanted[0] in ("the program's", "0 to 101") else item(r"\fB0\fP", "Success.")
    if path != "sshgrid":
        codes["1"] = codes["1"].removeprefix("other commands: ")
    return success + "".join(item(rf"\fB{literal(code)}\fP", _sentence(codes[code])) for code in wanted)


def _sentence(text: str) -> str:
    text = text if text.startswith(("`", "sshgrid")) else text[:1].upper() + text[1:]
    return text + ("" if text.endswith(".") else ".")


def _table(rows: Iterable[Mapping[str, Any]], path: str) -> str:
    return "".join(
        item(rf"\fB{literal(row['name'])}\fP", row["text"]) for row in rows if path in row.get("commands", (path,))
    )


def _examples(rows: Iterable[tuple[str, str]]) -> str:
    return "".join(f".PP\n{prose(words)}\n{block(command)}" for words, command in rows).removeprefix(".PP\n")


def _see_also(path: str, context: click.Context, paths: Iterable[str]) -> str:
    """The pages above and below this one, and those beside it."""
    parent = path.rpartition(" ")[0]
    depth = path.count(" ")
    near = [
        other
        for other in paths
        if other != path
        and (
            other == "sshgrid"
            or other == parent
            or (other.startswith(path + " ") and other.count(" ") == depth + 1)
            or (depth > 1 and other.rpartition(" ")[0] == parent)
            or other in _RELATED.get(path, ())
        )
    ]
    names = [rf"\fB{literal(page_name(other))}\fP(1)" for other in sorted(near)]
    return ",\n".join([*names, *_OTHERS.get(path, ())]) + "\n"


_RELATED = {
    "sshgrid run": ("sshgrid sweep", "sshgrid attach", "sshgrid logs", "sshgrid wait", "sshgrid kill"),
    "sshgrid sweep": ("sshgrid run", "sshgrid progress", "sshgrid retry", "sshgrid attach"),
    "sshgrid ps": ("sshgrid info", "sshgrid logs", "sshgrid nodes"),
    "sshgrid info": ("sshgrid ps", "sshgrid logs"),
    "sshgrid logs": ("sshgrid attach", "sshgrid info"),
    "sshgrid attach": ("sshgrid logs", "sshgrid wait", "sshgrid run"),
    "sshgrid wait": ("sshgrid attach", "sshgrid ps"),
    "sshgrid kill": ("sshgrid hold", "sshgrid ps"),
    "sshgrid progress": ("sshgrid sweep",),
    "sshgrid retry": ("sshgrid sweep", "sshgrid run"),
    "sshgrid rm": ("sshgrid ps",),
    "sshgrid hold": ("sshgrid release",),
    "sshgrid release": ("sshgrid hold",),
    "sshgrid nodes": ("sshgrid node", "sshgrid toolchains", "sshgrid monitor"),
    "sshgrid toolchains": ("sshgrid nodes",),
    "sshgrid doctor": ("sshgrid node check", "sshgrid inventory check", "sshgrid master status"),
    "sshgrid monitor": ("sshgrid shell", "sshgrid nodes", "sshgrid ps"),
    "sshgrid shell": ("sshgrid monitor",),
}
_OTHERS = {
    "sshgrid": (r"\fBssh\fP(1)", r"\fBssh_config\fP(5)"),
    "sshgrid sweep": (r"\fBparallel\fP(1)",),
    "sshgrid node add": (r"\fBssh_config\fP(5)", r"\fBssh\-copy\-id\fP(1)"),
    "sshgrid master start": (r"\fBssh\fP(1)",),
    "sshgrid run": (r"\fBssh\fP(1)", r"\fBtimeout\fP(1)"),
}


# --- pages ------------------------------------------------------------------------------------------------------------


def sections() -> dict[str, Any]:
    return tomllib.loads((FOLDER / "sections.toml").read_text(encoding="utf-8"))


def pages() -> dict[str, str]:
    """File name -> text of every man page. KeyError when a command has no example."""
    tree, rest = dict(command_tree()), sections()
    return {f"{page_name(path)}.1": _page(path, tree, rest) for path in tree}


def _page(path: str, tree: Mapping[str, click.Context], rest: Mapping[str, Any]) -> str:
    context, name = tree[path], page_name(path)
    usage = " ".join(context.command.collect_usage_pieces(context))
    listed = "".join(item(option_head(names), option_text(option)) for names, option in options(context))
    return "".join(
        (
            # No date in .TH: the same sources give the same page on each day.
            '.\\" Written by scripts/build_man.py (make man): edit the help texts, or docs/man/sections.toml.\n',
            f'.TH {literal(name.upper())} 1 "" "sshgrid {VERSION}" "sshgrid manual"\n',
            # No hyphenation, and left-aligned text.
            ".nh\n.ad l\n",
            section("NAME", f"{literal(name)} \\- {prose(purpose(path, context))}\n"),
            section("SYNOPSIS", f"\\fB{_fixed(path)}\\fP\n{literal(usage)}\n"),
            section("DESCRIPTION", _description(context)),
            section("COMMANDS", _commands(path, context)),
            section("OPTIONS", listed + _global_options(path, context, tree["sshgrid"])),
            section("EXIT STATUS", _exit_status(path)),
            section("ENVIRONMENT", _table(rest["environment"], path)),
            section("FILES", _table(rest["files"], path)),
            section("EXAMPLES", _examples(rest["examples"][path])),
            section("SEE ALSO", _see_also(path, context, tree)),
        )
    )


def write(folder: Path) -> None:
    """Write all pages into `folder`, and remove pages of commands that no longer exist."""
    folder.mkdir(parents=True, exist_ok=True)
    built = pages()
    for old in folder.glob("*.1"):
        if old.name not in built:
            old.unlink()
    for name, text in built.items():
        (folder / name).write_text(text, encoding="ascii")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
