"""The verbs, as click knows them, and one call of one of them.

Thin: a verb's module is imported when the verb is called, and none of them imports the master's libraries. Refuses to
raise: whatever is wrong with a command's words is reporting_errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import click

from sshgrid.cli.base import Verb
from sshgrid.cli.options import global_options
from sshgrid.client import files
from sshgrid.client.session import INTERRUPTED, Session, reporting_errors

if TYPE_CHECKING:
    from sshgrid.errors import UsageError

# verb -> (module, name in it, one line for `sshgrid --help`, which so need not import the module)
VERBS = {
    "run": ("cli.run", "run", "Run a program on the able and least busy node."),
    "sweep": ("cli.sweep", "sweep", "Run a program over many parameters."),
    "ps": ("cli.query", "ps", "Jobs that wait or run."),
    "info": ("cli.query", "info", "Everything about one job; for a waiting one, why."),
    "logs": ("cli.run", "logs", "The kept output of a job."),
    "attach": ("cli.run", "attach", "Follow a job; exits with its status."),
    "wait": ("cli.run", "wait", "Wait until jobs are done."),
    "kill": ("cli.query", "kill", "End jobs."),
    "progress": ("cli.sweep", "progress", "How far a sweep has come."),
    "retry": ("cli.sweep", "retry", "Run jobs that are done once more; of a sweep its tasks."),
    "rm": ("cli.query", "rm", "Forget jobs that are done, and their output."),
    "hold": ("cli.query", "hold", "Keep waiting jobs from starting."),
    "release": ("cli.query", "release", "Let held jobs go."),
    "nodes": ("cli.query", "nodes", "The nodes, how busy they are and what they have."),
    "node": ("cli.node", "node_group", "Add, remove, check and drain nodes."),
    "toolchains": ("cli.query", "toolchains", "The languages known, and which nodes have them."),
    "inventory": ("cli.inventory", "inventory_group", "The file that says which machines there are."),
    "user": ("cli.user", "user_group", "Who may come in through the door, and how much each may have."),
    "master": ("cli.master", "master", "The process that holds the queue and the connections."),
    "doctor": ("cli.doctor", "doctor", "What is set, from where, and what is wrong."),
    "monitor": ("cli.verbs", "monitor", "Nodes, jobs and clients on the whole screen, live."),
    "shell": ("cli.verbs", "shell", "A prompt that takes these commands."),
    "completion": ("cli.master", "completion", "Completion for bash, zsh or fish."),
    "version": ("cli.query", "version", "The version of this sshgrid."),
}


class _Verbs(click.Group):
    """Verbs that are imported when they are needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [verb for verb in VERBS if _is_open(ctx, verb)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS or not _is_open(ctx, cmd_name):
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

            raise UsageError(f"no such command: {args[0]}", _nearest(args[0]))
        if args and args[0] in VERBS and not _is_open(ctx, args[0]):
            from sshgrid.errors import NotAllowed

            raise NotAllowed(f"{args[0]} is not for those who come through the door", "help")
        return super().resolve_command(ctx, args)


def _is_open(ctx: click.Context, verb: str) -> bool:
    """Whether this verb is for whoever types it: through the door not all are."""
    session = ctx.find_object(Session)
    return session is None or session.gateway is None or verb in session.gateway.verbs


def _nearest(word: str) -> str:
    import difflib

    if files.exists(word):
        return f"sshgrid run {word}"
    close = difflib.get_close_matches(word, VERBS, 1)
    return f"sshgrid {close[0]}" if close else "sshgrid --help"


def _print_version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from sshgrid.version import VERSION

        click.echo(f"sshgrid {VERSION}")
        ctx.exit()


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="The version."
)
def cli() -> None:
    """Any machine that you can ssh into becomes part of one computer.

    `sshgrid run FILE [ARGS]` runs a program on the able and least busy node, and exits with its exit code.
    """


cli.params += global_options(hidden=False)


@click.command()
@click.pass_context
def shell(ctx: click.Context, /) -> int:
    """A prompt with completion, history and a live view of jobs and nodes."""
    from sshgrid.cli.base import session_of
    from sshgrid.shell import repl

    return repl(session_of(ctx), _CommandLine())


@click.command(cls=Verb)
@click.option("--once", is_flag=True, help="Print it once, as text; with --json as one value.")
@click.pass_context
def monitor(ctx: click.Context, /, once: bool) -> int:
    """Nodes, jobs and clients on the whole screen, live; `?` there shows its keys."""
    from sshgrid import monitor as live
    from sshgrid.cli.base import session_of

    session = session_of(ctx)
    return live.print_once(session) if once or session.json else live.run_live(session)


class _CommandLine:
    """What the shell is given: this command line."""

    group = cli

    def invoke(self, words: Sequence[str], session: Session) -> int:
        return invoke(words, session)


# --- one call of the command line ------------------------------------------------------------------------------------


def invoke(words: Sequence[str], session: Session) -> int:
    """Run one command; errors are printed, not raised. The exit status."""
    return reporting_errors(session, lambda: _invoke(words, session))


def _invoke(words: Sequence[str], session: Session) -> int:
    try:
        return int(cli.main(list(words), prog_name="sshgrid", standalone_mode=False, obj=session) or 0)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return 2
    except click.ClickException as error:
        session.json |= "--json" in words  # nothing was parsed: it may stand behind the mistake
        raise _usage_error(error) from error
    except click.Abort:
        return INTERRUPTED


def _usage_error(error: click.ClickException) -> UsageError:
    from sshgrid.errors import UsageError

    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context is not None else "sshgrid --help"
    message = error.format_message().rstrip(".")
    return UsageError(message[:1].lower() + message[1:], hint)
