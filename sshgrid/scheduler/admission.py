"""Checks of a submission before it becomes a job, and the language of its program.

Every submission passes through here, whatever its client has checked. A submission that would fail on every node is a
usage error.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

import msgspec

from sshgrid import toolchains
from sshgrid.errors import NoSuchNode, UnknownLanguage, UsageError
from sshgrid.model import (
    Facts,
    Language,
    Limits,
    Program,
    Submission,
    Toolchain,
)
from sshgrid.notation import globs, selectors
from sshgrid.spool.spool import Spool
from sshgrid.sweeps import checks, inputs
from sshgrid.toolchains.versions import parse_constraint

MAX_SECONDS = 10 * 365 * 86400.0
MAX_BYTES = 1 << 62
MAX_RETRIES = 1000
MAX_SLOTS = 10_000
MAX_PROCESSES = 1 << 22  # of Linux: PID_MAX_LIMIT, see proc_sys_kernel(5)
# Of Linux, see execve(2): MAX_ARG_STRLEN without its closing NUL byte, and a quarter of the default stack.
MAX_ARGUMENT_BYTES = 131_071
MAX_ARGUMENTS_BYTES = 2_000_000
_HEAD_BYTES = 4096
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# A stand-in for any node: enough to check whether a recipe can be made for a program.
_ANY_NODE = Facts("", "", "", 1, 0, "", 0, "/", "session")


def complete(submission: Submission, languages: Sequence[Language], spool: Spool) -> Submission:
    """Check a submission and add the language of its program. Raises UsageError, UnknownLanguage, FileMissing."""
    program = submission.program
    toolchains.check_program(program)
    _check_options(submission)
    globs.check(program.fetch)
    if missing := spool.blobs.missing(digests(submission, spool)):
        files = "1 file of this job was" if len(missing) == 1 else f"{len(missing)} files of this job were"
        raise UsageError(f"{files} not uploaded")
    source = spool.blobs.read(next(file.sha256 for file in program.files if file.name == program.entry))
    program = _with_language(program, source[:_HEAD_BYTES], languages)
    row = next(row for row in languages if row.name == program.language)
    toolchains.recipe(row, stand_in(row), program, source, _ANY_NODE)
    checks.check(submission, spool.blobs.read)
    return msgspec.structs.replace(submission, program=program)


def digests(submission: Submission, spool: Spool) -> Collection[str]:
    """The SHA-256 of every file that a submission needs: program, inputs, and the parameters of a sweep."""
    plan = submission.sweep
    files = (*submission.program.uploads, *(plan.uploads if plan else ()))
    named = inputs_of([plan.inputs.sha256], spool) if plan and plan.inputs else set()
    return named.union(file.sha256 for file in files)


def stand_in(row: Language) -> Toolchain:
    """A toolchain whose tools are found with PATH, for a recipe that is checked but not run."""
    return Toolchain(row.name, "", {command: command.split("|")[0] for command in toolchains.commands(row)}, "")


def _with_language(program: Program, head: bytes, languages: Sequence[Language]) -> Program:
    """The program with its language: from the inventory's table when the client has not named it."""
    parse_constraint(program.version)
    if not program.language:
        entry = next(file for file in program.files if file.name == program.entry)
        row, version = toolchains.language_of(entry.name, head, entry.executable, languages, "")
        return msgspec.structs.replace(program, language=row.name, version=program.version or version)
    if program.language not in {row.name for row in languages}:
        raise UnknownLanguage(f"unknown language {program.language!r}", "sshgrid toolchains")
    return program


def _check_options(submission: Submission) -> None:
    _check_arguments(submission.program)
    _check_environment(submission.program)
    _check_limits(submission.program.limits)
    if submission.retries is not None and not 0 <= submission.retries <= MAX_RETRIES:
        raise UsageError(f"retries must be 0 to {MAX_RETRIES}, not {submission.retries}")
    if not 1 <= submission.slots <= MAX_SLOTS or not 0 <= submission.gpus <= MAX_SLOTS:
        raise UsageError(
            f"{submission.slots} slots and {submission.gpus} GPUs: a job can have 1 to {MAX_SLOTS} slots"
            f" and 0 to {MAX_SLOTS} GPUs",
            "--slots 4",
        )
    if submission.on:
        with suppress(NoSuchNode):  # only the syntax of the selector is checked here
            selectors.nodes(submission.on, ())


def _check_arguments(program: Program) -> None:
    for number, argument in enumerate(program.args, 1):
        if len(argument) > MAX_ARGUMENT_BYTES:
            raise UsageError(
                f"argument {number} has {len(argument):,} bytes; an argument can have {MAX_ARGUMENT_BYTES:,}",
                "pass the value on standard input or in a file",
            )
    total = sum(map(len, program.args)) + sum(len(name) + len(value) for name, value in program.env)
    if total > MAX_ARGUMENTS_BYTES:
        raise UsageError(
            f"arguments and variables of {total:,} bytes; a program can have {MAX_ARGUMENTS_BYTES:,}",
            "pass the values on standard input or in a file",
        )


def _check_environment(program: Program) -> None:
    for name, value in program.env:
        if not _VARIABLE.fullmatch(name):
            raise UsageError(f"not a name of a variable: {name[:80]!r}", "--env NAME=VALUE")
        if b"\0" in value:
            raise UsageError(f"the value of {name} contains a NUL byte")
        if len(name) + 1 + len(value) > MAX_ARGUMENT_BYTES:
            raise UsageError(f"{name} and its value have more than {MAX_ARGUMENT_BYTES:,} bytes")


def _check_limits(limits: Limits) -> None:
    if limits.wall_seconds is not None and not 0 < limits.wall_seconds <= MAX_SECONDS:
        raise UsageError(f"invalid time limit: {limits.wall_seconds:g} s", "--time-limit 10m")
    if limits.processes is not None and not 0 < limits.processes <= MAX_PROCESSES:
        raise UsageError(f"invalid limit of processes: {limits.processes}")
    for name, size in (("memory", limits.memory_bytes), ("output", limits.output_bytes)):
        if size is not None and not 0 < size <= MAX_BYTES:
            raise UsageError(f"invalid limit of {name}: {size} bytes")


def inputs_of(lists: Iterable[str], spool: Spool) -> set[str]:
    """The files in these lists of inputs; a list that is not in the spool is skipped."""
    there = (spool.blobs.read(each) for each in lists if spool.blobs.has(each))
    return {sha256 for packed in there for sha256 in inputs.decode(packed).sha256()}
