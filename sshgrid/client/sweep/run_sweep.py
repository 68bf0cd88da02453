"""One sweep from its words to its exit status: the plan, what is recorded of it, submitting it, following it.

With a joblog or a results folder a sweep can be gone on with: by looking for the one that the master still has, and by
submitting what is missing as a new one. Refuses to mix the records of two sweeps.
"""
# os.path, not pathlib (see per-file-ignores): the command line is waited for, and pathlib costs 5 ms.

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import msgspec

from sshgrid.client import files, run_job, submit
from sshgrid.client.follow import Detached, exit_status
from sshgrid.client.program import Source
from sshgrid.client.run_options import defaults_of
from sshgrid.client.session import INTERRUPTED, PIPE_CLOSED, Session, write_or_leave
from sshgrid.client.sweep.follow_sweep import JsonSweepScreen, PlainSweepScreen, Records, SweepFollower, SweepScreen
from sshgrid.client.sweep.input_files import read_inputs
from sshgrid.client.sweep.joblog import Joblog, check_agrees, unwritable
from sshgrid.client.sweep.plan import Plan, halt, plan
from sshgrid.client.sweep.results import Results
from sshgrid.client.sweep.resume import SCHEMA, ResumeFile, ResumeState
from sshgrid.errors import NoSuchJob, SshgridError, UsageError
from sshgrid.model import JobId, Submission, Sweep
from sshgrid.notation.digest import sha256
from sshgrid.protocol.messages import Cancel, Done, Info, JobLine, JobsReply
from sshgrid.sweeps.parameters import encode, spell_ranges
from sshgrid.terminal import render

if TYPE_CHECKING:
    from sshgrid.client.connection import Connection
    from sshgrid.protocol.sweep_messages import TaskLine

_PRINTED_AT_ONCE = 1000  # command lines of --dry-run


def sweep(session: Session, file: str, words: Sequence[str], wanted: Mapping[str, Any]) -> int:
    """The command `sweep`; `wanted` has a value for each of its options."""
    _check(wanted)
    halting = halt(wanted)
    planned = plan(file, words, wanted)
    order = _order(file, planned, wanted)
    program_files, stdin, data = order.read(session, ask=not wanted["dry_run"])
    table = Source("table", io.BytesIO(encode(planned.table)))
    plan_of_it = Sweep(table.file, len(planned), at_once=wanted["jobs"], halt=halting, backup=wanted["backup"])
    submission = msgspec.structs.replace(order.submission(program_files, stdin, data), sweep=plan_of_it)
    sources = [*program_files.sources, *([stdin] if stdin else []), *(data.sources if data else ()), table]
    with RecordFiles(session, planned, wanted, _digest(submission, planned, wanted)) as recorded:
        if planned.reads_its_own:
            given = read_inputs(planned, recorded.rest())
            sources += given.sources
            submission = msgspec.structs.replace(submission, sweep=given.added_to(plan_of_it))
        if wanted["dry_run"]:
            return _print(session, planned, recorded.rest())
        if wanted["detach"]:
            return run_job.detached(session, submission, sources)
        return _SweepRun(session, planned, wanted, submission, sources, recorded).run()


def _check(wanted: Mapping[str, Any]) -> None:
    recorded = wanted["joblog"] or wanted["results"]
    if (wanted["resume"] or wanted["resume_failed"]) and not recorded:
        raise UsageError("--resume needs a record of what was done", "--joblog FILE or --results DIR")
    if wanted["detach"] and recorded:
        raise UsageError(
            "-d does not wait for results, so it can record none",
            "leave out -d; a second Ctrl-C leaves the sweep running, and the same command with --resume goes on",
        )
    if wanted["fetch"] and not (wanted["into"] or wanted["results"] or wanted["detach"]):
        raise UsageError("the files of a task need a folder", "--results DIR or --into DIR")
    if wanted["backup"] and wanted["on_host_loss"] != "relaunch":
        raise UsageError(
            f"--backup runs a task twice at the same time, and --on-host-loss {wanted['on_host_loss']} forbids that",
            "leave out one of them",
        )
    if wanted["detach"] and wanted["dry_run"]:
        raise UsageError("--dry-run runs nothing, so there is nothing for -d to leave", "give one of them")


