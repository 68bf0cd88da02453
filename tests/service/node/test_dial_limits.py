"""Nodes that share the limit on dials to one server: those whose connection is dialled at the same address."""

from __future__ import annotations

from pathlib import Path

import pytest

from sshgrid.model import Node
from sshgrid.ssh.connect import Dialing, dial_address

CONFIG = """Host a b
    ProxyJump ana@gate:2222,inner
Host c
    ProxyJump none
"""
A, B, C = (Node(name, ssh_config=name) for name in "abc")
X, Y = (Node(name, host="192.0.2.1") for name in "xy")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (A, B, True),
        (A, C, False),
        (X, Y, True),
        (X, Node("z", host="192.0.2.2"), False),
        (X, Node("z", host="192.0.2.1", port=2222), False),
        (Node("here-1", connection="local"), Node("here-2", connection="local"), False),
    ],
)
def test_F29_nodes_of_one_server_or_jump_host_share_a_dial_limit(
    tmp_path: Path, one: Node, other: Node, same: bool
) -> None:
    config = tmp_path / "config"
    config.write_text(CONFIG)
    how = Dialing(ssh_config=str(config))
    assert (dial_address(one, how) == dial_address(other, how)) is same
