"""The state of one batch, shared by its owner (the scheduler) and the engine that runs it.

The owner creates the state, adds runs and removes them. The engine marks runs that have begun, and closes the batch for
more runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Generic, TypeVar

from sshgrid.clock import SYSTEM_CLOCK, Clock

T = TypeVar("T")


class BatchState(Generic[T]):
    """The runs of a batch that have not ended, by name, each with what the owner keeps of it."""

    def __init__(
        self,
        runs: Mapping[str, T],
        *,
        resumed: bool = False,
        keep_warm: bool = False,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.rest: dict[str, T] = dict(runs)  # in the order in which they begin
        self.joining: set[str] = set()  # of these, runs that the node has not accepted yet
        self.leaving: set[str] = set()  # of these, runs that the node is asked to revoke
        self.begun_at: dict[str, float] = {}  # of these, runs that have begun, and when that was reported
        self.takes_more = not resumed  # how many parts an earlier master has sent is not known
        self.keep_warm = keep_warm  # after the last run, the node waits a moment for more
        self.parts = 1  # in which its tasks were sent to the node
        self.has_begun = False  # the start or the end of a run was reported
        self._clock = clock
        self._progress_at = clock.monotonic()

    # --- the owner

    def join(self, runs: Mapping[str, T]) -> None:
        """Add runs that are about to be sent to the node."""
        self.rest |= runs
        self.joining |= runs.keys()

    def joined(self, runs: Iterable[str]) -> None:
        """Note that the node has answered for these runs."""
        self.joining.difference_update(runs)

    def remove(self, runs: Iterable[str]) -> None:
        """Forget runs that have ended or that never begin."""
        for run in runs:
            self.rest.pop(run, None)
            self.begun_at.pop(run, None)
            self.joining.discard(run)
            self.leaving.discard(run)

    # --- the engine

    def begin(self, runs: Iterable[str]) -> list[str]:
        """Note that these runs have begun; return those of them for which this is news."""
        fresh = [run for run in runs if run in self.rest and run not in self.begun_at]
        if fresh:
            self.note_progress()
            self.begun_at |= dict.fromkeys(fresh, self._progress_at)
        return fresh

    def note_progress(self) -> None:
        """Note that the start or the end of a run was reported now."""
        self._progress_at = self._clock.monotonic()
        self.has_begun = True

    def begun_before(self, moment: float) -> list[str]:
        """Return the runs that had begun by `moment` on the monotonic clock and have not ended."""
        return [run for run, begun in self.begun_at.items() if begun <= moment]

    def close(self) -> None:
        """Take no more runs."""
        self.takes_more = self.keep_warm = False

    # --- queries

    @property
    def all_ended(self) -> bool:
        """Whether every run has ended."""
        return not self.rest

    @property
    def idle(self) -> bool:
        """Whether every run has ended, and the node waits for more."""
        return self.keep_warm and not self.rest

    @property
    def ran_seconds(self) -> float:
        """How long the run that is in progress has run, as far as is known."""
        return self._clock.monotonic() - self._progress_at

    def is_first(self, run: str) -> bool:
        """Return whether this run is in progress, and not behind another one."""
        return next(iter(self.rest), None) == run

    def behind(self) -> list[str]:
        """Return the runs behind the one in progress, without those that are joining or leaving."""
        return [run for run in list(self.rest)[1:] if run not in self.joining and run not in self.leaving]

    def settled(self) -> list[str]:
        """Return the runs whose fate does not depend on an answer of the node that is still to come."""
        return [run for run in self.rest if run not in self.joining]
