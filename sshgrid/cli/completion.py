"""The command `completion`: a script that lets a shell complete commands, options and values."""

from __future__ import annotations

import click

from sshgrid.cli.base import Verb, session_of
from sshgrid.errors import UsageError


@click.command(cls=Verb)
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> int:
    """Print a completion script for SHELL: bash, zsh or fish.

    For bash: source <(sshgrid completion bash)
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError(f"no completion script for {shell}")
    script = kind(ctx.find_root().command, {}, "sshgrid", "_SSHGRID_COMPLETE").source()
    session_of(ctx).show(lambda: {"schema": 1, "script": script}, lambda: script)
    return 0
