"""The sweeps that are not over: which tasks come next, and what the end of a task means for its sweep.

A task becomes a job, with a row in the store, when it begins; before that it is only a number. So a hundred thousand
waiting tasks cost nothing, and all that is kept here can be found again in the store. Refuses to begin a task twice.
"""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from math import ceil

import msgspec

from sshgrid import parameters
from sshgrid.errors import UsageError
from sshgrid.halting import halts
from sshgrid.jobbook import JobBook, slot_of
from sshgrid.model import (
    MAX_TASKS,
    Cancelled,
    CompileFailed,
    Exited,
    GaveUp,
    Job,
    JobId,
    Noun,
    Phase,
    Submission,
    Sweep,
    Swept,
    Verdict,
    job_text,
    sweep_of,
    task_id,
    task_number,
)
from sshgrid.spool import Spool
from sshgrid.templates import Template

log = logging.getLogger(__name__)

RATE_SECONDS = 10.0  # a rate is of so many seconds at most
# Short tasks go to a node many at a time: what a start costs (some tens of milliseconds) should not be felt, and
# neither should others have to wait for the slot for much longer than that.
BATCH_SECONDS = 1.5
BATCH_MOST = 400
START_SECONDS = 0.2
SHORTEST_SECONDS = 0.002
SHORTEST_ALONE_SECONDS = 0.03
NEWS_WEIGHT = 0.2  # of the newest duration in what is expected of the next one
EndRunning = Callable[[Job], None]


class Counts(Noun, frozen=True):
    """Where the tasks of a sweep stand; together they are all tasks that it has."""

    tasks: int
    ended: int
    failed: int  # among those that ended
    running: int
    waiting: int
    left: int  # never to begin


