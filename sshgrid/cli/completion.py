"""Shell completion: the values that the master knows, for click.

Completion never starts a master; without one, or after an error, it offers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from sshgrid.client.session import Session

if TYPE_CHECKING:
    import click
    from click.shell_completion import CompletionItem

    from sshgrid.client.connection import Connection

T = TypeVar("T")


def complete_nodes(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names and tags of nodes, for the shell's completion."""
    from sshgrid.protocol.messages import Nodes, NodesReply

    reply = _ask_quietly(ctx, lambda connection: connection.request(Nodes(), NodesReply))
    lines = reply.nodes if reply else ()
    tags = sorted({f"@{tag}" for line in lines for tag in line.tags})
    return _items(incomplete, [(line.name, str(line.state)) for line in lines] + [(tag, "tag") for tag in tags])


def complete_users(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The users of the door, for those who may know them."""
    from sshgrid.protocol.user_messages import Users, UsersReply

    reply = _ask_quietly(ctx, lambda connection: connection.request(Users(), UsersReply))
    return _items(incomplete, [(line.name, str(line.role)) for line in (reply.users if reply else ())])


def complete_languages(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The languages that the master knows; without one those that are built in."""
    from sshgrid.protocol.messages import Toolchains, ToolchainsReply
    from sshgrid.toolchains import LANGUAGES

    reply = _ask_quietly(ctx, lambda connection: connection.request(Toolchains(), ToolchainsReply))
    if reply is None:
        return _items(incomplete, [(row.name, " ".join(row.match)) for row in LANGUAGES])
    return _items(incomplete, [(line.language, " ".join(line.match)) for line in reply.languages])


def complete_jobs(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The newest jobs, `last` and `all`, for the shell's completion."""
    from sshgrid.protocol.messages import Jobs, JobsReply

    reply = _ask_quietly(ctx, lambda connection: connection.request(Jobs(), JobsReply))
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
        with session.connect_running() as connection:
            return ask(connection)
    except (OSError, SshgridError):
        return None
