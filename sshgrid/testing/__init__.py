"""For tests of sshgrid and of what builds on it, without SSH: a scripted engine and a grid of scripted nodes.

`check_engine` is the contract that every engine passes. Nothing here is part of a running master.
"""

from sshgrid.testing.contract import CHECKS, Bench, Check, MakeBench, check_engine, imitate
from sshgrid.testing.engine import Play, ScriptedEngine, Stage, after, until_killed
from sshgrid.testing.grid import FACTS, ScriptedGrid, ScriptedNode, ScriptedPool, inventory, until

__all__ = [
    "CHECKS",
    "FACTS",
    "Bench",
    "Check",
    "MakeBench",
    "Play",
    "ScriptedEngine",
    "ScriptedGrid",
    "ScriptedNode",
    "ScriptedPool",
    "Stage",
    "after",
    "check_engine",
    "imitate",
    "inventory",
    "until",
    "until_killed",
]
