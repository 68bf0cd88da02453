"""The command `sweep`: make the plan, open the records, submit the tasks that are not recorded, and follow them.

With a joblog or a results folder a sweep can be resumed: the client finds the sweep that the master still has, and
submits tasks that are missing as a new sweep. Records of two sweeps are never mixed.
"""
# os.path, not pathlib (see per-file-ignores): users wait for the command line, and pathlib costs 5 ms.

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import msgspec

from sshgrid.client import run_job, submit
from sshgrid.client.follow import Detached, exit_status
from sshgrid.client.program import Source
from sshgrid.client.run_options import defaults_of
from sshgrid.client.session import INTERRUPTED, PIPE_CLOSED, Session, write_or_leave
from sshgrid.client.sweep.follow_sweep import SweepFollower
from sshgrid.client.sweep.input_files import read_inputs
from sshgrid.client.sweep.plan import Plan, halt_of, make_plan
from sshgrid.client.sweep.records import RecordFiles, Records
from sshgrid.client.sweep.resume import SCHEMA, ResumeState
from sshgrid.client.sweep.screens import JsonSweepScreen, PlainSweepScreen, SweepScreen
from sshgrid.errors import NoSuchJob, SshgridError, UsageError
from sshgrid.model import JobId, Submission, Sweep
from sshgrid.notation.digest import sha256
from sshgrid.protocol.messages import Cancel, Done, Info, JobLine, JobsReply
from sshgrid.sweeps.parameters import encode, spell_ranges
from sshgrid.terminal import render

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.protocol.sweep_messages import TaskLine

_LINES_AT_ONCE = 1000  # command lines of --dry-run that are printed together


def sweep(session: Session, file: str, argv: Sequence[str], options: Mapping[str, Any]) -> int:
    """Run the command `sweep` and return its exit status; `options` has a value for each option."""
    _check(options)
    halt = halt_of(options)
    plan = make_plan(file, argv, options)
    request = _run_request(file, plan, options)
    program_files, stdin, data = request.read(session, offer_files=not options["dry_run"])
    table = Source("table", io.BytesIO(encode(plan.table)))
    tasks = Sweep(table.file, len(plan), at_once=options["jobs"], halt=halt, backup=options["backup"])
    submission = msgspec.structs.replace(request.submission(program_files, stdin, data), sweep=tasks)
    sources = [*program_files.sources, *([stdin] if stdin else []), *(data.sources if data else ()), table]
    with RecordFiles(plan, options, _digest(submission, plan, options)) as record_files:
        if plan.has_task_stdin:
            inputs = read_inputs(plan, record_files.rest())
            sources += inputs.sources
            submission = msgspec.structs.replace(submission, sweep=inputs.added_to(tasks))
        if options["dry_run"]:
            return _print_commands(session, plan, record_files.rest())
        if options["detach"]:
            return run_job.submit_detached(session, submission, sources)
        return _SweepRun(session, plan, options, submission, sources, record_files).run()


def _check(options: Mapping[str, Any]) -> None:
    """UsageError for options that contradict each other."""
    recorded = options["joblog"] or options["results"]
    if (options["resume"] or options["resume_failed"]) and not recorded:
        raise UsageError("--resume needs a record of the tasks that have ended", "--joblog FILE or --results DIR")
    if options["detach"] and recorded:
        raise UsageError(
            "-d does not wait for results, so it cannot record them",
            "leave out -d; a second Ctrl-C leaves the sweep running, and the same command with --resume continues it",
        )
    if options["fetch"] and not (options["into"] or options["results"] or options["detach"]):
        raise UsageError("--fetch needs a folder for the files of each task", "--results DIR or --into DIR")
    if options["backup"] and options["on_host_loss"] != "relaunch":
        raise UsageError(
            f"--backup runs a task twice at the same time, and --on-host-loss {options['on_host_loss']} forbids that",
            "leave out one of them",
        )
    if options["detach"] and options["dry_run"]:
        raise UsageError("--dry-run runs nothing, so -d has no effect", "leave out one of them")