class SweepState:
    """One sweep as it goes. `load` gives its parameters, which only a task that is to begin needs."""

    def __init__(self, job: Job, plan: Sweep, load: Callable[[], parameters.Table]) -> None:
        self.job = job
        self.plan = plan
        self._load = load
        self.running: dict[JobId, object] = {}  # -> the slot in which it runs
        self.again: dict[JobId, Job] = {}  # begun once, and waiting for another attempt
        self.ended: list[int] = []  # numbers, in the order in which they ended
        self.failed = 0
        self.stopped = False  # nothing more begins
        self.compile_failed: Verdict | None = None
        self.compiler_said = 0  # the task of which the compiler's words are shown
        self.moments: deque[float] = deque()  # when tasks ended, of late
        self._chosen = parameters.parse_ranges(plan.chosen, plan.tasks) if plan.chosen else (range(1, plan.tasks + 1),)
        self.tasks = sum(map(len, self._chosen))
        self._fresh: Iterator[int] = iter(())  # numbers that have never begun
        self._next: deque[int] = deque()
        self._slots: Counter[object] = Counter()  # in use, and how many tasks that run share each
        self._expected: float | None = None  # seconds that a task takes
        self.unbegun = self.tasks

    # --- which comes next

    @cached_property
    def _table(self) -> parameters.Table:
        return self._load()

    @cached_property
    def _template(self) -> Template:
        return Template(self.job.submission.program.args, self._table.names)

    def begin_after(self, begun: Iterable[int]) -> None:
        """The tasks that have not begun, of all but these."""
        done = frozenset(begun)
        self._fresh = (number for number in self.numbers() if number not in done)
        self._next.clear()
        self.unbegun = self.tasks - len(done)

    def upcoming(self, count: int) -> Iterator[Job]:
        """The next tasks that might begin, as the jobs that they would be."""
        if self.job.held or self.stopped:
            return
        if self.plan.at_once is not None:
            count = min(count, self.plan.at_once - len(self._slots))
        yield from islice(self.again.values(), max(0, count))
        count -= len(self.again)
        for number in self._peek(count):
            yield self.task(number)

    def _peek(self, count: int) -> list[int]:
        """The first ones that have never begun."""
        while len(self._next) < count and (number := next(self._fresh, None)) is not None:
            self._next.append(number)
        return list(islice(self._next, max(0, count)))

    def batch(self, first: Job, slots: int) -> list[Job]:
        """The task and those that should go with it to the same slot."""
        size = self._batch_size(slots)
        numbers = [number for number in self._peek(size) if number != task_number(first.id)]
        return [first, *map(self.task, numbers[: size - 1])]

    def _batch_size(self, slots: int) -> int:
        """How many tasks fill a slot for long enough, when all slots get as many of what is left."""
        if self._expected is None or not fits_batch(self.job.submission):
            return 1
        share = self.unbegun / max(1, slots if self.plan.at_once is None else min(slots, self.plan.at_once))
        fair = share if self._expected < BATCH_SECONDS / 30 else share / 2
        # However little is left, what runs for less than a start takes is not worth one.
        fair = max(fair, START_SECONDS / self._expected)
        return max(1, min(int(BATCH_SECONDS / self._expected), BATCH_MOST, ceil(fair)))

    def numbers(self) -> Iterator[int]:
        """Of all tasks that are to be run, in order."""
        return (number for numbers in self._chosen for number in numbers)

    def task(self, number: int) -> Job:
        """The job that this task is before it begins."""
        submission = self.job.submission
        args = self._template.expand(self._table.row(number), number)
        program = msgspec.structs.replace(submission.program, args=args)
        changed = msgspec.structs.replace(
            submission,
            program=program,
            command=shlex.join((submission.program.entry, *map(os.fsdecode, args))).encode(errors="replace").decode(),
            sweep=None,
            wait_for_nodes=True,
        )
        return Job(task_id(self.job.id, number), self.job.owner, changed, self.job.submitted)

    # --- what has happened

    def changed(self, task: Job) -> None:
        """A task has become this."""
        number = task_number(task.id)
        if self._next and self._next[0] == number:
            self._next.popleft()
            self.unbegun -= 1
        elif number in self._next:
            self._next.remove(number)
            self.unbegun -= 1
        self._leave_slot(task)
        self.again.pop(task.id, None)
        match task.phase:
            case Phase.RUNNING:
                self.enter_slot(task)
            case Phase.QUEUED:
                self.again[task.id] = task
            case Phase.DONE:
                self.count(number, task.verdict)
                self.moments.append(time.monotonic())
                self._learn(task)

    def enter_slot(self, task: Job) -> None:
        """A task runs."""
        if task.id not in self.running:
            self.running[task.id] = slot_of(task)
            self._slots[slot_of(task)] += 1

    def _leave_slot(self, task: Job) -> None:
        slot = self.running.pop(task.id, None)
        if slot is not None:
            self._slots[slot] -= 1
            if not self._slots[slot]:
                del self._slots[slot]

    def _learn(self, task: Job) -> None:
        """What the next tasks will take."""
        if not task.attempts or not isinstance(task.verdict, Exited):
            return
        last = task.attempts[-1]
        if last.batch:
            took = max(last.usage.ended - last.usage.started, SHORTEST_SECONDS)
        else:  # with what its start took
            took = max((last.ended or 0.0) - last.began - START_SECONDS / 2, SHORTEST_ALONE_SECONDS)
        old = took if self._expected is None else self._expected
        # A longer one counts at once: too large a batch is worse than too small a one.
        self._expected = old + (took - old) * (NEWS_WEIGHT if took < old else 1.0 / 2)

    def count(self, number: int, verdict: Verdict | None) -> None:
        """A task is over."""
        self.ended.append(number)
        self.failed += not is_success(verdict)
        if isinstance(verdict, CompileFailed) and not self.compile_failed:
            self.compile_failed, self.compiler_said = verdict, number

    @property
    def over(self) -> bool:
        """Nothing runs, and nothing will."""
        return not self.running and (self.stopped or (not self.unbegun and not self.again))

    def counts(self) -> Counts:
        waiting = self.unbegun + len(self.again)
        left = waiting if self.stopped else 0
        behind = len(self.running) - len(self._slots)  # in a batch, behind the one that runs
        return Counts(self.tasks, len(self.ended), self.failed, len(self._slots), waiting - left + behind, left)

    def rate(self) -> float:
        """Tasks that ended a second, lately."""
        now = time.monotonic()
        while self.moments and now - self.moments[0] > RATE_SECONDS:
            self.moments.popleft()
        if len(self.moments) < 2:
            return 0.0
        return len(self.moments) / max(0.1, now - self.moments[0])


