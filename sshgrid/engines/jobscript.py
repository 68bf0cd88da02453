"""Writes `job.sh` of a program, the file that the wrapper on a node sources. Pure text.

Every value is quoted once, by `shlex.quote`, and is a word of a POSIX sh script; no value of the user becomes part of
an ssh command line. A NUL byte, which no argument can hold, is a UsageError.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence

from sshgrid import toolchains
from sshgrid.engines.launch import BUILD_LIMIT_SECONDS, BatchSpec, RunSpec, task_name
from sshgrid.errors import UsageError
from sshgrid.model import Facts, Limits, Program, Recipe, sweep_of, task_number


def job_script(spec: RunSpec, facts: Facts, lease_uptime: float | None = None) -> bytes:
    """Return the bytes of job.sh. `lease_uptime`: the node's uptime at which a run that is not renewed ends itself."""
    if isinstance(spec, BatchSpec):
        return _batch_script(spec, facts, lease_uptime)
    lines = [
        *_head(spec, facts, lease_uptime),
        *_function("environment", _environment(_variables(spec), facts)),
        *_function("program", [b"exec " + b" ".join(_run_word(word, b'"$1"') for word in spec.recipe.run)]),
    ]
    return b"\n".join(lines) + b"\n"


def _batch_script(batch: BatchSpec, facts: Facts, lease_uptime: float | None) -> bytes:
    lines = [
        *_head(batch, facts, lease_uptime),
        *_function("environment", _environment(_variables(batch), facts)),
        _assign("TASKS", str(len(batch.tasks))),
        _lang(facts),
    ]
    return b"\n".join(lines) + b"\n" + tasks_script(batch.run, batch.tasks, keep_warm=batch.keep_warm)


def tasks_script(batch: str, tasks: Sequence[RunSpec], *, keep_warm: bool = False) -> bytes:
    """Return one line for each of these tasks of a batch, to be sourced by its lane."""
    mark = {"SSHGRID_BATCH": f"{batch}/".encode()}
    variables = [_variables(spec) | mark for spec in tasks]
    common = dict(set(variables[0].items()).intersection(*(each.items() for each in variables[1:])))
    lines = [
        _assign("KEEP_WARM", str(int(keep_warm))),
        b"COMMON=" + _quote(_assignments(common)),
        *(_task(spec, own, common.keys()) for spec, own in zip(tasks, variables, strict=True)),
    ]
    return b"\n".join(lines) + b"\n"


def _task(spec: RunSpec, variables: Mapping[str, bytes], common: Collection[str]) -> bytes:
    own = _assignments({name: value for name, value in variables.items() if name not in common})
    build = b'"$W"/builds/' + spec.recipe.build_key.encode()
    stdin = spec.program.stdin.sha256 if spec.program.stdin else "-"
    words = (_run_word(word, build) for word in spec.recipe.run)
    return b" ".join((b"task", task_name(spec).encode(), stdin.encode(), _quote(own), *words))


def _assignments(variables: Mapping[str, bytes]) -> bytes:
    return b" ".join(name.encode() + b"=" + _quote(value) for name, value in variables.items())


def _lang(facts: Facts) -> bytes:
    return b": ${LANG:=C.UTF-8}; export LANG" if "C.UTF-8" in facts.helpers else b":"


def _head(spec: RunSpec, facts: Facts, lease_uptime: float | None) -> list[bytes]:
    """Return the lines that are the same for a run and a batch."""
    recipe, limits = spec.recipe, spec.program.limits
    return [
        _assign("BUILD", recipe.build_key),
        _assign("COMPILES", "1" if recipe.compile else "0"),
        _assign("ISOLATION", spec.isolation(facts)),
        _assign("USER_NAMESPACE", "" if facts.uid == 0 else "--user --map-current-user"),
        _assign("INPUT", spec.program.stdin.sha256 if spec.program.stdin else ""),
        _assign("DATA", str(int(bool(spec.program.data or spec.program.packs)))),
        # Other tasks of a sweep need the object at the same time.
        _assign("LEND", str(int(spec.lend and sweep_of(spec.attempt.job) is None))),
        _assign("KEEP_CHILDREN", str(int(spec.keep_children))),
        _assign("INTERACTIVE", str(int(spec.interactive))),
        _assign("LEASE", "" if lease_uptime is None else str(int(lease_uptime))),
        _assign("BUILD_LIMIT", str(BUILD_LIMIT_SECONDS * 100)),
        *_limits(limits, recipe),
        *_function("layout", _layout(recipe)),
        *_function("data", _data(spec.program)),
        *_function("tools_present", [b"[ -x " + _quote(_tool(recipe.run)) + b" ]"]),
        *_function("compile", _compile(recipe)),
    ]