def _run_request(file: str, plan: Plan, options: Mapping[str, Any]) -> submit.RunRequest:
    """The options as `run` takes them. Without --stdin, tasks have no standard input."""
    values = defaults_of("run")
    values |= {name: value for name, value in options.items() if name in values}
    stdin = "none" if plan.has_task_stdin else options["stdin"] or "none"
    values |= {"time_limit": options["timeout"], "stdin": stdin}
    return submit.RunRequest(file, [os.fsdecode(arg) for arg in plan.args], values)


def _digest(submission: Submission, plan: Plan, options: Mapping[str, Any]) -> str:
    """Identifies the program and its parameters; options that tell how and where to run may change between runs.

    The content of a file that a parameter names does not count, as in GNU parallel.
    """
    program, tasks = submission.program, submission.sweep
    assert tasks is not None
    parts = (program.language, program.version, program.entry, program.files, program.flags, program.args)
    stdin = options["stdin"] if plan.has_task_stdin else program.stdin
    inputs = (program.env, stdin, program.data, program.packs)
    return str(sha256(msgspec.json.encode((*parts, *inputs, tasks.table.sha256))).hexdigest())


def _print_commands(session: Session, plan: Plan, numbers: Sequence[int]) -> int:
    """Print the command line of each task, as GNU parallel does for --dry-run."""
    for start in range(0, len(numbers), _LINES_AT_ONCE):
        some = numbers[start : start + _LINES_AT_ONCE]
        if session.json:
            text = "".join(render.to_json(_command_object(plan, number)) + "\n" for number in some)
        else:
            text = "".join(os.fsdecode(plan.command(number)) + "\n" for number in some)
        write_or_leave(render.write_out, text)
    return 0


def _command_object(plan: Plan, number: int) -> dict[str, object]:
    """For --json; bytes that are not UTF-8 are escaped."""
    value = {"schema": 1, "task": number, "command": plan.command(number).decode("utf-8", "backslashreplace")}
    if plan.has_task_stdin:
        value["stdin"] = os.fsencode(plan.stdin(number)).decode("utf-8", "backslashreplace")
    return value


# --- submit and follow ------------------------------------------------------------------------------------------------


class _SweepRun:
    """Submits and follows one sweep; with --resume it first continues the sweep that was recorded."""

    def __init__(
        self,
        session: Session,
        plan: Plan,
        options: Mapping[str, Any],
        submission: Submission,
        sources: Sequence[Source],
        record_files: RecordFiles,
    ) -> None:
        self._session, self._plan, self._options = session, plan, options
        self._submission, self._sources, self._record_files = submission, sources, record_files
        self._grid = grid_name(session)

    def run(self) -> int:
        """Run all tasks that are not recorded; the exit status."""
        state = self._record_files.state
        if state is not None and state.grid != self._grid:
            self._session.warn(f"sweep {state.sweep} ran on {state.grid}; the missing tasks run here")
        elif state is not None:
            status = self._continue(state)
            if status is not None:
                return status
        if rest := self._record_files.rest():
            return self._submit_new(rest)
        self._session.note("every task is already recorded")
        return 0

    def _continue(self, state: ResumeState) -> int | None:
        """Follow the recorded sweep; None when the rest must be submitted as a new one."""
        line = self._recorded_sweep(state)
        if state.sweep is not None and (line is None or line.state == "CANCELLED"):
            return None
        if line is not None and line.exit_status is None and self._options["resume_failed"]:
            raise UsageError(f"sweep {line.id} has not ended", "--resume; once it has ended, --resume-failed")
        had_ended = line is not None and line.exit_status is not None
        if had_ended and self._options["resume_failed"]:
            return None
        status = self._submit_and_follow(state)
        left = status in (INTERRUPTED, PIPE_CLOSED)
        return None if had_ended and not left and self._record_files.rest() else status

    def _recorded_sweep(self, state: ResumeState) -> JobLine | None:
        """The sweep as the master has it; None when it was removed, never accepted, or the ID is another job's."""
        if state.sweep is None:
            return None
        with self._session.connect() as connection:
            try:
                (line,) = connection.request(Info(state.sweep), JobsReply).jobs
            except NoSuchJob:
                return None
        same = line.sweep is not None and line.program == self._submission.command
        return line if same else None

    def _submit_new(self, rest: Sequence[int]) -> int:
        chosen = "" if len(rest) == len(self._plan) else spell_ranges(rest)
        key, digest = submit.new_key(), self._record_files.digest
        return self._submit_and_follow(ResumeState(SCHEMA, self._grid, key, digest, len(self._plan), chosen))

    def _submit_and_follow(self, state: ResumeState) -> int:
        """Submit under the key of `state`: when the master knows the key, it returns the sweep that has it."""
        # Persist the key first, so that --resume can find this sweep when the client is killed.
        self._record_files.save(state)
        assert self._submission.sweep is not None
        tasks = msgspec.structs.replace(self._submission.sweep, chosen=state.chosen)
        submission = msgspec.structs.replace(self._submission, sweep=tasks)
        with run_job.postponed_interrupts() as interrupts:
            connection, job = submit.submit(self._session, submission, self._sources, state.key)
        if job != state.sweep:
            self._record_files.save(msgspec.structs.replace(state, sweep=job))
        screen = make_screen(self._session, self._plan, self._options)
        screen.accepted(job)
        follower = SweepFollower(
            connection,
            job,
            screen,
            self._record_files.records,
            self._session.connect,
            have=self._record_files.records.done(),
            fetch_files=self._file_fetcher(job),
            keep_order=bool(self._options["keep_order"]),
        )
        follower.interrupts = len(interrupts)
        status = until_ended(self._session, follower, screen, job, cancel_when_unread=True)
        self._record_files.complete()
        return status

    def _file_fetcher(self, sweep: JobId) -> Callable[[TaskLine], None] | None:
        """The function that fetches the files of a task; None without --fetch."""
        if not self._options["fetch"]:
            return None
        from sshgrid.client.sweep.fetch_files import TaskFileFetcher

        results = str(self._options["results"])
        folder = str(self._options["into"]) or results
        # A task's folder in a results folder also contains stdout, stderr and rc.
        subfolder = "" if self._options["into"] else "files"
        return TaskFileFetcher(self._session, sweep, self._plan, folder, subfolder).fetch


