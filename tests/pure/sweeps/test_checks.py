"""Which sweeps have tasks that may share a start."""

from __future__ import annotations

import msgspec
import pytest

from sshgrid.model import Limits, Program, SourceFile, Submission
from sshgrid.sweeps.checks import fits_batch

FILE = SourceFile("p.sh", "0" * 64, 5)
PROGRAM = Program("sh", "p.sh", (FILE,))


@pytest.mark.parametrize(
    ("program", "fits"),
    [
        ({}, True),
        ({"limits": Limits(wall_seconds=1.0, memory_bytes=1 << 30, output_bytes=1 << 20)}, True),
        ({"data": (FILE,)}, True),
        ({"packs": (FILE,)}, True),
        ({"limits": Limits(processes=5)}, False),
        ({"fetch": ("*.txt",)}, False),
    ],
    ids=["plain", "limits", "files", "packs", "process limit", "fetch"],
)
def test_tasks_share_a_start_unless_the_program_needs_its_own(program: dict[str, object], fits: bool) -> None:
    assert fits_batch(Submission(msgspec.structs.replace(PROGRAM, **program), "p.sh")) is fits


@pytest.mark.parametrize("alone", [{"keep_children": True}, {"slots": 2}, {"gpus": 1}], ids=str)
def test_tasks_with_several_slots_gpus_or_kept_children_start_alone(alone: dict[str, object]) -> None:
    assert not fits_batch(msgspec.structs.replace(Submission(PROGRAM, "p.sh"), **alone))
