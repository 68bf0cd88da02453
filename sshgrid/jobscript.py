"""From a resolved program to `job.sh`, the file that the wrapper on a node sources. Pure text.

Every value is quoted once, by `shlex.quote`, and arrives as a word of a POSIX sh script; nothing of the user's is ever
part of a command line of ssh. Refuses a NUL byte, which no argument can carry.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable

from sshgrid import toolchains
from sshgrid.errors import UsageError
from sshgrid.model import Attempt, Facts, Limits, Noun, OnHostLoss, Program, Recipe

BUILD_LIMIT_SECONDS = 600
# What a node may take to see that a lease has ended, and to end the run: a look a second, KILL, and a slow machine.
LEASE_MARGIN_SECONDS = 4.0


class Order(Noun, frozen=True):
    """One attempt, ready to be given to a node."""

    attempt: Attempt
    run: str  # <grid>-<job>.<attempt>: the name of the run folder
    program: Program
    recipe: Recipe
    interactive: bool = False
    terminal: bool = False
    keep_children: bool = False
    on_host_loss: OnHostLoss = OnHostLoss.RELAUNCH
    worked_seconds: float = 0.0  # of a run that an earlier master started: how long ago

    def isolation(self, facts: Facts) -> str:
        """What keeps the run apart on that node. A pid namespace would end whatever the program leaves running."""
        return "session" if self.keep_children else facts.isolation


def run_name(grid: str, attempt: Attempt) -> str:
    """The name of an attempt's folder on its node."""
    return f"{grid}-{attempt.job}.{attempt.number}"


def job_script(order: Order, facts: Facts, lease_uptime: float | None = None) -> bytes:
    """The bytes of job.sh. `lease_uptime`: the run ends itself then, in the node's uptime, unless it is renewed."""
    recipe, limits = order.recipe, order.program.limits
    lines = [
        _assign("BUILD", recipe.build_key),
        _assign("COMPILES", "1" if recipe.compile else "0"),
        _assign("ISOLATION", order.isolation(facts)),
        _assign("USER_NAMESPACE", "" if facts.uid == 0 else "--user --map-current-user"),
        _assign("INPUT", order.program.stdin.sha256 if order.program.stdin else ""),
        _assign("DATA", str(int(bool(order.program.data or order.program.packs)))),
        _assign("KEEP_CHILDREN", str(int(order.keep_children))),
        _assign("INTERACTIVE", str(int(order.interactive))),
        _assign("LEASE", "" if lease_uptime is None else str(int(lease_uptime))),
        _assign("BUILD_LIMIT", str(BUILD_LIMIT_SECONDS * 100)),
        *_limits(limits, recipe),
        *_function("layout", _layout(recipe)),
        *_function("data", _data(order.program)),
        *_function("environment", _environment(order, facts)),
        *_function("tools_present", [b"[ -x " + _quote(_tool(recipe.run)) + b" ]"]),
        *_function("compile", _compile(recipe)),
        *_function("program", [b"exec " + b" ".join(_run_word(word) for word in recipe.run)]),
    ]
    return b"\n".join(lines) + b"\n"


def _tool(run: tuple[bytes, ...]) -> bytes:
    """The interpreter or runtime that must be there; a program of the build folder needs none."""
    below, tool = toolchains.placed(run[0])
    return b"/bin/sh" if below else tool


def _limits(limits: Limits, recipe: Recipe) -> list[bytes]:
    wall = "" if limits.wall_seconds is None else str(max(1, round(limits.wall_seconds * 100)))
    memory = limits.memory_bytes
    # The watchdog ends a run at its limit; the address space is only a backstop for what outruns it.
    backstop = "" if memory is None or not recipe.address_space_limit else str((2 * memory + (256 << 20)) // 1024)
    return [
        _assign("WALL_LIMIT", wall),
        _assign("MEMORY_LIMIT", "" if memory is None else str(memory)),
        _assign("ADDRESS_SPACE_KB", backstop),
        _assign("OUTPUT_LIMIT", "" if limits.output_bytes is None else str(limits.output_bytes)),
        _assign("PROCESS_LIMIT", "" if limits.processes is None else str(limits.processes)),
    ]


def _layout(recipe: Recipe) -> list[bytes]:
    return [
        b"place %s %s %s || return"
        % (file.sha256.encode(), _quote(path.encode()), b"755" if file.executable else b"644")
        for path, file in recipe.layout
    ] or [b":"]


def _data(program: Program) -> list[bytes]:
    unpacked = [b"unpack %s || return" % pack.sha256.encode() for pack in program.packs]
    put = [
        b"put %s %s %s || return"
        % (file.sha256.encode(), _quote(file.name.encode()), b"755" if file.executable else b"644")
        for file in program.data
    ]
    return unpacked + put or [b":"]


def needed(program: Program) -> tuple[str, ...]:
    """Digests of what a run needs beside its build."""
    files = (*((program.stdin,) if program.stdin else ()), *program.data, *program.packs)
    return tuple(dict.fromkeys(file.sha256 for file in files))


def _environment(order: Order, facts: Facts) -> list[bytes]:
    own = {
        "SSHGRID_RUN": f"{order.run}/",  # closed by a slash: 4.1 must not be found in 4.10
        "SSHGRID_JOB_ID": str(order.attempt.job),
        "SSHGRID_TASK_ID": str(order.attempt.job),
        "SSHGRID_ATTEMPT": str(order.attempt.number),
        "SSHGRID_NODE": order.attempt.node,
    }
    lines = [b": ${LANG:=C.UTF-8}; export LANG"] if "C.UTF-8" in facts.helpers else []
    pairs = [*order.recipe.env, *order.program.env, *((name, value.encode()) for name, value in own.items())]
    return lines + [b"export " + name.encode() + b"=" + _quote(value) for name, value in pairs]


def _compile(recipe: Recipe) -> list[bytes]:
    return [b" ".join(_quote(word.encode()) for word in command) + b" || return" for command in recipe.compile] or [
        b":"
    ]


def _run_word(word: bytes) -> bytes:
    """A word of `recipe.run`: below the build folder, which the node gives as the first parameter, or as it is."""
    below, rest = toolchains.placed(word)
    if not below:
        return _quote(rest)
    return b'"$1"' + (_quote(rest) if rest else b"")


def _quote(word: bytes) -> bytes:
    if b"\0" in word:
        raise UsageError("an argument holds a NUL byte, which no program can receive")
    return shlex.quote(word.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _assign(name: str, value: str) -> bytes:
    return f"{name}={shlex.quote(value)}".encode()


def _function(name: str, body: Iterable[bytes]) -> list[bytes]:
    return [f"{name}() {{".encode(), *(b"  " + line for line in body), b"}"]
