"""What all commands share: the session (global options and what follows from them), the click classes, completion.

Global options are taken before the verb and after it. Nothing here connects, reads a file or imports more than click
before a command asks for it: `sshgrid --help` is to be quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from sshgrid.cli.render import Look
    from sshgrid.client import Connection
    from sshgrid.errors import SshgridError
    from sshgrid.model import JobId
    from sshgrid.paths import Places

T = TypeVar("T")
PIPE_CLOSED = 141  # 128 + SIGPIPE, as a shell shows it for other tools


class Session:
    """One command's surroundings. Global options write into it, commands read it."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self.environ = os.environ if environ is None else environ
        self.inventory: str | None = None
        self.state_dir: str | None = None
        self.json = False
        self.color = "auto"
        self.quiet = False
        self.verbose = 0
        self.no_input = False
        self.in_shell = False

    def child(self) -> Session:
        """For one line of the shell: what was said when the shell began still holds."""
        other = Session(self.environ)
        other.__dict__.update(self.__dict__)
        other.in_shell = True
        return other

    # --- places and master

    def places(self, *, must_exist: bool = True) -> Places:
        from sshgrid import paths

        home = self.environ.get("HOME") or os.path.expanduser("~")
        found = paths.places(
            self.inventory, self.environ, _cwd(), home, state_flag=self.state_dir, must_exist=must_exist
        )
        for note in found.notes:
            self.warn(note)
        return found

    def connect(self, *, start: bool = True) -> Connection:
        from sshgrid import client

        return client.connect(self.places(), start=start, say=self.warn)

    # --- talk

    @property
    def out(self) -> Look:
        return self._look(1)

    @property
    def err(self) -> Look:
        return self._look(2)

    def _look(self, descriptor: int) -> Look:
        from sshgrid.cli.render import Look

        return Look.detect(descriptor, self.color, self.environ)

    def talks(self) -> bool:
        """Whether a person wants to hear how things go, and not only what went wrong."""
        return self.verbose > 0 or (self.err.terminal and not self.quiet and not self.json)

    def say(self, text: str) -> None:
        """To stderr, for a person; nothing without a terminal or -v."""
        if self.talks():
            self.warn(text)

    def warn(self, text: str) -> None:
        """To stderr, always."""
        from sshgrid.cli.render import write_err

        write_err(self.err.safe(text) + "\n")

    def show(self, value: Callable[[], object], text: Callable[[], str]) -> None:
        """To stdout: `value` as one line of JSON with --json, else `text`."""
        from sshgrid.cli.render import to_json, write_out

        write_or_leave(write_out, to_json(value()) + "\n" if self.json else text())

    def confirm(self, question: str, otherwise: str) -> bool:
        """Ask on the terminal; UsageError with the hint `otherwise` where nobody can be asked."""
        from sshgrid.errors import UsageError

        if self.no_input or sys.stdin is None or not sys.stdin.isatty() or not self.err.terminal:
            raise UsageError(f"{question} Nobody is there to answer.", otherwise)
        return click.confirm(self.err.safe(question), err=True)

    # --- jobs

    def jobs(self, connection: Connection, selector: str) -> tuple[JobId, ...]:
        """The ids a selector names; a plain number needs no question to the master."""
        from sshgrid.model import JobId
        from sshgrid.wire import Jobs, JobsReply

        if selector.isascii() and selector.isdigit():
            return (JobId(int(selector)),)
        return tuple(job.id for job in connection.ask(Jobs(selector), JobsReply).jobs)

    def one_job(self, connection: Connection, selector: str) -> JobId:
        from sshgrid.errors import NoSuchJob, UsageError

        found = self.jobs(connection, selector)
        if len(found) > 1:
            raise UsageError(f"{selector} names {len(found)} jobs; one is wanted here", "sshgrid ps -a")
        if not found:
            raise NoSuchJob(f"no such job: {selector}", "sshgrid ps -a")
        return found[0]


def write_or_leave(write: Callable[[str], None], text: str) -> None:
    """Whoever closed our stdout wants no more: leave as other tools do, without a word."""
    try:
        write(text)
    except BrokenPipeError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)  # so that the interpreter's last flush does not fail again
        raise SystemExit(PIPE_CLOSED) from None


def _cwd() -> str:
    try:
        return os.getcwd()
    except OSError:  # the folder we are in was removed
        return "/"


def report(session: Session, error: SshgridError) -> int:
    """Say what went wrong, as text or JSON; the exit status."""
    from sshgrid.cli import render

    if session.json:
        write_or_leave(render.write_out, render.to_json(_encodable(render.error_object(error))) + "\n")
    else:
        render.write_err(render.error_text(error, session.err))
    if session.verbose > 1:
        import traceback

        render.write_err("".join(traceback.format_exception(error)))
    return error.exit_status


def _encodable(value: object) -> object:
    """JSON is UTF-8; a file name in a message need not be."""
    match value:
        case str():
            return value.encode("utf-8", "backslashreplace").decode("utf-8")
        case dict():
            return {key: _encodable(inner) for key, inner in value.items()}
    return value


# --- click -----------------------------------------------------------------------------------------------------------


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
    from sshgrid.quantities import parse_duration

    return parse_duration(text)


def _size(text: str) -> int:
    from sshgrid.quantities import parse_size

    return parse_size(text)


DURATION = Parsed("duration", _duration)
SIZE = Parsed("size", _size)


# --- completion ------------------------------------------------------------------------------------------------------


def complete_nodes(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names and tags of nodes, for the shell's completion."""
    from sshgrid.wire import Nodes, NodesReply

    reply = _ask_quietly(ctx, lambda connection: connection.ask(Nodes(), NodesReply))
    lines = reply.nodes if reply else ()
    tags = sorted({f"@{tag}" for line in lines for tag in line.tags})
    return _items(incomplete, [(line.name, str(line.state)) for line in lines] + [(tag, "tag") for tag in tags])


def complete_jobs(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The newest jobs, `last` and `all`, for the shell's completion."""
    from sshgrid.wire import Jobs, JobsReply

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
    from sshgrid import client
    from sshgrid.errors import SshgridError

    session = ctx.find_object(Session) or Session()
    try:
        with client.Connection.open(session.places().socket, timeout_seconds=1.0) as connection:
            return ask(connection)
    except (OSError, SshgridError):
        return None


def session_of(ctx: click.Context) -> Session:
    """The session that the global options have written into."""
    return ctx.ensure_object(Session)
