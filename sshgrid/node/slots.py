"""The slots and GPUs of one node that runs have, and how many slots were taken and freed since its last load sample."""

from __future__ import annotations

from collections.abc import Sequence

from sshgrid.clock import Clock
from sshgrid.model import Struct

REMEMBERED = 64  # starts and ends, in slots: more than a node starts or ends between two load samples


class Share(Struct, frozen=True):
    """The part of its node that a run has."""

    slots: int = 1
    gpus: tuple[int, ...] = ()


ONE_SLOT = Share()
NO_SLOT = Share(0)


class SlotUse:
    """The slots of one node that are in use."""

    def __init__(self, clock: Clock) -> None:
        self.running: dict[str, Share] = {}  # by run or batch: its share, until the run has ended
        self._clock = clock
        self._starts: list[float] = []  # monotonic time of each slot taken, the latest last
        self._ends: list[float] = []

    def begin(self, run: str, share: Share = ONE_SLOT) -> None:
        """Give a share of the node to a run or batch."""
        self.running[run] = share
        self._starts = self._appended(self._starts, share)

    def end(self, run: str) -> None:
        """Free the share of a run that has ended."""
        if share := self.running.pop(run, None):
            self._ends = self._appended(self._ends, share)

    def release(self, run: str) -> None:
        """Free the share of a run early, as it is about to end. The run stays in `running`."""
        self.end(run)
        self.running[run] = NO_SLOT

    @property
    def in_use(self) -> int:
        return sum(share.slots for share in self.running.values())

    @property
    def gpus_in_use(self) -> frozenset[int]:
        return frozenset(number for share in self.running.values() for number in share.gpus)

    def taken_since(self, moment: float) -> int:
        """Return how many slots were taken after this moment of the monotonic clock."""
        return sum(at > moment for at in self._starts) if self._starts else 0

    def freed_since(self, moment: float) -> int:
        """Return how many slots were freed after this moment of the monotonic clock."""
        return sum(at > moment for at in self._ends) if self._ends else 0

    def _appended(self, times: Sequence[float], share: Share) -> list[float]:
        return [*times[1 - REMEMBERED :], *[self._clock.monotonic()] * share.slots]