def grid_name(session: Session) -> str:
    """Identifies the grid in the resume state."""
    if session.gateway is not None:
        return "door"  # as files that exist already have it
    return session.master or session.places().inventory


def make_screen(session: Session, plan: Plan | None, options: Mapping[str, Any]) -> SweepScreen:
    """The screen for a sweep: JSON Lines with --json, else the output of the tasks."""
    if session.json:
        return JsonSweepScreen(plan)
    from sshgrid.terminal.bar import ProgressBar

    notes = session.shows_notes()
    shown = (bool(options["bar"] or options["eta"]) or notes) and not session.quiet
    bar = ProgressBar(session.err, shown=shown, bar=bool(options["bar"]))
    tag = plan.tag if plan is not None and options["tag"] else None
    return PlainSweepScreen(session.warn, session.err, bar, tag, out_is_terminal=session.out.terminal, notes=notes)


def until_ended(
    session: Session, follower: SweepFollower, screen: SweepScreen, job: JobId, *, cancel_when_unread: bool = False
) -> int:
    """Follow a sweep until it ends or the user detaches; the exit status of the command.

    `cancel_when_unread`: cancel the sweep when stdout is closed.
    """
    try:
        line = follower.until_ended()
    except Detached:
        screen.detached()
        session.warn(f"sweep {job} continues: sshgrid progress {job}, sshgrid attach {job}")
        return INTERRUPTED
    except BrokenPipeError:
        if cancel_when_unread:
            # Over a new connection: the other one is full of events that were not read.
            with suppress(SshgridError), session.connect() as connection:
                connection.request(Cancel((job,), "TERM"), Done)
        return PIPE_CLOSED
    screen.ended(line, interrupted=follower.interrupts > 0)
    return INTERRUPTED if follower.interrupts else exit_status(line)


def attach(session: Session, connection: Connection, job: JobId) -> int:
    """Print all tasks of a sweep, for `attach`. Ctrl-C leaves the sweep running."""
    screen = make_screen(session, None, {"bar": False, "eta": False, "tag": False})
    follower = SweepFollower(connection, job, screen, Records(None), session.connect, interrupt_cancels=False)
    screen.accepted(job)
    return until_ended(session, follower, screen, job)