def _order(file: str, planned: Plan, wanted: Mapping[str, Any]) -> submit.RunRequest:
    """The words as `run` understands them. Tasks have no standard input unless they are given one."""
    defaults = defaults_of("run")
    mine = {**defaults, **{name: value for name, value in wanted.items() if name in defaults}}
    stdin = "none" if planned.reads_its_own else wanted["stdin"] or "none"
    mine |= {"time_limit": wanted["timeout"], "stdin": stdin}
    return submit.RunRequest(file, [os.fsdecode(arg) for arg in planned.args], mine)


def _digest(submission: Submission, planned: Plan, wanted: Mapping[str, Any]) -> str:
    """Of what is run over which parameters: how and where it is run may be another the next time.

    A file that a parameter names is such a parameter, whatever is in it, as for GNU parallel.
    """
    program, table = submission.program, submission.sweep
    assert table is not None
    parts = (program.language, program.version, program.entry, program.files, program.flags, program.args)
    stdin = wanted["stdin"] if planned.reads_its_own else program.stdin
    along = (program.env, stdin, program.data, program.packs)
    everything = msgspec.json.encode((*parts, *along, table.table.sha256))
    return str(sha256(everything).hexdigest())


def _print(session: Session, planned: Plan, numbers: Sequence[int]) -> int:
    """The command line of each task, as GNU parallel's --dry-run."""
    for start in range(0, len(numbers), _PRINTED_AT_ONCE):
        some = numbers[start : start + _PRINTED_AT_ONCE]
        if session.json:
            text = "".join(render.to_json(_dry_object(planned, number)) + "\n" for number in some)
        else:
            text = "".join(os.fsdecode(planned.command(number)) + "\n" for number in some)
        write_or_leave(render.write_out, text)
    return 0


def _dry_object(planned: Plan, number: int) -> dict[str, object]:
    """JSON is UTF-8; an argument or a name need not be."""
    said = {"schema": 1, "task": number, "command": planned.command(number).decode("utf-8", "backslashreplace")}
    if planned.reads_its_own:
        said["stdin"] = os.fsencode(planned.stdin(number)).decode("utf-8", "backslashreplace")
    return said


# --- what is recorded -------------------------------------------------------------------------------------------------


