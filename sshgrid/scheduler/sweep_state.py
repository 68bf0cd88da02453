"""The state of one sweep in progress."""

from __future__ import annotations

import asyncio
import os
import shlex
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import islice
from math import ceil

import msgspec

from sshgrid.model import (
    MAX_TASKS,
    CompileFailed,
    Exited,
    Job,
    JobId,
    Phase,
    Sweep,
    Verdict,
    task_id,
    task_number,
)
from sshgrid.queue.slots_in_use import slot_of
from sshgrid.sweeps import inputs, parameters
from sshgrid.sweeps.checks import Counts, chosen_tasks, fits_batch, is_success
from sshgrid.sweeps.estimates import RuntimeEstimate
from sshgrid.sweeps.templates import Template

RATE_SECONDS = 10.0  # a rate is of so many seconds at most


# Short tasks go to a node many at a time: what a start, or the news of an end, costs should not be felt.
BATCH_SECONDS = 3.0


BATCH_MOST = 200


GROWTH = 16  # times as many as have ended: the first few may not be like the others


LONG_SECONDS = 10.0


START_SECONDS = 0.2


FEWEST_ENDED = 3  # before that nobody knows what is long


SHORTEST_SECONDS = 0.002  # a node's uptime has two decimals


NEWS_WEIGHT = 0.2  # of the newest duration in what is expected of the next one


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
        self._pace = RuntimeEstimate()
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
            self._pace, self._expected, self._precise = RuntimeEstimate(), None, True
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
