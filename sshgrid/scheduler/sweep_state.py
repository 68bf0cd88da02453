"""The state of one sweep in progress: which tasks start next, and what is left to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from sshgrid.clock import Clock
from sshgrid.model import (
    MAX_TASKS,
    Cancelled,
    Exited,
    Job,
    JobId,
    Phase,
    Sweep,
    SweepDone,
    Verdict,
    task_number,
)
from sshgrid.scheduler.sweep_tasks import EndedTasks, RunningTasks
from sshgrid.sweeps.checks import Counts, chosen_tasks, fits_batch
from sshgrid.sweeps.chunking import UnstartedTasks, batch_size
from sshgrid.sweeps.estimates import TaskRuntimes
from sshgrid.sweeps.task_jobs import TaskJobs

# No speculative attempts before this many tasks have ended: too little is known of how long a task takes.
MIN_ENDED_TO_SPECULATE = 3


class SweepState:
    """One sweep in progress.

    `started` has the numbers of the tasks that have started before; the store has these. `read` returns a file by its
    digest, `weights` has the weight of each node.
    """

    def __init__(
        self,
        job: Job,
        started: Collection[int],
        read: Callable[[str], bytes],
        weights: Mapping[str, float],
        clock: Clock,
    ) -> None:
        self.job = job
        self.stopped = False  # no more tasks start
        self.end_event = asyncio.Event()
        self.running = RunningTasks()
        self.retrying: dict[JobId, Job] = {}  # tasks that wait for another attempt
        self.outcomes = EndedTasks()
        self.runtimes = TaskRuntimes(weights)
        self._chosen = chosen_tasks(self.plan)
        self.tasks = sum(map(len, self._chosen))
        unstarted = (number for number in self.numbers() if number not in started)
        self.unstarted = UnstartedTasks(unstarted, self.tasks - len(started))
        self._task_jobs = TaskJobs(job, read)
        self._clock = clock

    @property
    def plan(self) -> Sweep:
        assert self.job.submission.sweep is not None
        return self.job.submission.sweep

    def numbers(self) -> Iterator[int]:
        """The numbers of all chosen tasks, in order."""
        return (number for numbers in self._chosen for number in numbers)

    # --- which tasks start next

    def upcoming(self, count: int, nearly_free: int, now: float) -> Iterator[Job]:
        """The next tasks that may start, as jobs: `count` of them, and those that back off.

        `nearly_free` of the slots that the sweep has can take more tasks soon.
        """
        if self.job.held or self.stopped:
            return
        if self.plan.at_once is not None:
            count = min(count, self.free_slots() + nearly_free)
        for task in self.retrying.values():
            if count <= 0:
                return
            count -= task.not_before <= now  # a task that backs off takes no other task's place
            yield task
        for number in self.unstarted.first(count):
            yield self._task_jobs.job(number)

    def batch(self, first: Job, slots: int) -> list[Job]:
        """The task `first` and the tasks that should start with it in one slot; [] when it should start alone.

        `slots` is the number of slots of all nodes that are up.
        """
        if not fits_batch(self.job.submission):
            return []
        usable = slots if self.plan.at_once is None else min(slots, self.plan.at_once)
        size = batch_size(self.runtimes.expected_seconds, len(self.unstarted), len(self.ended), usable)
        if not size:
            return []
        numbers = [number for number in self.unstarted.first(size) if number != task_number(first.id)]
        return [first, *map(self._task_jobs.job, numbers[: size - 1])]

    @property
    def may_start(self) -> bool:
        """Whether the sweep may use one more slot."""
        return not self.stopped and not self.job.held and self.free_slots() > 0

    @property
    def has_unstarted(self) -> bool:
        """Whether there are tasks that may still start for the first time."""
        return not self.stopped and not self.job.held and len(self.unstarted) > 0

    @property
    def may_speculate(self) -> bool:
        """Whether running tasks may get a second attempt: no task of the sweep waits for a slot."""
        may = self.plan.backup and self.may_start and not self.without_slot
        return may and len(self.ended) >= MIN_ENDED_TO_SPECULATE

    def free_slots(self) -> int:
        """How many more slots the sweep may have."""
        in_use = self.running.slots + len(self.running.speculative)
        return MAX_TASKS if self.plan.at_once is None else self.plan.at_once - in_use

    # --- what has happened

    def update(self, task: Job) -> None:
        """Take over the newest state of one task."""
        if task.id not in self.running and task.id not in self.retrying:
            self.unstarted.remove(task_number(task.id))
        self.running.remove(task.id)
        self.retrying.pop(task.id, None)
        match task.phase:
            case Phase.RUNNING:
                self.running.add(task)
            case Phase.QUEUED:
                self.retrying[task.id] = task
            case Phase.DONE:
                self.outcomes.add(task_number(task.id), task.verdict)
                self.outcomes.note_moment(self._clock.monotonic())
                self.learn_runtime(task)

    def undo_begin(self, tasks: Sequence[JobId]) -> None:
        """Return tasks that were claimed for a node and never started to the unstarted ones."""
        for task in tasks:
            self.running.remove(task)
        self.unstarted.add_first(map(task_number, tasks))

    def learn_runtime(self, task: Job) -> None:
        """Learn from an ended task how long the next ones take."""
        if task.current is not None and isinstance(task.verdict, Exited):
            self.runtimes.learn(task.current)

    def seconds_on(self, node: str) -> float | None:
        """The expected seconds of a task on this node; None before any has ended."""
        return self.runtimes.seconds_on(node)

    # --- how far it is

    @property
    def ended(self) -> list[int]:
        """The numbers of the tasks that have ended, in the order of their ends."""
        return self.outcomes.numbers

    @property
    def compile_output_task(self) -> int:
        """The task whose compiler output is shown for all tasks; 0 = none."""
        return self.outcomes.compile_output_task

    @property
    def without_slot(self) -> int:
        """How many tasks are in no slot, neither as the running task nor behind one in a batch."""
        return len(self.unstarted) + len(self.retrying)

    @property
    def started(self) -> bool:
        """Whether any task has started."""
        return bool(self.running or self.retrying or self.ended)

    @property
    def has_ended(self) -> bool:
        """Whether no task runs and none will start."""
        return not self.running and (self.stopped or not self.without_slot)

    def counts(self) -> Counts:
        """All tasks by what they do now."""
        waiting = self.without_slot
        left = waiting if self.stopped else 0
        behind = len(self.running) - self.running.slots  # in a batch, behind the task that runs
        return Counts(
            tasks=self.tasks,
            ended=len(self.ended),
            failed=self.outcomes.failed,
            running=self.running.slots,
            speculative=len(self.running.speculative),
            waiting=waiting - left + behind,
            left=left,
        )

    def rate(self) -> float:
        """Tasks that ended per second, lately."""
        return self.outcomes.rate(self._clock.monotonic())


def sweep_verdict(state: SweepState) -> Verdict:
    """The verdict of a sweep that has ended."""
    if state.job.cancel_requested:
        return Cancelled(state.job.cancel_by)
    if state.outcomes.compile_failure:
        return state.outcomes.compile_failure
    counts = state.counts()
    return SweepDone(counts.tasks, counts.failed, counts.left)