class RecordFiles:
    """The joblog and the results folder of a sweep, and the sweep that they belong to."""

    def __init__(self, session: Session, planned: Plan, wanted: Mapping[str, Any], digest: str) -> None:
        self._planned, self._wanted, self.digest = planned, wanted, digest
        self._open = ExitStack()
        self._resume = bool(wanted["resume"] or wanted["resume_failed"])
        self.resume_file: ResumeFile | None = None
        self.kept: ResumeState | None = None
        self._results: Results | None = None
        self._joblog: Joblog | None = None
        self._sidecar = False
        try:
            # A dry run may look at what is there, and leaves it as it is.
            if self._resume or not wanted["dry_run"]:
                self._begin()
        except BaseException:
            self._open.close()
            raise
        self.records = Records(planned, self._joblog, self._results)

    def __enter__(self) -> RecordFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def _begin(self) -> None:
        if path := str(self._wanted["results"]):
            self._begin_results(path)
        if path := str(self._wanted["joblog"]):
            self._begin_joblog(path)

    def _begin_results(self, path: str) -> None:
        results = Results(path, self._planned.names, numbered=self._planned.numbered)
        self._results = self._open.enter_context(results)
        self.resume_file = results.resume_file
        if not self._resume:
            if results.has_rows():
                raise UsageError(f"{path} has results already", "--resume goes on with them; or name another folder")
            results.begin(resume=False)
            return
        self.kept = self.resume_file.load_of(self.digest)
        if self.kept is None and results.has_rows():
            raise UsageError(f"{path} has results, and no {self.resume_file.shown} says of what", "name another folder")
        results.begin(without_failed=bool(self._wanted["resume_failed"]) and not self._wanted["dry_run"])

    def _begin_joblog(self, path: str) -> None:
        joblog = self._joblog = Joblog(path, resume=self._resume)
        self._open.callback(joblog.close)
        check_agrees(path, joblog.entries, self._planned.command, len(self._planned))
        if self._wanted["resume_failed"]:
            joblog.entries = {number: entry for number, entry in joblog.entries.items() if not entry.failed}
        if self.resume_file is None and joblog.regular:
            folder, name = os.path.split(path)
            try:
                descriptor = files.open_folder(folder or ".")
            except OSError as error:
                raise UsageError(f"{path}: {error.strerror} (--joblog)", "name another file") from error
            self._open.callback(os.close, descriptor)
            self.resume_file, self._sidecar = ResumeFile(descriptor, f"{name}.sweep.json", f"{path}.sweep.json"), True
            self.kept = self.resume_file.load_of(self.digest) if self._resume else None

    def rest(self) -> Sequence[int]:
        """The tasks that are not recorded."""
        done = self.records.done()
        everything = range(1, len(self._planned) + 1)
        return [number for number in everything if number not in done] if done else everything

    def keep(self, kept: ResumeState) -> None:
        """Whoever resumes finds this sweep."""
        self.kept = kept
        if self.resume_file is not None:
            try:
                self.resume_file.save(kept)
            except OSError as error:
                raise unwritable(self.resume_file.shown, error) from error

    def complete(self) -> None:
        """Every task is recorded. Beside a joblog nothing needs to stay then."""
        if self._sidecar and self.resume_file is not None and not self.rest():
            self.resume_file.forget()


# --- submit and follow ------------------------------------------------------------------------------------------------


class _SweepRun:
    """From the submission to the exit status; with --resume by way of the sweep that was there before."""

    def __init__(
        self,
        session: Session,
        planned: Plan,
        wanted: Mapping[str, Any],
        submission: Submission,
        sources: Sequence[Source],
        recorded: RecordFiles,
    ) -> None:
        self._session, self._planned, self._wanted = session, planned, wanted
        self._submission, self._sources, self._recorded = submission, sources, recorded
        self._grid = grid_name(session)

    def run(self) -> int:
        kept = self._recorded.kept
        if kept is not None and kept.grid != self._grid:
            self._session.warn(f"sweep {kept.sweep} was one of {kept.grid}; what is missing is run here")
        elif kept is not None:
            status = self._go_on(kept)
            if status is not None:
                return status
        if rest := self._recorded.rest():
            return self._begin(rest)
        self._session.note("every task is recorded already")
        return 0

    def _go_on(self, kept: ResumeState) -> int | None:
        """With the sweep that was begun; None when the rest must be a new one."""
        before = self._known(kept)
        if kept.sweep is not None and (before is None or before.state == "CANCELLED"):
            return None
        if before is not None and before.exit_status is None and self._wanted["resume_failed"]:
            raise UsageError(f"sweep {before.id} is not over", "first --resume; when it has ended, --resume-failed")
        was_over = before is not None and before.exit_status is not None
        if was_over and self._wanted["resume_failed"]:
            return None
        status = self._followed(kept)
        left = status in (INTERRUPTED, PIPE_CLOSED)
        return None if was_over and not left and self._recorded.rest() else status

    def _known(self, kept: ResumeState) -> JobLine | None:
        """As the master has it now; None when it is another job, or gone, or was never accepted."""
        if kept.sweep is None:
            return None
        with self._session.connect() as connection:
            try:
                (line,) = connection.request(Info(kept.sweep), JobsReply).jobs
            except NoSuchJob:
                return None
        same = line.sweep is not None and line.program == self._submission.command
        return line if same else None

    def _begin(self, rest: Sequence[int]) -> int:
        chosen = "" if len(rest) == len(self._planned) else spell_ranges(rest)
        tasks = len(self._planned)
        return self._followed(ResumeState(SCHEMA, self._grid, submit.new_key(), self._recorded.digest, tasks, chosen))

    def _followed(self, kept: ResumeState) -> int:
        """Submitting under a key that the master knows is the way to the sweep that it stands for."""
        self._recorded.keep(kept)
        assert self._submission.sweep is not None
        chosen = msgspec.structs.replace(self._submission.sweep, chosen=kept.chosen)
        submission = msgspec.structs.replace(self._submission, sweep=chosen)
        with run_job.postponed_interrupts() as interrupts:
            connection, job = submit.submit(self._session, submission, self._sources, kept.key)
        if job != kept.sweep:
            self._recorded.keep(msgspec.structs.replace(kept, sweep=job))
        outlet = make_screen(self._session, self._planned, self._wanted)
        outlet.accepted(job)
        follow = SweepFollower(
            connection,
            job,
            outlet,
            self._recorded.records,
            self._session.connect,
            told=self._recorded.records.done(),
            bring=self._bring(job),
            keep_order=bool(self._wanted["keep_order"]),
        )
        follow.interrupts = len(interrupts)
        status = until_ended(self._session, follow, outlet, job, unread_ends_it=True)
        self._recorded.complete()
        return status

    def _bring(self, sweep: JobId) -> Callable[[TaskLine], None] | None:
        """What fetches the files of a task; None without --fetch."""
        if not self._wanted["fetch"]:
            return None
        from sshgrid.client.sweep.task_files import TaskFiles

        results = str(self._wanted["results"])
        folder = str(self._wanted["into"]) or results
        # In a results folder there are files of ours as well.
        below = "" if self._wanted["into"] else "files"
        return TaskFiles(self._session, sweep, self._planned, folder, below).bring


