"""Limits of the tasks of a batch, and the memory that is recorded: as for single runs, with one watchdog."""

from __future__ import annotations

import os
from itertools import count

import msgspec
import pytest

from sshgrid.engines.launch import RunSpec, task_name
from sshgrid.model import Limits
from sshgrid.ssh.parsers import TaskEnd
from tests.edge.remote.test_batch_sh import NodeOf, numbered, out, said
from tests.edge.remote.test_remote_ends import FAMILY, PYTHON, gone
from tests.edge.shells import ShellNode
from tests.lab.machine import wait_until

KINDS = ["dash-session", "dash-pidns", "bash-session", "bash-pidns", "busybox-session"]
# No two tests, and no two processes that run tests, wait for the same number of seconds.
_seconds = count(20_000_000 + os.getpid() * 100)
HOLDS = b"import os, time\npid = os.fork()\nx = b'' if pid else b'x' * (200 << 20)\ntime.sleep(1000)"


@pytest.fixture(params=KINDS)
def shell(request: pytest.FixtureRequest, node_of: NodeOf) -> ShellNode:
    return node_of(request.param)


def limited(node: ShellNode, source: bytes, number: int, limits: Limits, run: bytes = b"/bin/sh") -> list[RunSpec]:
    """Return runs of one program, with 0, 1, 2 ... as argument."""
    words = (run, b"{dir}/p.sh")
    return [node.order(source, str(each).encode(), run=words, limits=limits) for each in range(number)]


def fates(ends: dict[str, TaskEnd]) -> list[tuple[int, str]]:
    return [(end.record.code, end.why) for end in ends.values()]


def run(node: ShellNode, orders: list[RunSpec]) -> dict[str, TaskEnd]:
    """Run the tasks. Return their ends, in the order of the runs."""
    ends = node.run_batch(orders)
    return {task_name(order): ends[task_name(order)] for order in orders}


# --- limits -----------------------------------------------------------------------------------------------------------


def test_every_third_of_50_tasks_exceeds_the_wall_limit_and_no_other(shell: ShellNode) -> None:
    source = b'[ $(($1 % 3)) != 0 ] || exec sleep 1000; echo "$1"'
    ends = run(shell, limited(shell, source, 50, Limits(wall_seconds=0.4)))
    assert fates(ends) == [(0, "") if number % 3 else (143, "wall") for number in range(50)]
    assert [out(end) for end in ends.values()] == [b"%d\n" % n if n % 3 else b"" for n in range(50)]
    for end in ends.values():
        assert end.record.ended_uptime - end.record.began_uptime < 20
        assert end.why != "wall" or end.record.ended_uptime - end.record.began_uptime >= 0.4


def test_the_wall_time_of_a_task_begins_with_the_task(shell: ShellNode) -> None:
    """Eight tasks, each for half of its limit: together they take four times that."""
    ends = run(shell, limited(shell, b"sleep 0.5", 8, Limits(wall_seconds=1.0)))
    assert fates(ends) == [(0, "")] * 8


def test_a_task_that_ignores_term_is_killed_and_the_next_one_begins(shell: ShellNode) -> None:
    seconds = next(_seconds)
    source = b'[ "$1" = 0 ] || exit 7\n' + FAMILY % {b"n": seconds} + b"while :; do sleep 0.1; done"
    ends = run(shell, limited(shell, source, 3, Limits(wall_seconds=0.3)))
    assert fates(ends) == [(137, "wall"), (7, ""), (7, "")]
    took = next(iter(ends.values())).record
    assert 5 < took.ended_uptime - took.began_uptime < 20
    gone(shell, seconds)


def test_a_task_whose_child_holds_the_memory_is_killed_alone(shell: ShellNode) -> None:
    source = b"import sys\nif sys.argv[1] != '1': sys.exit(5)\n" + HOLDS
    ends = run(shell, limited(shell, source, 3, Limits(memory_bytes=100 << 20), PYTHON))
    assert fates(ends) == [(5, ""), (137, "memory"), (5, "")]
    peaks = [end.record.peak_memory_bytes for end in ends.values()]
    assert peaks[1]
    assert peaks[1] > 100 << 20
    gone(shell)


def test_the_address_space_limit_does_not_stop_the_lane(shell: ShellNode) -> None:
    orders = limited(shell, b"ulimit -v", 2, Limits(memory_bytes=1 << 20))
    orders = [
        msgspec.structs.replace(order, recipe=msgspec.structs.replace(order.recipe, address_space_limit=True))
        for order in orders
    ]
    assert [out(end) for end in run(shell, orders).values()] == [b"%d\n" % ((2 + 256) << 10)] * 2


