"""The sweeps that are not over: which tasks come next, and what the end of a task means for its sweep.

A task becomes a job, with a row in the store, when it begins; before that it is only a number. So a hundred thousand
waiting tasks cost nothing, and all that is kept here can be found again in the store. Refuses to begin a task twice.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from math import ceil

import msgspec

from sshgrid import inputs, parameters
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
    OnHostLoss,
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
from sshgrid.pace import Pace
from sshgrid.spool import Spool
from sshgrid.templates import Template

log = logging.getLogger(__name__)

RATE_SECONDS = 10.0  # a rate is of so many seconds at most
# Short tasks go to a node many at a time: what a start, or the news of an end, costs should not be felt.
BATCH_SECONDS = 3.0
BATCH_MOST = 200
GROWTH = 16  # times as many as have ended: the first few may not be like the others
LONG_SECONDS = 10.0
START_SECONDS = 0.2
FEWEST_ENDED = 3  # before that nobody knows what is long
SIBLINGS = 200  # of so many that ended last a new master looks how long they took
SHORTEST_SECONDS = 0.002  # a node's uptime has two decimals
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
    """One sweep as it goes. `read` gives a file by its digest: only a task that is to begin needs the parameters."""

    def __init__(self, job: Job, plan: Sweep, read: Callable[[str], bytes], weights: Mapping[str, float]) -> None:
        self.job = job
        self.plan = plan
        self._read = read
        self._weights = weights
        self.running: dict[JobId, object] = {}  # -> the slot in which it runs
        self.again: dict[JobId, Job] = {}  # begun once, and waiting for another attempt
        self.ended: list[int] = []  # numbers, in the order in which they ended
        self.failed = 0
        self.stopped = False  # nothing more begins
        self.compile_failed: Verdict | None = None
        self.compiler_said = 0  # the task of which the compiler's words are shown
        self.finished = asyncio.Event()
        self.moments: deque[float] = deque()  # when tasks ended, of late
        self.backups: set[JobId] = set()  # tasks that run twice
        self.unasked: set[JobId] = set()  # tasks that run, and nobody has asked them to end
        self._chosen = chosen_tasks(plan)
        self.tasks = sum(map(len, self._chosen))
        self._fresh: Iterator[int] = iter(())  # numbers that have never begun
        self._next: deque[int] = deque()
        self._slots: Counter[object] = Counter()  # in use, and how many tasks that run share each
        self._expected: float | None = None  # seconds that a task takes at most, nearly
        self._pace = Pace()
        self._precise = False
        self.unbegun = self.tasks

    # --- which comes next

    @cached_property
    def _table(self) -> parameters.Table:
        return parameters.decode(self._read(self.plan.table.sha256))

    @cached_property
    def _inputs(self) -> inputs.Inputs | None:
        return inputs.decode(self._read(self.plan.inputs.sha256)) if self.plan.inputs else None

    @cached_property
    def _template(self) -> Template:
        return Template(self.job.submission.program.args, self._table.names)

    def begin_after(self, begun: Iterable[int]) -> None:
        """The tasks that have not begun, of all but these."""
        done = frozenset(begun)
        self._fresh = (number for number in self.numbers() if number not in done)
        self._next.clear()
        self.unbegun = self.tasks - len(done)

    def upcoming(self, count: int, nearly_free: int = 0) -> Iterator[Job]:
        """The next tasks that might begin, as the jobs that they would be. `nearly_free`: of the slots that it has."""
        if self.job.held or self.stopped:
            return
        if self.plan.at_once is not None:
            count = min(count, self.room() + nearly_free)
        now = time.time()
        for task in self.again.values():
            if count <= 0:
                return
            count -= task.not_before <= now  # who backs off keeps nobody from beginning
            yield task
        for number in self._peek(count):
            yield self.task(number)

    def _peek(self, count: int) -> list[int]:
        """The first ones that have never begun."""
        while len(self._next) < count and (number := next(self._fresh, None)) is not None:
            self._next.append(number)
        return list(islice(self._next, max(0, count)))

    def batch(self, first: Job, slots: int) -> list[Job]:
        """The task and those that should go with it to the same slot; none when it should begin alone."""
        size = self._batch_size(slots)
        if not size:
            return []
        numbers = [number for number in self._peek(size) if number != task_number(first.id)]
        return [first, *map(self.task, numbers[: size - 1])]

    def _batch_size(self, slots: int) -> int:
        """How many tasks fill a slot for long enough, when all slots get as many of what is left.

        0 when a start for each costs nothing that anybody could feel, or when it may.
        """
        if not fits_batch(self.job.submission):
            return 0
        if self._expected is None:
            return 1  # more may follow it in its slot
        if self._expected > LONG_SECONDS:
            return 0
        share = self.unbegun / max(1, slots if self.plan.at_once is None else min(slots, self.plan.at_once))
        fair = share / 2
        # However little is left, what runs for less than a start takes is not worth one.
        fair = max(fair, START_SECONDS / self._expected)
        known = GROWTH * len(self.ended)
        return max(1, min(int(BATCH_SECONDS / self._expected), BATCH_MOST, known, ceil(fair)))

    def numbers(self) -> Iterator[int]:
        """Of all tasks that are to be run, in order."""
        return (number for numbers in self._chosen for number in numbers)

    def task(self, number: int) -> Job:
        """The job that this task is before it begins."""
        submission = self.job.submission
        args = self._template.expand(self._table.row(number), number)
        stdin = self._inputs.of(number) if self._inputs else submission.program.stdin
        program = msgspec.structs.replace(submission.program, args=args, stdin=stdin)
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
        self._free_slot(task.id)
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

    def given_back(self, tasks: Iterable[JobId]) -> None:
        """They have never begun, in spite of what was said."""
        for task in tasks:
            self._free_slot(task)
        numbers = sorted(map(task_number, tasks))
        self._next.extendleft(reversed(numbers))
        self.unbegun += len(numbers)

    def enter_slot(self, task: Job) -> None:
        """A task runs."""
        if task.id not in self.running:
            self.running[task.id] = slot_of(task)
            self._slots[slot_of(task)] += 1
            if len(task.live) > 1:
                self.backups.add(task.id)
            if not task.cancel_requested:
                self.unasked.add(task.id)

    def _free_slot(self, task: JobId) -> None:
        self.backups.discard(task)
        self.unasked.discard(task)
        slot = self.running.pop(task, None)
        if slot is not None:
            self._slots[slot] -= 1
            if not self._slots[slot]:
                del self._slots[slot]

    def _learn(self, task: Job) -> None:
        """What the next tasks will take."""
        last = task.current
        if last is None or not isinstance(task.verdict, Exited):
            return
        if last.batch and not self._precise:  # of a run alone nobody can tell its start apart
            self._pace, self._expected, self._precise = Pace(), None, True
        here = (last.ended or 0.0) - last.began - START_SECONDS / 2  # with what its start took
        took = last.usage.ended - last.usage.started if last.usage.ended else here
        if not last.batch:  # the node counts whole seconds then
            took = min(took, here)
        took = max(took, SHORTEST_SECONDS)
        self._pace.learn(last.node, self._weights.get(last.node, 1.0), took)
        old = took if self._expected is None else self._expected
        # A longer one counts at once: too large a batch is worse than too small a one.
        self._expected = old + (took - old) * (NEWS_WEIGHT if took < old else 1.0 / 2)

    def seconds_on(self, node: str) -> float | None:
        """What a task is expected to take there; None when none has ended."""
        return self._pace.seconds(node, self._weights.get(node, 1.0))

    @property
    def waiting(self) -> int:
        """Tasks that have no slot."""
        return self.unbegun + len(self.again)

    @property
    def may_begin(self) -> bool:
        """Whether it may have one slot more."""
        return not self.stopped and not self.job.held and self.room() > 0

    def alone(self) -> list[JobId]:
        """The tasks that have a slot of their own."""
        return [JobId(slot) for slot in self._slots if isinstance(slot, int)]

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
        waiting = self.waiting
        left = waiting if self.stopped else 0
        behind = len(self.running) - len(self._slots)  # in a batch, behind the one that runs
        return Counts(self.tasks, len(self.ended), self.failed, len(self._slots), waiting - left + behind, left)

    # --- at the end of it

    def room(self) -> int:
        """How many more may run at the same time."""
        in_use = len(self._slots) + len(self.backups)
        return MAX_TASKS if self.plan.at_once is None else self.plan.at_once - in_use

    def wants_backups(self) -> bool:
        """Whether its stragglers may get a second attempt now: nothing of it waits for a slot."""
        return self.plan.backup and self.may_begin and not self.waiting and len(self.ended) >= FEWEST_ENDED

    def remember(self, tasks: Iterable[Job]) -> None:
        """What an earlier master saw these take."""
        for task in tasks:
            self._learn(task)

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
        self._weights: dict[str, float] = {}
        book.on_task = self._task_changed
        book.on_given_back = self._given_back

    def take_up(self) -> None:
        """The sweeps that an earlier master left; before anything else happens."""
        for job in self._book.active():
            if (plan := job.submission.sweep) and all(self._spool.has(file.sha256) for file in plan.uploads):
                self.add(job)
            elif plan:  # the queue was restored without it: only this one cannot go on
                gone = GaveUp("its parameters or inputs are no longer in the spool beside the queue")
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
        state = SweepState(job, plan, self._spool.read, self._weights)
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
        if plan.backup and job.phase is not Phase.DONE:
            state.remember(self._book.store.jobs([task_id(job.id, number) for number in state.ended[-SIBLINGS:]]))
        state.stopped = job.cancel_requested or job.phase is Phase.DONE
        return state

    def see(self, slots: int, weights: Mapping[str, float]) -> None:
        """What the grid is like: slots of all nodes that are up, and the weight of each node."""
        self.slots = slots
        self._weights.update(weights)

    def state(self, task: JobId) -> SweepState | None:
        """The sweep of this task; None when it is over, or the job is no task."""
        return self._states.get(sweep_of(task) or task)

    def goes_on(self, task: JobId) -> bool:
        """Whether there are tasks of its sweep that have never begun, and may."""
        state = self.state(task)
        return state is not None and not state.stopped and not state.job.held and state.unbegun > 0

    def upcoming(self, free: int, nearly_free: Mapping[JobId, int]) -> list[Job]:
        """Tasks that might begin now: of each sweep as many as the grid could take."""
        return [
            task for sweep, state in self._states.items() for task in state.upcoming(free, nearly_free.get(sweep, 0))
        ]

    def batch(self, task: Job) -> list[Job]:
        """A task that has never begun, with those that should go with it to the same slot; or none: it begins alone."""
        state = self.state(task.id)
        return [] if state is None else state.batch(task, self.slots)

    def with_stragglers(self) -> list[SweepState]:
        """The sweeps whose last tasks may get a second attempt."""
        return [state for state in self._states.values() if state.wants_backups()]

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
                with self._book.store.batch():  # a commit for each of thousands would keep everybody waiting
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
        if task.phase is not Phase.RUNNING:
            self._look(state)
        self._book.board.tell(state.job.id)

    def _given_back(self, tasks: Sequence[JobId]) -> None:
        state = self.state(tasks[0])
        if state is not None:
            state.given_back(tasks)
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
        # All of them now: one that ends by this leads here again.
        asked, state.unasked = state.unasked, set()
        if asked:
            with self._book.store.batch():
                for task in asked:
                    self._end_running(self._book.current(task))

    def _finish(self, state: SweepState) -> None:
        job = self._states.pop(state.job.id).job  # first, as no end of a task must finish it once more
        self._give_up_waiting(state)
        self._book.store.finish(job.id, self._verdict(state), time.time())
        self._book.reread(job.id)
        state.finished.set()

    def _give_up_waiting(self, state: SweepState) -> None:
        """Tasks that wait for another attempt which will not come."""
        waiting = list(state.again)
        with self._book.store.batch():
            for task in waiting:
                self._book.store.finish(task, Cancelled(state.job.cancel_by), time.time())
        for task in waiting:
            state.changed(self._book.reread(task))

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
    if plan.backup and submission.on_host_loss is not OnHostLoss.RELAUNCH:
        raise UsageError(
            f"--backup runs a task twice at the same time, and --on-host-loss {submission.on_host_loss} forbids that",
            "leave out one of them",
        )
    if plan.at_once is not None and plan.at_once < 1:
        raise UsageError("a sweep that may run no task at once never ends")
    Template(submission.program.args, table.names)
    chosen = chosen_tasks(plan)
    if plan.inputs:
        _check_inputs(plan, chosen, inputs.decode(read(plan.inputs.sha256)))


def _check_inputs(plan: Sweep, chosen: Sequence[range], found: inputs.Inputs) -> None:
    if len(found) != plan.tasks:
        raise UsageError(f"the inputs of this sweep are for {len(found)} tasks, and {plan.tasks} were announced")
    if not found.has_all(chosen):
        raise UsageError("a task of this sweep has no input, though others have")


def chosen_tasks(plan: Sweep) -> Sequence[range]:
    """The numbers of those that are to be run."""
    return parameters.parse_ranges(plan.chosen, plan.tasks) if plan.chosen else (range(1, plan.tasks + 1),)


def inputs_of(lists: Iterable[str], spool: Spool) -> set[str]:
    """The files that these lists of inputs name. A list that is not here names none."""
    there = (spool.read(each) for each in lists if spool.has(each))
    return {sha256 for packed in there for sha256 in inputs.decode(packed).sha256()}