def grid_name(session: Session) -> str:
    """Which grid this is, for whoever resumes."""
    if session.gateway is not None:
        return "door"
    return session.master or session.places().inventory


def make_screen(session: Session, planned: Plan | None, wanted: Mapping[str, Any]) -> SweepScreen:
    """Where a sweep is shown: JSON Lines, or the tasks' own bytes."""
    if session.json:
        return JsonSweepScreen(planned)
    from sshgrid.terminal.bar import ProgressBar

    asked = bool(wanted["bar"] or wanted["eta"])
    bar = ProgressBar(
        session.err, shown=(asked or session.shows_notes()) and not session.quiet, bar=bool(wanted["bar"])
    )
    tag = planned.tag if planned is not None and wanted["tag"] else None
    notes = session.shows_notes()
    return PlainSweepScreen(session.warn, session.err, bar, tag, out_is_terminal=session.out.terminal, notes=notes)


def until_ended(
    session: Session, follow: SweepFollower, outlet: SweepScreen, job: JobId, *, unread_ends_it: bool = False
) -> int:
    """Follow a sweep to its end, or until the person leaves; the exit status of the command."""
    try:
        line = follow.until_ended()
    except Detached:
        outlet.left()
        session.warn(f"sweep {job} goes on: sshgrid progress {job}, sshgrid attach {job}")
        return INTERRUPTED
    except BrokenPipeError:
        if unread_ends_it:
            # Over a connection of its own: the other one is full of what nobody reads.
            with suppress(SshgridError), session.connect() as connection:
                connection.request(Cancel((job,), "TERM"), Done)
        return PIPE_CLOSED
    outlet.ended(line, interrupted=follow.interrupts > 0)
    return INTERRUPTED if follow.interrupts else exit_status(line)


def attach(session: Session, connection: Connection, job: JobId) -> int:
    """The tasks of a sweep from its beginning, for `attach`. Ctrl-C leaves it running."""
    outlet = make_screen(session, None, {"bar": False, "eta": False, "tag": False})
    follow = SweepFollower(connection, job, outlet, Records(None), session.connect, interrupt_cancels=False)
    outlet.accepted(job)
    return until_ended(session, follow, outlet, job)
