"""`sshgrid run` without click: the usual options are parsed here, everything else is left to click.

Importing click takes about a fifth of the time of a short `run`. Both parsers use one table of options, and a test
compares their results for many command lines. This parser reports no errors: for an unknown option, a missing value or
a value that must be checked it returns None, and click parses the same arguments and reports the error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sshgrid.client.run_options import FLAG, GLOBAL_OPTIONS, PATH, TEXT, Option, defaults_of, options_of
from sshgrid.client.session import Session, reporting_errors


class ParsedRun:
    """The result of parsing: `settings` for the session, FILE, ARGS, and a value for each option of `run`."""

    def __init__(
        self, settings: Mapping[str, Any], file: str, args: tuple[str, ...], options: Mapping[str, Any]
    ) -> None:
        self.settings, self.file, self.args, self.options = settings, file, args, options


def _by_flag(options: Iterable[Option]) -> dict[str, Option]:
    return {flag: option for option in options if option.kind in (TEXT, FLAG, PATH) for flag in option.flags}


_GLOBAL = _by_flag(GLOBAL_OPTIONS)
_RUN = _by_flag(options_of("run"))


def parse(argv: Sequence[str]) -> ParsedRun | None:
    """The meaning of these arguments, or None when click must parse them."""
    settings: dict[str, Any] = {}
    options = defaults_of("run")
    rest = list(reversed(argv))
    verb = ""
    while rest:
        argument = rest.pop()
        if argument == "-" or not argument.startswith("-"):
            if verb and argument:
                return ParsedRun(settings, argument, tuple(reversed(rest)), options)
            verb = argument
            if verb != "run":
                return None
        elif not _take(argument, rest, settings, _GLOBAL) and not (verb and _take(argument, rest, options, _RUN)):
            return None
    return None


def _take(argument: str, rest: list[str], values: dict[str, Any], known: Mapping[str, Option]) -> bool:
    """Store one option and its value in `values`. False when it is not one of `known` or its value is missing."""
    flag, equals, value = argument.partition("=") if argument.startswith("--") else (argument, "", "")
    option = known.get(flag)
    if option is None:
        return False
    if option.kind == FLAG:
        values[option.name] = True
        return not equals
    if not equals and not rest:
        return False
    if not equals:
        value = rest.pop()
    values[option.name] = (*values[option.name], value) if option.many else value
    return True


def run(parsed: ParsedRun, session: Session) -> int:
    """Run the job and return the exit status; errors are printed, not raised."""
    for name, value in parsed.settings.items():
        setattr(session, name, value)
    from sshgrid.client import run_job

    return reporting_errors(session, lambda: run_job.run(session, parsed.file, parsed.args, parsed.options))
