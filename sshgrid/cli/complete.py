"""Completion of values that the master knows: nodes, users, languages and jobs.

Completing a value never starts a master; without a master, or after an error, nothing is offered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

import click

from sshgrid.client.session import Session

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sshgrid.client.connection import Connection

T = TypeVar("T")


def complete_nodes(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the names and tags of nodes."""
    from sshgrid.protocol.messages import Nodes, NodesReply

    reply = _try_request(ctx, lambda connection: connection.request(Nodes(), NodesReply))
    lines = reply.nodes if reply else ()
    tags = sorted({f"@{tag}" for line in lines for tag in line.tags})
    return _items(incomplete, [(line.name, str(line.state)) for line in lines] + [(tag, "tag") for tag in tags])


def complete_users(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the names of users, for callers that may list them."""
    from sshgrid.protocol.user_messages import Users, UsersReply

    reply = _try_request(ctx, lambda connection: connection.request(Users(), UsersReply))
    return _items(incomplete, [(line.name, str(line.role)) for line in (reply.users if reply else ())])


def complete_languages(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the languages of the master; without a master, the built-in ones."""
    from sshgrid.protocol.messages import Toolchains, ToolchainsReply
    from sshgrid.toolchains import LANGUAGES

    reply = _try_request(ctx, lambda connection: connection.request(Toolchains(), ToolchainsReply))
    if reply is None:
        return _items(incomplete, [(row.name, " ".join(row.match)) for row in LANGUAGES])
    return _items(incomplete, [(line.language, " ".join(line.match)) for line in reply.languages])


def complete_jobs(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete the IDs of the newest jobs, `last` and `all`."""
    from sshgrid.protocol.messages import Jobs, JobsReply

    reply = _try_request(ctx, lambda connection: connection.request(Jobs(), JobsReply))
    lines = reply.jobs[-200:] if reply else ()
    jobs = [(str(line.id), f"{line.state} {line.program}") for line in reversed(lines)]
    return _items(incomplete, [*jobs, ("last", "the newest job"), ("all", "all of your jobs")])


def _items(incomplete: str, values: Iterable[tuple[str, str]]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(before + comma + value, help=about) for value, about in values if value.startswith(last)]


def _try_request(ctx: click.Context, send: Callable[[Connection], T]) -> T | None:
    """The reply of a running master, or None after any error."""
    from sshgrid.errors import SshgridError

    session = ctx.find_object(Session) or Session()
    try:
        with session.connect_running() as connection:
            return send(connection)
    except (OSError, SshgridError):
        return None
