"""The options of `run` and `sweep`, and the global options: one table that everything else is derived from.

The click options and their help (sshgrid.cli.base), the parser that needs no click (sshgrid.cli.fast_run), the
default values, and the fields of the submission come from these rows. Does not import click, so that `run` starts
quickly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

# The kinds of options. Values of the first three are taken as they are; the others are parsed and checked by click.
TEXT, FLAG, PATH, COUNT, INTEGER, CHOICE, DURATION, SIZE = (
    "text", "flag", "path", "count", "integer", "choice", "duration", "size",
)  # fmt: skip


class Option:
    """One row of the table.

    `run` and `sweep` are the help texts for these commands, "" when the command does not take the option; `help` is the
    text for both. `name` is the key of the value, by default the long flag. `field` is the field of the submission, or
    "limits.NAME" for a limit, that takes the value unchanged.
    """

    def __init__(
        self,
        kind: str,
        *flags: str,
        help: str = "",  # noqa: A002 - click's name for it
        run: str = "",
        sweep: str = "",
        name: str = "",
        metavar: str | None = None,
        default: Any = None,
        many: bool = False,
        choices: tuple[str, ...] = (),
        least: int | None = None,
        most: int | None = None,
        completes: str = "",
        field: str = "",
    ) -> None:
        self.kind, self.flags, self.metavar, self.many, self.field = kind, flags, metavar, many, field
        self.help = {"run": run or help, "sweep": sweep or help} if not (run or sweep) else {"run": run, "sweep": sweep}
        self.name = name or flags[-1].lstrip("-").replace("-", "_")
        self.choices, self.least, self.most, self.completes = choices, least, most, completes
        self.default = default
        if default is None:
            self.default = () if many else {TEXT: "", PATH: "", FLAG: False}.get(kind)


# Accepted before and after every command; the values become attributes of the session.
GLOBAL_OPTIONS = (
    Option(TEXT, "-i", "--inventory", metavar="FILE", help="Inventory file to use."),
    Option(TEXT, "--master", metavar="URL", help="Master to connect to: ssh://user@host:4200."),
    Option(FLAG, "--json", help="Print JSON."),
    Option(CHOICE, "--color", choices=("auto", "always", "never"), help="When to use color."),
    Option(FLAG, "-q", "--quiet", help="Print only errors."),
    Option(COUNT, "-v", "--verbose", help="Print more; -vv shows tracebacks."),
    Option(FLAG, "--no-input", help="Never prompt."),
)

_HOST_LOSS = ("relaunch", "wait", "fail", "fence")
_HOST_LOSS_HELP = "When the host stops responding: start on another node, wait, fail, or never let two runs overlap."

OPTIONS = (
    # the parameters of a sweep
    Option(
        TEXT, "-p", name="parameter", metavar="NAME=SPEC", many=True,
        sweep="Values of {NAME}: 1..100[:step], a,b,c or @FILE.",
    ),
    Option(FLAG, "--zip", sweep="Advance all parameters together instead of combining each with each."),
    Option(
        PATH, "--each-line", metavar="F", many=True, sweep="One value for each line of this file; - is standard input."
    ),
    Option(PATH, "--csv", metavar="F", many=True, sweep="One task for each row; the first line names the parameters."),
    # how a sweep runs and what it records
    Option(INTEGER, "-j", "--jobs", metavar="N", least=1, sweep="Run at most N tasks at the same time."),
    Option(FLAG, "--bar", sweep="Show a progress bar on stderr, even without a terminal."),
    Option(FLAG, "--eta", sweep="Show the estimated time left, even without a terminal."),
    Option(PATH, "--joblog", metavar="F", sweep="Write one line for each task, as GNU parallel does."),
    Option(PATH, "--results", metavar="DIR", sweep="Write a folder with the output of each task, and results.csv."),
    Option(FLAG, "--resume", sweep="Skip the tasks that --joblog or --results has recorded."),
    Option(FLAG, "--resume-failed", sweep="Like --resume, but run failed tasks again."),
    Option(DURATION, "--timeout", metavar="D", sweep="Stop a task after this time."),
    Option(INTEGER, "--max-fails", metavar="N", least=0, sweep="Stop the sweep after more than N failed tasks."),
    Option(FLAG, "--backup", sweep="Run the last tasks twice when a node is slow; the first result counts."),
    Option(
        TEXT, "--halt", metavar="WHEN,COUNT",
        sweep="WHEN: now ends running tasks, soon starts no more. COUNT: fail=, success= or done= and N or N%.",
    ),
    Option(FLAG, "--tag", sweep="Start each line of output with the task's values and a tab."),
    Option(FLAG, "-k", "--keep-order", sweep="Print output in the order of the tasks, not in the order they end."),
    # the program and its files
    Option(TEXT, "--on", metavar="SEL", completes="nodes", field="on", help="Run only on these nodes."),
    Option(
        TEXT, "--lang", metavar="NAME[>=V]", completes="languages",
        help="Programming language, when the file name does not show it.",
    ),
    Option(TEXT, "--main", metavar="FILE", help="Main file of the program, when FILE is a folder."),
    Option(
        TEXT, "--with", metavar="PATH", many=True, help="File or folder to copy into the current folder of the program."
    ),
    Option(
        TEXT, "--fetch", metavar="GLOB", many=True,
        run="Copy these files back when the program has ended, quoted: 'out/*.csv'.",
        sweep="Copy these files of each task back, quoted: 'out/*.csv'.",
    ),
    Option(
        PATH, "--into", metavar="DIR",
        run="Folder for the files of --fetch (default: the current folder).",
        sweep="Folder for the files of --fetch, with a subfolder for each task (default: --results).",
    ),
    Option(TEXT, "--env", metavar="K=V", many=True, help="Set an environment variable; K alone copies its value."),
    Option(
        TEXT, "--stdin", metavar="FILE|-|none",
        run="File to use as standard input.",
        sweep="File to use as standard input; with {NAME}, one for each task (default: none).",
    ),
    # limits and needs
    Option(DURATION, "--time-limit", metavar="D", field="limits.wall_seconds", run="Stop the program after this time."),
    Option(SIZE, "--memory", metavar="SIZE", field="limits.memory_bytes", help="Memory limit, as 512M or 4G."),
    Option(
        INTEGER, "--slots", metavar="N", default=1, least=1, field="slots",
        run="Number of slots to use: one for each thread.",
        sweep="Number of slots for each task: one for each thread.",
    ),
    Option(
        INTEGER, "--gpu", metavar="N", default=0, least=0, field="gpus",
        run="Number of GPUs to reserve.",
        sweep="Number of GPUs to reserve for each task.",
    ),
    Option(
        INTEGER, "--max-processes", metavar="N", least=1, field="limits.processes",
        run="Stop the program when it has more than N processes.",
    ),
    Option(FLAG, "--keep-children", field="keep_children", run="Do not stop processes that outlive the program."),
    Option(
        FLAG, "--verify-build", field="verify_build",
        help="Run a smoke test before using a binary that was built on another node.",
    ),
    # the queue
    Option(
        INTEGER, "--retries", metavar="N", least=0, most=100, field="retries",
        help="Number of further attempts after a host failure (default: 2).",
    ),
    Option(
        INTEGER, "--priority", metavar="N", default=0, least=-1000, most=1000, field="priority",
        help="Jobs with a higher priority start first.",
    ),
    Option(TEXT, "--name", metavar="S", field="name", help="Name to show in ps."),
    Option(
        FLAG, "-d", "--detach",
        run="Print the ID of the job and exit.",
        sweep="Print the ID of the sweep and exit.",
    ),
    Option(CHOICE, "--on-host-loss", choices=_HOST_LOSS, default="relaunch", help=_HOST_LOSS_HELP),
    Option(
        CHOICE, "--on-disconnect", choices=("keep", "cancel"), default="keep",
        run="When this client disconnects: keep the job or cancel it.",
    ),
    Option(FLAG, "-I", "--interactive", run="Connect the program to this terminal; it is never retried."),
    Option(TEXT, "--flags", metavar="TEXT", help="Compiler flags, as one argument: '-O3 -Wall'."),
    Option(FLAG, "--show-node", run="Print the node on stderr."),
    Option(
        FLAG, "--dry-run",
        run="Print the node that would be chosen, and run nothing.",
        sweep="Print the command line of each task, and run nothing.",
    ),
)  # fmt: skip


def options_of(verb: str) -> Iterator[Option]:
    """The options of "run" or "sweep", in the order of their help."""
    return (option for option in OPTIONS if option.help[verb])


def defaults_of(verb: str) -> dict[str, Any]:
    """The value of each option of this command when it is not given."""
    return {option.name: option.default for option in options_of(verb)}


def submission_fields(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values that a submission takes unchanged: its own fields, and those of its limits."""
    own, limits = dict[str, Any](), dict[str, Any]()
    for option in options_of("run"):
        if option.field.startswith("limits."):
            limits[option.field.removeprefix("limits.")] = values[option.name]
        elif option.field:
            own[option.field] = values[option.name]
    return own, limits