def test_F28_the_output_limit_of_a_task_counts_both_streams(shell: ShellNode) -> None:
    source = b'head -c "$1" /dev/zero; head -c 600 /dev/zero >&2; [ "$1" = 0 ] || exec sleep 1000'
    limits = Limits(output_bytes=1000)
    orders = [shell.order(source, size, limits=limits) for size in (b"0", b"600", b"0")]
    assert fates(run(shell, orders)) == [(0, ""), (143, "output"), (0, "")]


def test_a_task_that_ends_at_its_limit_has_one_result_and_affects_no_other(shell: ShellNode) -> None:
    source = b'[ "$1" != 1 ] || exit 7; exec sleep 0.3'
    orders = [shell.order(source, b"%d" % (each % 2), limits=Limits(wall_seconds=0.3)) for each in range(30)]
    found = fates(run(shell, orders))
    assert set(found[1::2]) == {(7, "")}
    assert set(found[::2]) <= {(0, ""), (0, "wall"), (143, "wall")}


def test_a_limit_is_the_reason_after_a_signal_that_the_task_survived(shell: ShellNode) -> None:
    source = b"trap 'echo got' INT; echo ready; while :; do sleep 0.05; done"
    orders = limited(shell, source, 1, Limits(wall_seconds=1.5))
    batch = shell.start_batch(orders)
    said(shell, batch, orders[0])
    assert shell.batch_verb("signal", f"{batch}/{task_name(orders[0])}", "INT") == "sent"
    said(shell, batch, orders[0], b"got")
    assert [(end.record.code, end.why) for end in shell.ended_batch(batch).ended] == [(143, "wall")]


def test_limits_hold_for_added_tasks(shell: ShellNode) -> None:
    source = b'[ "$1" != 0 ] || exec sleep 0.5; exec sleep 1000'
    orders = limited(shell, source, 3, Limits(wall_seconds=1.0))
    batch = shell.start_batch(orders[:1])
    assert shell.add_tasks(batch, 2, orders[1:]) == f"claimed {batch}.2"
    found = shell.ended_batch(batch).ended
    assert [(end.record.code, end.why) for end in found] == [(0, ""), (143, "wall"), (143, "wall")]


# --- memory that is reported ------------------------------------------------------------------------------------------


def test_the_memory_of_a_task_is_recorded_when_it_ran_for_long_enough(shell: ShellNode) -> None:
    source = b"import sys, time\nif sys.argv[1] == '1':\n    x = b'x' * (50 << 20)\n    time.sleep(1.6)"
    ends = [*run(shell, [shell.order(source, b"%d" % n, run=(PYTHON, b"{dir}/p.sh")) for n in (1, 1)]).values()]
    for end in ends:
        assert 50 << 20 < (end.record.peak_memory_bytes or 0) < 150 << 20
    short = run(shell, numbered(shell, b"exit 0", 1))
    assert [end.record.peak_memory_bytes for end in short.values()] == [None]


def test_a_record_stays_within_its_128_bytes(shell: ShellNode) -> None:
    orders = limited(shell, b"echo 1; echo 2 >&2; exec sleep 1000", 2, Limits(memory_bytes=1 << 40, wall_seconds=1.2))
    batch = shell.start_batch(orders)
    ends = shell.ended_batch(batch).ended
    assert all(end.record.peak_memory_bytes for end in ends)
    ledger = (shell.workdir / "runs" / batch / "ledger").read_bytes()
    assert len(ledger) == 2 * 2 * 128
    assert {len(line) for line in ledger.splitlines()} == {127}


# --- data files -----------------------------------------------------------------------------------------------------


def test_each_task_gets_its_own_copy_of_the_data_files(shell: ShellNode) -> None:
    source = b'cat a/words; ./a/tool; rm -r a; ls -A; [ "$1" != 1 ] || chmod 0 .'
    data = {"a/words": b"words\n", "a/tool": b"#!/bin/sh\necho tool\n"}
    orders = [shell.order(source, b"%d" % number, data=data) for number in range(4)]
    batch = shell.start_batch(orders[:3])
    shell.add_tasks(batch, 2, orders[3:])
    ends = shell.ended_batch(batch).ended
    assert {out(end) for end in ends} == {b"words\ntool\n"}
    folder = shell.workdir / "runs" / batch
    assert sorted(path.name for path in (folder / "work" / "a").iterdir()) == ["tool", "words"]


def test_the_watchdog_of_a_batch_ends_with_it(shell: ShellNode) -> None:
    batch = shell.start_batch(limited(shell, b"exit 0", 3, Limits(wall_seconds=50)))
    shell.ended_batch(batch)
    wait_until(lambda: not shell.processes(), "the watcher to go", 5, shell.processes)
