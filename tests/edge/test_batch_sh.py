"""Batches on the node, under every shell a node may have: what one run is promised, each of many tasks is, too."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sshgrid.jobscript import Order, task_name
from sshgrid.readings import TaskEnd
from tests.edge.shells import ShellNode

NODES = Callable[..., ShellNode]


def alike(node: ShellNode, source: bytes, *arguments: tuple[bytes, ...]) -> list[Order]:
    """Orders of one program, each with its own arguments."""
    return [node.order(source, *words) for words in arguments]


def numbered(node: ShellNode, source: bytes, count: int) -> list[Order]:
    return alike(node, source, *((str(number).encode(),) for number in range(count)))


def out(end: TaskEnd) -> bytes:
    return end.small.get("out", b"")


def err(end: TaskEnd) -> bytes:
    return end.small.get("err", b"")


@pytest.mark.parametrize("lanes", [1, 3])
def test_each_task_has_its_own_code_and_bytes(node: ShellNode, lanes: int) -> None:
    orders = numbered(node, b'printf "out %s\\000\\n" "$1"; printf "err %s" "$1" >&2; exit "$1"', 20)
    ends = node.run_batch(orders, lanes)
    for number, order in enumerate(orders):
        end = ends[task_name(order)]
        assert (end.record.code, end.record.stage, end.why) == (number, "run", "")
        assert out(end) == b"out %d\0\n" % number
        assert err(end) == b"err %d" % number
        assert 0 < end.record.began_uptime <= end.record.ended_uptime
        assert end.record.cpu_seconds is not None
