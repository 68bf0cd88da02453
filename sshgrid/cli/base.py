"""What all commands share in click: options made from the table (sshgrid.client.run_options), types, command classes.

Every command takes the global options before and after its name; their values are stored in the session
(sshgrid.client.session). This module imports only click, so that `sshgrid --help` is fast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from sshgrid.client.run_options import COUNT, FLAG, GLOBAL_OPTIONS, Option, options_of
from sshgrid.client.session import Session

F = TypeVar("F", bound=Callable[..., Any])

# --- types of values -------------------------------------------------------------------------------------------------

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # not generic before click 8.3


class Parsed(_ParamType):
    """A type of values that a function parses, which raises UsageError."""

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


# --- options from the table ------------------------------------------------------------------------------------------


def run_options(verb: str) -> Callable[[F], F]:
    """A decorator that adds the options of "run" or "sweep" to a command."""

    def add(command: F) -> F:
        for option in reversed(list(options_of(verb))):
            default = None if option.many else option.default
            text = option.help[verb] + (" Can be repeated." if option.many else "")
            click.option(*option.flags, option.name, help=text, default=default, **_settings(option))(command)
        return command

    return add


def global_options(*, hidden: bool) -> list[click.Parameter]:
    """The global options, whose values go into the session."""
    return [
        click.Option(
            (*option.flags, option.name),
            help=option.help["run"],
            hidden=hidden,
            expose_value=False,
            callback=_store(option.name),
            is_eager=option.name == "json",  # so that errors in later options are printed as JSON
            **_settings(option),
        )
        for option in GLOBAL_OPTIONS
    ]


def _settings(option: Option) -> dict[str, Any]:
    """The keyword arguments of click for this row."""
    settings: dict[str, Any] = {"metavar": option.metavar, "multiple": option.many}
    if option.completes:
        settings["shell_complete"] = _completion(option.completes)
    if option.kind == FLAG:
        return {**settings, "is_flag": True}
    if option.kind == COUNT:
        return {**settings, "count": True}
    return {**settings, "type": _type(option)}


def _completion(name: str) -> Callable[[click.Context, click.Parameter, str], Any]:
    """The function `complete_NAME`, imported when it is called, so that `--help` does not import it."""

    def complete(ctx: click.Context, parameter: click.Parameter, incomplete: str) -> Any:
        from sshgrid.cli import complete as values

        return getattr(values, f"complete_{name}")(ctx, parameter, incomplete)

    return complete


def _type(option: Option) -> Any:
    match option.kind:
        case "text":
            return click.STRING
        case "path":
            return click.Path()
        case "integer":
            return click.IntRange(option.least, option.most)
        case "choice":
            return click.Choice(option.choices)
        case "duration":
            return DURATION
        case "size":
            return SIZE
    raise AssertionError(f"unknown kind of option: {option.kind}")


def _store(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def store(ctx: click.Context, _: click.Parameter, value: Any) -> None:
        if value not in (None, False, 0):
            setattr(ctx.ensure_object(Session), name, value)

    return store


# --- what SEL, D and SIZE stand for, at the end of a help text --------------------------------------------------------

JOBS_EPILOG = "SEL: 42, 3-8, 1,3,5, 42.17 (task 17 of sweep 42), last, or all."
NODES_EPILOG = "SEL: alpha, node[01-10], @TAG, !beta, or several of them: '@fast,!beta'."
RUN_EPILOG = f"{NODES_EPILOG} D: 500ms, 10s, 5m, 2h or 1d. SIZE: 512M or 4G."


# --- command classes -------------------------------------------------------------------------------------------------

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