class Sweeps:
    """All sweeps of a master that are not over. `end_running` ends a task that runs."""

    def __init__(self, book: JobBook, spool: Spool, end_running: EndRunning) -> None:
        self._book = book
        self._spool = spool
        self._end_running = end_running
        self._states: dict[JobId, SweepState] = {}
        self.slots = 1  # of all nodes that are up
        book.on_task = self._task_changed

    def take_up(self) -> None:
        """The sweeps that an earlier master left; before anything else happens."""
        for job in self._book.active():
            if job.submission.sweep and self._spool.has(job.submission.sweep.table.sha256):
                self.add(job)
            elif job.submission.sweep:  # the queue was restored without it: only this one cannot go on
                gone = GaveUp("its parameters are no longer in the spool beside the queue")
                self._book.store.finish(job.id, gone, time.time())
                self._book.reread(job.id)
        for state in list(self._states.values()):
            self._look(state)

    def add(self, job: Job) -> SweepState:
        """A sweep that is new here, with what the store knows of its tasks."""
        state = self._states[job.id] = self._read(job)
        return state

    def read(self, job: Job) -> SweepState:
        """A sweep as it stands or stood; UsageError when the job is none."""
        if job.submission.sweep is None:
            raise UsageError(f"job {job_text(job.id)} is no sweep", "sshgrid info ID")
        return self._states.get(job.id) or self._read(job)

    def _read(self, job: Job) -> SweepState:
        plan = job.submission.sweep
        assert plan is not None
        state = SweepState(job, plan, lambda: parameters.decode(self._spool.read(plan.table.sha256)))
        begun = []
        for task, phase, verdict in self._book.store.task_fates(job.id):
            number = task_number(task)
            begun.append(number)
            if phase is Phase.DONE:
                state.count(number, verdict)
            elif phase is Phase.RUNNING:
                state.enter_slot(self._book.current(task))
            else:
                state.again[task] = self._book.current(task)
        state.begin_after(begun)
        state.stopped = job.cancel_requested or job.phase is Phase.DONE
        return state

    def upcoming(self, free: int) -> list[Job]:
        """Tasks that might begin now: of each sweep as many as the grid could take."""
        return [task for state in self._states.values() for task in state.upcoming(free)]

    def batch(self, task: Job) -> list[Job]:
        """A task that has never begun, with those that should go with it to the same slot."""
        state = self._states.get(sweep_of(task.id) or task.id)
        return [task] if state is None else state.batch(task, self.slots)

    def begun(self, sweep: JobId) -> bool:
        """Whether some task of it has ever begun."""
        state = self._states.get(sweep)
        return state is not None and bool(state.running or state.again or state.ended)

    def unbegun(self, owner: str) -> int:
        """How many tasks of this owner have never begun and still may."""
        return sum(state.unbegun for state in self._states.values() if state.job.owner == owner and not state.stopped)

    def changed(self, job: Job, end_running: EndRunning | None = None) -> None:
        """A sweep was held, let go, or is to be cancelled: then `end_running` ends each task that runs."""
        if state := self._states.get(job.id):
            state.job = job
            state.stopped = state.stopped or job.cancel_requested
            if end_running:
                for task in list(state.running):
                    end_running(self._book.current(task))
            self._look(state)

    def forget(self, sweep: JobId) -> None:
        self._states.pop(sweep, None)

    # --- a task has changed

    def _task_changed(self, task: Job) -> None:
        sweep = sweep_of(task.id)
        state = None if sweep is None else self._states.get(sweep)
        if state is None:
            return
        state.changed(task)
        if task.phase is Phase.DONE:
            self._look(state)
        self._book.board.tell(state.job.id)

    def _look(self, state: SweepState) -> None:
        """Is it to stop, or over?"""
        ended = len(state.ended)
        halt = "now" if state.compile_failed else halts(state.plan.halt, state.failed, ended, state.tasks)
        if halt and not state.stopped:
            log.info("sweep %s halts (%s) after %d of %d tasks", state.job.id, halt, ended, state.tasks)
            state.stopped = True
        if halt == "now" or state.job.cancel_requested:
            self._end_tasks(state)
        if state.over and self._book.current(state.job.id).phase is Phase.QUEUED:
            self._finish(state)

    def _end_tasks(self, state: SweepState) -> None:
        for task in list(state.running):
            job = self._book.current(task)
            if not job.cancel_requested:
                self._end_running(job)

    def _finish(self, state: SweepState) -> None:
        job = state.job
        self._give_up_waiting(state)
        self._book.store.finish(job.id, self._verdict(state), time.time())
        self._states.pop(job.id)
        self._book.reread(job.id)

    def _give_up_waiting(self, state: SweepState) -> None:
        """Tasks that wait for another attempt which will not come."""
        for task in list(state.again):
            self._book.store.finish(task, Cancelled(state.job.cancel_by), time.time())
            self._book.reread(task)

    def _verdict(self, state: SweepState) -> Verdict:
        if state.job.cancel_requested:
            return Cancelled(state.job.cancel_by)
        if state.compile_failed:
            return state.compile_failed
        counts = state.counts()
        return Swept(counts.tasks, counts.failed, counts.left)


def fits_batch(submission: Submission) -> bool:
    """Whether tasks of this sweep may share one start: no process limit, as it takes a watchdog beside each task."""
    program = submission.program
    alone = submission.keep_children or submission.slots > 1 or submission.gpus
    return program.limits.processes is None and not alone and not program.fetch


def is_success(verdict: Verdict | None) -> bool:
    """Whether a task ended as it should."""
    return isinstance(verdict, Exited) and verdict.code == 0


def check(submission: Submission, read: Callable[[str], bytes]) -> None:
    """UsageError unless this sweep can be run: its table is whole and fits its template. `read`: a file by digest."""
    plan = submission.sweep
    if plan is None:
        return
    if submission.interactive:
        raise UsageError("a sweep cannot be interactive")
    table = parameters.decode(read(plan.table.sha256))
    if len(table) != plan.tasks or not 0 < plan.tasks <= MAX_TASKS:
        raise UsageError(f"the table of this sweep has {len(table)} rows, and {plan.tasks} were announced")
    if plan.at_once is not None and plan.at_once < 1:
        raise UsageError("a sweep that may run no task at once never ends")
    Template(submission.program.args, table.names)
    if plan.chosen:
        parameters.parse_ranges(plan.chosen, plan.tasks)
