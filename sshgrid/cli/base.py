"""Base classes of commands in click: every command takes the global options before and after its name.

The values of global options are stored in the session (sshgrid.client.session).
"""

from __future__ import annotations

from typing import Any

import click

from sshgrid.cli.options import global_options
from sshgrid.client.session import Session

_AFTER_THE_NAME = global_options(hidden=True)


class Verb(click.Command):
    """A command that takes the global options."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params = [*self.params, *_AFTER_THE_NAME]


class Verbs(click.Group):
    """A group that takes the global options and lists its commands in the order of their definition."""

    command_class = Verb
    group_class = type

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.params = [*self.params, *_AFTER_THE_NAME]

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


pass_session = click.make_pass_decorator(Session, ensure=True)


def session_of(ctx: click.Context) -> Session:
    """The session that the global options were stored in."""
    return ctx.ensure_object(Session)
