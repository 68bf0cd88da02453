"""Runs only a fraction of the work on a slow peer, and multiplies its time. The name in the table says so."""

from __future__ import annotations

from bench.peers import Peer
from bench.work import Work


class Fraction:
    def __init__(self, peer: Peer, one_of: int) -> None:
        self.name = f"{peer.name} (1 in {one_of} of them, x {one_of})"
        self._peer = peer
        self._one_of = one_of

    def install(self) -> str:
        return self._peer.install()

    def run(self, work: Work) -> float:
        return self._one_of * self._peer.run(work.part(self._one_of))

    def close(self) -> None:
        self._peer.close()
