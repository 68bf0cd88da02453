"""The shell functions that the master calls exist in the scripts for nodes: a missing one would fail silently there."""

from __future__ import annotations

import re
from pathlib import Path

import sshgrid

ROOT = Path(sshgrid.__file__).parent
BUILTINS = {"eval"}


def test_every_requested_verb_is_a_function_of_the_scripts_for_nodes() -> None:
    code = "".join(path.read_text() for path in (ROOT / "ssh").glob("*.py"))
    requested = set(re.findall(r'\.request\(\s*"(\w+)"', code)) - BUILTINS
    started = set(re.findall(r'words = \("(\w+)", batch', code))
    scripts = "".join((ROOT / "remote" / name).read_text() for name in ("node.sh", "batch.sh"))
    known = set(re.findall(r"^(\w+)\(\) ", scripts, re.MULTILINE))
    assert {"poll", "read_piece", "renew_lease", "clean", "missing_objects"} <= requested
    assert started == {"add_tasks"}
    assert {*requested, *started, "start", "prepare"} <= known
