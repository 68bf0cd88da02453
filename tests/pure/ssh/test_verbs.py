"""What the master asks of a node is what the node knows: a verb that is missing there would fail without a word."""

from __future__ import annotations

import re
from pathlib import Path

import sshgrid

ROOT = Path(sshgrid.__file__).parent
SHELL_WORDS = {"eval"}


def test_every_verb_that_a_link_asks_for_is_a_function_of_the_nodes_scripts() -> None:
    asked = set(re.findall(r'_ask\(\s*"(\w+)"', (ROOT / "nodes.py").read_text())) - SHELL_WORDS
    scripts = "".join((ROOT / "remote" / name).read_text() for name in ("node.sh", "batch.sh"))
    known = set(re.findall(r"^(\w+)\(\) ", scripts, re.MULTILINE))
    assert {"poll", "piece", "renew", "clean"} <= asked
    assert asked <= known
