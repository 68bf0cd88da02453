"""The least time that work of known lengths can take on hosts of known speed: all of them busy to the very end.

No scheduler reaches it unless the lengths happen to fit. Refuses nothing; it only reckons.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.peers.ground import Ground
from bench.work import Work


class LowerBound:
    name = "work / speed"

    def __init__(self, ground: Ground, speeds: Mapping[str, float]) -> None:
        self._speeds = [speeds[host] for host in ground.hosts]
        self._slots = ground.slots

    def install(self) -> str:
        return ""

    def run(self, work: Work) -> float:
        lengths = [float(argument) for argument in work.arguments]
        return max(sum(lengths) / (self._slots * sum(self._speeds)), max(lengths) / max(self._speeds))

    def close(self) -> None:
        """There is nothing to close."""