def _tool(run: tuple[bytes, ...]) -> bytes:
    """Return the interpreter or runtime that must exist; a program in the build folder needs none."""
    below, tool = toolchains.placed(run[0])
    return b"/bin/sh" if below else tool


def _limits(limits: Limits, recipe: Recipe) -> list[bytes]:
    wall = "" if limits.wall_seconds is None else str(max(1, round(limits.wall_seconds * 100)))
    memory = limits.memory_bytes
    # The watchdog ends a run at its limit; this catches a program that grows faster than the watchdog looks.
    address_space = "" if memory is None or not recipe.address_space_limit else str((2 * memory + (256 << 20)) // 1024)
    return [
        _assign("WALL_LIMIT", wall),
        _assign("MEMORY_LIMIT", "" if memory is None else str(memory)),
        _assign("ADDRESS_SPACE_KB", address_space),
        _assign("OUTPUT_LIMIT", "" if limits.output_bytes is None else str(limits.output_bytes)),
        _assign("PROCESS_LIMIT", "" if limits.processes is None else str(limits.processes)),
    ]


def _layout(recipe: Recipe) -> list[bytes]:
    return [
        b"place_source %s %s %s || return"
        % (file.sha256.encode(), _quote(path.encode()), b"755" if file.executable else b"644")
        for path, file in recipe.layout
    ] or [b":"]


def _data(program: Program) -> list[bytes]:
    unpacked = [b"unpack_data %s || return" % pack.sha256.encode() for pack in program.packs]
    put = [
        b"place_data %s %s %s || return"
        % (file.sha256.encode(), _quote(file.name.encode()), b"755" if file.executable else b"644")
        for file in program.data
    ]
    return unpacked + put or [b":"]


def _variables(spec: RunSpec) -> dict[str, bytes]:
    job, sweep = spec.attempt.job, sweep_of(spec.attempt.job)
    own = {
        "SSHGRID_RUN": f"{spec.run}/",  # the slash at the end keeps 4.1 from matching 4.10
        "SSHGRID_JOB_ID": str(job if sweep is None else sweep),
        "SSHGRID_TASK_ID": str(job if sweep is None else task_number(job)),
        "SSHGRID_ATTEMPT": str(spec.attempt.number),
        "SSHGRID_NODE": spec.attempt.node,
    }
    if spec.gpus:
        own["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, spec.gpus))
    return dict([*spec.recipe.env, *spec.program.env, *((name, value.encode()) for name, value in own.items())])


def _environment(variables: Mapping[str, bytes], facts: Facts) -> list[bytes]:
    return [_lang(facts), *(b"export " + name.encode() + b"=" + _quote(value) for name, value in variables.items())]


def _compile(recipe: Recipe) -> list[bytes]:
    return [b" ".join(_quote(word.encode()) for word in command) + b" || return" for command in recipe.compile] or [
        b":"
    ]


def _run_word(word: bytes, build: bytes) -> bytes:
    """Return a word of `recipe.run`: below the build folder, which is `build` in the script, or as it is."""
    below, rest = toolchains.placed(word)
    if not below:
        return _quote(rest)
    return build + (_quote(rest) if rest else b"")


def _quote(word: bytes) -> bytes:
    if b"\0" in word:
        raise UsageError("an argument holds a NUL byte, which no program can receive")
    return shlex.quote(word.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _assign(name: str, value: str) -> bytes:
    return f"{name}={shlex.quote(value)}".encode()


def _function(name: str, body: Iterable[bytes]) -> list[bytes]:
    return [f"{name}() {{".encode(), *(b"  " + line for line in body), b"}"]
