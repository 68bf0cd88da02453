"""Computes the least time for runs of known lengths on hosts of known speed: all hosts are busy until the end.

A scheduler can reach it only when the lengths fit exactly.
"""

from __future__ import annotations

from collections.abc import Mapping

from bench.peers.environment import Environment
from bench.work import Work


class LowerBound:
    name = "work / speed"

    def __init__(self, environment: Environment, speeds: Mapping[str, float]) -> None:
        self._speeds = [speeds[host] for host in environment.hosts]
        self._slots = environment.slots

    def install(self) -> str:
        return ""

    def run(self, work: Work) -> float:
        lengths = [float(argument) for argument in work.arguments]
        return max(sum(lengths) / (self._slots * sum(self._speeds)), max(lengths) / max(self._speeds))

    def close(self) -> None:
        """No process to end."""
