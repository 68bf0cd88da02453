"""The commands, as click knows them, and one call of the command line.

The module of a command is imported when the command is called. Errors in arguments are printed, not raised.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import click

from sshgrid.cli.base import Verb, global_options
from sshgrid.client import files
from sshgrid.client.session import INTERRUPTED, Session, reporting_errors

if TYPE_CHECKING:
    from sshgrid.errors import UsageError

# command -> (module, name in it, summary for `sshgrid --help`, which does not import the module)
VERBS = {
    "run": ("cli.run", "run", "Run a program on the least busy node that can run it."),
    "sweep": ("cli.sweep", "sweep", "Run a program over many parameters."),
    "ps": ("cli.query", "ps", "List jobs that wait or run."),
    "info": ("cli.query", "info", "Show the details of a job, and why it waits."),
    "logs": ("cli.run", "logs", "Show the stored output of a job."),
    "attach": ("cli.run", "attach", "Follow a job and exit with its status."),
    "wait": ("cli.run", "wait", "Wait until jobs have ended."),
    "kill": ("cli.query", "kill", "Cancel waiting or running jobs."),
    "progress": ("cli.sweep", "progress", "Show the progress of a sweep."),
    "retry": ("cli.sweep", "retry", "Run ended jobs, or tasks of a sweep, again."),
    "rm": ("cli.query", "rm", "Remove ended jobs and their output."),
    "hold": ("cli.query", "hold", "Keep waiting jobs from starting."),
    "release": ("cli.query", "release", "Release held jobs."),
    "nodes": ("cli.query", "nodes", "List nodes, their load and their toolchains."),
    "node": ("cli.node", "node_group", "Add, remove, check and drain nodes."),
    "toolchains": ("cli.query", "toolchains", "List languages and the nodes that have them."),
    "inventory": ("cli.inventory", "inventory_group", "Show, check and edit the inventory file."),
    "user": ("cli.user", "user_group", "Manage the users of the SSH gateway."),
    "master": ("cli.master", "master", "Start, stop and inspect the master."),
    "doctor": ("cli.doctor", "doctor", "Show settings and find problems."),
    "monitor": ("cli.verbs", "monitor", "Show nodes, jobs and clients live, on the full screen."),
    "shell": ("cli.verbs", "shell", "Start a shell for these commands."),
    "completion": ("cli.completion", "completion", "Print a completion script for bash, zsh or fish."),
    "version": ("cli.query", "version", "Print the version."),
}


class _LazyVerbs(click.Group):
    """Imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb in VERBS if _is_allowed(ctx, verb)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS or not _is_allowed(ctx, cmd_name):
            return None
        module, name, _ = VERBS[cmd_name]
        found: click.Command = getattr(import_module(f"sshgrid.{module}"), name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(verb, VERBS[verb][2]) for verb in self.list_commands(ctx)])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            from sshgrid.errors import UsageError

            raise UsageError(f"no such command: {args[0]}", _suggestion(args[0]))
        if args and args[0] in VERBS and not _is_allowed(ctx, args[0]):
            from sshgrid.errors import NotAllowed

            raise NotAllowed(f"{args[0]} is not available through the SSH gateway", "help")
        return super().resolve_command(ctx, args)


def _is_allowed(ctx: click.Context, verb: str) -> bool:
    """Whether this session may run the command: not all commands are available through the SSH gateway."""
    session = ctx.find_object(Session)
    return session is None or session.gateway is None or verb in session.gateway.verbs


def _suggestion(name: str) -> str:
    import difflib

    if files.exists(name):
        return f"sshgrid run {name}"
    close = difflib.get_close_matches(name, VERBS, 1)
    return f"sshgrid {close[0]}" if close else "sshgrid --help"


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from sshgrid.version import VERSION

        click.echo(f"sshgrid {VERSION}")
        ctx.exit()


@click.group(cls=_LazyVerbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_print_version,
    help="Print the version and exit.",
)
def cli() -> None:
    """Make one computer of all machines that you can reach with ssh.

    `sshgrid run FILE [ARGS]` runs a program on the least busy node that can run it, and exits with its exit code.
    """


cli.params += global_options(hidden=False)


@click.command()
@click.pass_context
def shell(ctx: click.Context, /) -> int:
    """Start a shell for these commands, with completion, history and a live count of jobs and nodes."""
    from sshgrid.cli.base import session_of
    from sshgrid.shell import repl

    return repl(session_of(ctx), _CommandLine())


@click.command(cls=Verb)
@click.option("--once", is_flag=True, help="Print the screen once as text, or as JSON with --json.")
@click.pass_context
def monitor(ctx: click.Context, /, once: bool) -> int:
    """Show nodes, jobs and clients live, on the full screen; press ? for its keys."""
    from sshgrid import monitor as monitoring
    from sshgrid.cli.base import session_of

    session = session_of(ctx)
    return monitoring.print_once(session) if once or session.json else monitoring.run_live(session)


class _CommandLine:
    """The command line as the shell calls it."""

    group = cli

    def invoke(self, argv: Sequence[str], session: Session) -> int:
        return invoke(argv, session)


# --- one call of the command line ------------------------------------------------------------------------------------


def invoke(argv: Sequence[str], session: Session) -> int:
    """Run one command and return its exit status; errors are printed, not raised."""
    return reporting_errors(session, lambda: _invoke(argv, session))


def _invoke(argv: Sequence[str], session: Session) -> int:
    try:
        return int(cli.main(list(argv), prog_name="sshgrid", standalone_mode=False, obj=session) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        session.json |= "--json" in argv  # the error may come before --json was parsed
        raise _usage_error(error) from error
    except click.Abort:
        return INTERRUPTED


def _usage_error(error: click.ClickException) -> UsageError:
    from sshgrid.errors import UsageError

    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context is not None else "sshgrid --help"
    message = error.format_message().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], hint)
