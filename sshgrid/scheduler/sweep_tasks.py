"""The tasks of a sweep in progress that run, and those that have ended."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator

from sshgrid.model import CompileFailed, Job, JobId, Verdict
from sshgrid.queue.slots_in_use import slot_of
from sshgrid.sweeps.checks import is_success

RATE_SECONDS = 10.0  # a rate is measured over at most this many seconds


class RunningTasks:
    """The tasks that run or wait in a batch, and the slots that they share."""

    def __init__(self) -> None:
        self.speculative: set[JobId] = set()  # tasks with two live attempts
        self.not_cancelled: set[JobId] = set()  # tasks without a cancel request
        self._slots: dict[JobId, object] = {}  # by task
        self._sharing: Counter[object] = Counter()  # how many tasks share each slot

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[JobId]:
        return iter(self._slots)

    def __contains__(self, task: object) -> bool:
        return task in self._slots

    @property
    def slots(self) -> int:
        """How many slots these tasks have, without those of speculative attempts."""
        return len(self._sharing)

    @property
    def alone(self) -> list[JobId]:
        """The tasks that run without a batch."""
        # `slot_of` returns the task's id for a task without a batch.
        return [JobId(slot) for slot in self._sharing if isinstance(slot, int)]

    def add(self, task: Job) -> None:
        """Add a task that has started, alone or in a batch; nothing changes when it is already among them."""
        if task.id in self._slots:
            return
        slot = self._slots[task.id] = slot_of(task)
        self._sharing[slot] += 1
        if len(task.live) > 1:
            self.speculative.add(task.id)
        if not task.cancel_requested:
            self.not_cancelled.add(task.id)

    def remove(self, task: JobId) -> None:
        """Remove a task that no longer runs; nothing changes when it did not run."""
        self.speculative.discard(task)
        self.not_cancelled.discard(task)
        slot = self._slots.pop(task, None)
        if slot is not None:
            self._sharing[slot] -= 1
            if not self._sharing[slot]:
                del self._sharing[slot]


class EndedTasks:
    """The tasks that have ended, in the order of their ends."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.failed = 0
        self.compile_failure: CompileFailed | None = None
        self.compile_output_task = 0  # its compiler output is shown: that of the other tasks is the same
        self._moments: deque[float] = deque()

    def add(self, number: int, verdict: Verdict | None) -> None:
        """Count a task that has ended."""
        self.numbers.append(number)
        self.failed += not is_success(verdict)
        if isinstance(verdict, CompileFailed) and not self.compile_failure:
            self.compile_failure, self.compile_output_task = verdict, number

    def note_moment(self, now: float) -> None:
        """Note that a task ended at this moment of the monotonic clock."""
        self._moments.append(now)

    def rate(self, now: float) -> float:
        """Tasks that ended per second, over the last RATE_SECONDS."""
        while self._moments and now - self._moments[0] > RATE_SECONDS:
            self._moments.popleft()
        if len(self._moments) < 2:
            return 0.0
        return len(self._moments) / max(0.1, now - self._moments[0])
