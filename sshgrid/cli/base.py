"""What all commands share in click: the global options, command classes, parameter types and shell completion.

Global options are accepted before and after the command's name and are stored in the session (sshgrid.client.session).
This module imports only click, so that `sshgrid --help` is fast.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sshgrid.client.session import Session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sshgrid.client.connection import Connection

T = TypeVar("T")


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value not in (None, False, 0):
            setattr(ctx.ensure_object(Session), name, value)

    return store


def _common(hidden: bool) -> list[click.Parameter]:
    def option(*names: str, store: str, help: str, **more: Any) -> click.Option:  # noqa: A002 - click's own word
        return click.Option(names, expose_value=False, callback=_store(store), help=help, hidden=hidden, **more)

    return [
        option("-i", "--inventory", store="inventory", metavar="FILE", help="The inventory to use."),
        option("--master", store="master", metavar="URL", help="A master elsewhere: ssh://user@host:4200."),
        option("--json", store="json", is_flag=True, is_eager=True, help="Print JSON."),
        option("--color", store="color", type=click.Choice(["auto", "always", "never"]), help="When to use colour."),
        option("-q", "--quiet", store="quiet", is_flag=True, help="Only errors."),
        option("-v", "--verbose", store="verbose", count=True, help="Say more; -vv shows tracebacks."),
        option("--no-input", store="no_input", is_flag=True, help="Never ask."),
    ]


GLOBAL_OPTIONS = _common(hidden=False)
_AFTER_THE_VERB = _common(hidden=True)


class Verb(click.Command):
    """A command that takes the global options too."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params = [*self.params, *_AFTER_THE_VERB]


class Verbs(click.Group):
    """A group whose commands are listed in the order in which they were written."""

    command_class = Verb
    group_class = type

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params = [*self.params, *_AFTER_THE_VERB]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


pass_session = click.make_pass_decorator(Session, ensure=True)


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # not generic before click 8.3


class Parsed(_ParamType):
    """An option's value through a function that raises our UsageError."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from sshgrid.errors import UsageError

        if not isinstance(value, str) or (ctx is not None and ctx.resilient_parsing):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            option = f"{param.opts[-1]}: " if param else ""
            raise UsageError(option + error.message, error.hint) from error


def _duration(text: str) -> float:
    from sshgrid.notation.quantities import parse_duration

    return parse_duration(text)


def _size(text: str) -> int:
    from sshgrid.notation.quantities import parse_size

    return parse_size(text)


DURATION = Parsed("duration", _duration)
SIZE = Parsed("size", _size)


# --- completion ------------------------------------------------------------------------------------------------------


def complete_nodes(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names and tags of nodes, for the shell's completion."""
    from sshgrid.protocol.messages import Nodes, NodesReply

    reply = _ask_quietly(ctx, lambda connection: connection.ask(Nodes(), NodesReply))
    lines = reply.nodes if reply else ()
    tags = sorted({f"@{tag}" for line in lines for tag in line.tags})
    return _items(incomplete, [(line.name, str(line.state)) for line in lines] + [(tag, "tag") for tag in tags])


def complete_users(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The users of the door, for those who may know them."""
    from sshgrid.protocol.user_messages import Users, UsersReply

    reply = _ask_quietly(ctx, lambda connection: connection.ask(Users(), UsersReply))
    return _items(incomplete, [(line.name, str(line.role)) for line in (reply.users if reply else ())])


def complete_languages(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The languages that the master knows; without one those that are built in."""
    from sshgrid.protocol.messages import Toolchains, ToolchainsReply
    from sshgrid.toolchains import LANGUAGES

    reply = _ask_quietly(ctx, lambda connection: connection.ask(Toolchains(), ToolchainsReply))
    if reply is None:
        return _items(incomplete, [(row.name, " ".join(row.match)) for row in LANGUAGES])
    return _items(incomplete, [(line.language, " ".join(line.match)) for line in reply.languages])


def complete_jobs(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The newest jobs, `last` and `all`, for the shell's completion."""
    from sshgrid.protocol.messages import Jobs, JobsReply

    reply = _ask_quietly(ctx, lambda connection: connection.ask(Jobs(), JobsReply))
    lines = reply.jobs[-200:] if reply else ()
    words = [(str(line.id), f"{line.state} {line.program}") for line in reversed(lines)]
    return _items(incomplete, [*words, ("last", "the newest"), ("all", "all of yours")])


def _items(incomplete: str, words: Iterable[tuple[str, str]]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(before + comma + word, help=about) for word, about in words if word.startswith(last)]


def _ask_quietly(ctx: click.Context, ask: Callable[[Connection], T]) -> T | None:
    """Completion never starts a master and never says what is wrong."""
    from sshgrid.errors import SshgridError

    session = ctx.find_object(Session) or Session()
    try:
        with session.look() as connection:
            return ask(connection)
    except (OSError, SshgridError):
        return None


def session_of(ctx: click.Context) -> Session:
    """The session that the global options have written into."""
    return ctx.ensure_object(Session)
