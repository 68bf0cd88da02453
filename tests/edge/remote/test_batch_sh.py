"""Batches on the node, under every shell that a node can have: the promises of a run hold for each task."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from sshgrid.engines.launch import RunSpec, make_batch, task_name
from sshgrid.ssh.parsers import BatchLook, TaskEnd
from tests.edge.remote.test_remote_disk import Disk, disk, fill
from tests.edge.shells import PATIENCE_SECONDS, ShellNode
from tests.lab.machine import is_alive, uptime, wait_until

__all__ = ["disk"]
NodeOf = Callable[..., ShellNode]
SHELLS = ["dash-session", "dash-pidns", "bash-session", "busybox-session"]
AWKWARD = (b"", b"a b", b"$(id)", b"`id`", b"'\"", b"-n", b"\xff\xfe", b"line\nline", b"*", b"\\")
LONG = b"echo ready; exec sleep 600"


def numbered(node: ShellNode, source: bytes, count: int) -> list[RunSpec]:
    """Return runs of one program, with 0, 1, 2 ... as argument."""
    return [node.order(source, str(number).encode()) for number in range(count)]


def out(end: TaskEnd) -> bytes:
    return end.small.get("out", b"")


def err(end: TaskEnd) -> bytes:
    return end.small.get("err", b"")


def codes(look: BatchLook) -> dict[str, int]:
    return {end.task: end.record.code for end in look.ended}


def said(node: ShellNode, batch: str, order: RunSpec, words: bytes = b"ready") -> None:
    path = node.workdir / "runs" / batch / f"{task_name(order)}.out"
    wait_until(lambda: path.exists() and words in path.read_bytes(), f"{words!r} in {path}", PATIENCE_SECONDS)


def lanes_of(node: ShellNode, batch: str) -> list[int]:
    links = (node.workdir / "runs" / batch).glob("lane.*")
    return [int(str(link.readlink()).partition(",")[0].removeprefix("pid=")) for link in links]


# --- input and output of a task ---------------------------------------------------------------------------------------


def test_each_task_has_its_own_exit_code_and_output(node: ShellNode) -> None:
    orders = numbered(node, b'printf "out %s\\000\\n" "$1"; printf "err %s" "$1" >&2; exit "$1"', 20)
    ends = node.run_batch(orders)
    for number, order in enumerate(orders):
        end = ends[task_name(order)]
        assert (end.record.code, end.record.stage, end.why) == (number, "run", "")
        assert out(end) == b"out %d\0\n" % number
        assert err(end) == b"err %d" % number
        assert 0 < end.record.began_uptime <= end.record.ended_uptime
        assert end.record.cpu_seconds is not None


def test_arguments_arrive_byte_for_byte(node: ShellNode) -> None:
    orders = [node.order(b"printf '%s\\037' \"$@\"", *AWKWARD), node.order(b"printf '%s\\037' \"$@\"", b"next")]
    ends = node.run_batch(orders)
    expected = b"".join(word + b"\37" for word in AWKWARD)
    assert [out(ends[task_name(order)]) for order in orders] == [expected, b"next\37"]


def test_no_task_sees_the_variables_of_another_and_any_name_is_allowed(node: ShellNode) -> None:
    # Also names that the scripts use, and values that are hard to quote.
    names = [
        "A",
        "PATH",
        "W",
        "RUN",
        "LANE",
        "name",
        "why",
        "input",
        "command",
        "began",
        "code",
        "now",
        "DIR",
        "COMMON",
    ]
    values = [b"/nowhere", b"it's $HOME\nand `id`", b""]
    orders = [
        node.order(b'/usr/bin/printenv "$@"', name.encode(), b"A", env={name: value})
        for name in names
        for value in values
    ]
    ends = node.run_batch(orders)
    for number, order in enumerate(orders):
        name, value = names[number // len(values)], values[number % len(values)]
        expected = value + b"\n" if name != "A" else value + b"\n" + value + b"\n"
        assert out(ends[task_name(order)]) == expected, name


def test_each_task_has_its_own_empty_folder_input_and_identity(node: ShellNode) -> None:
    source = b'ls -A; echo "$SSHGRID_JOB_ID $SSHGRID_RUN"; cat; echo mine >file; umask'
    orders = [node.order(source), node.order(source, stdin=b"words\0\n"), node.order(source, stdin=b"others")]
    ends = node.run_batch(orders)
    for order, given in zip(orders, (b"", b"words\0\n", b"others"), strict=True):
        end = ends[task_name(order)]
        assert out(end) == b"%d %s/\n%s0022\n" % (order.attempt.job, order.run.encode(), given)
        assert end.record.code == 0


def test_signals_are_not_ignored_in_a_task(node: ShellNode) -> None:
    orders = [
        node.order(b'kill -s "$1" $$; echo outlived', name) for name in (b"INT", b"TERM", b"QUIT", b"HUP", b"PIPE")
    ]
    ends = node.run_batch(orders)
    assert [ends[task_name(order)].record.code for order in orders] == [130, 143, 131, 129, 141]
    assert not any(map(out, ends.values()))
    if node.sh.resolve().name == "bash":
        assert not any(map(err, ends.values())), "the lane's shell has words of its own"


def test_a_missing_tool_is_the_reason_of_a_task(node: ShellNode) -> None:
    orders = [node.order(b"", word, run=(b"/no/such",)) for word in (b"1", b"2")]
    ends = node.run_batch(orders)
    assert [(end.record.code, end.why) for end in ends.values()] == [(127, "toolchain")] * 2


# --- processes of a task ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal_name", ["TERM", "KILL", "INT"])
def test_a_task_that_kills_its_own_group_ends_nothing_else(node: ShellNode, signal_name: str) -> None:
    source = b'[ "$1" != 1 ] || { kill -s %s 0; sleep 600; }; echo "$1"' % signal_name.encode()
    orders = numbered(node, source, 4)
    ends = node.run_batch(orders)
    number = {"TERM": 15, "KILL": 9, "INT": 2}[signal_name]
    assert [ends[task_name(order)].record.code for order in orders] == [0, 128 + number, 0, 0]
    assert [out(ends[task_name(order)]) for order in orders] == [b"0\n", b"", b"2\n", b"3\n"]


@pytest.mark.parametrize("escape", [b"", b"setsid"])
def test_processes_left_by_a_task_end_while_the_batch_continues(node: ShellNode, escape: bytes) -> None:
    source = b'[ "$1" = 1 ] && { echo ready; exec sleep 600; }; %s sleep 601 & echo $!' % escape
    orders = numbered(node, source, 2)
    batch = node.start_batch(orders)
    said(node, batch, orders[1])
    wait_until(lambda: not node.processes(orders[0].run), "the end of what the first task left", 20.0)
    assert node.batch_status(batch).run.record is None
    assert node.batch_verb("signal", f"{batch}/{task_name(orders[1])}", "KILL") == "sent"
    assert list(codes(node.ended_batch(batch)).values()) == [0, 137]


def test_a_signal_reaches_one_task_alone(node: ShellNode) -> None:
    source = b"trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    orders = numbered(node, source, 2)
    batch = node.start_batch(orders)
    said(node, batch, orders[0])
    first, second = (f"{batch}/{task_name(order)}" for order in orders)
    assert node.batch_verb("signal", second, "TERM") == "none"
    assert node.batch_verb("signal", first, "TERM") == "sent"
    wait_until(lambda: codes(node.batch_status(batch)) == {task_name(orders[0]): 9}, "the first to end alone")
    said(node, batch, orders[1])
    assert node.batch_verb("signal", first, "TERM") == "none"
    assert node.batch_verb("signal", f"{batch}/77.1", "TERM") == "none"
    assert node.batch_verb("signal", second, "KILL") == "sent"
    look = node.ended_batch(batch)
    assert codes(look) == {task_name(orders[0]): 9, task_name(orders[1]): 137}
    assert {end.why for end in look.ended} == {"signal"}


def test_a_task_that_has_not_begun_is_refused(node: ShellNode) -> None:
    orders = numbered(node, b'[ "$1" != 0 ] || { echo ready; exec sleep 600; }; echo ran', 3)
    batch = node.start_batch(orders)
    said(node, batch, orders[0])
    names = [task_name(order) for order in orders]
    assert node.batch_verb("refuse_tasks", batch, *names[:2]).split() == names[1:2]
    assert node.batch_verb("refuse_tasks", batch, names[1]) == ""
    node.batch_verb("signal", f"{batch}/{names[0]}", "KILL")
    look = node.ended_batch(batch)
    assert look.begun == (task_name(orders[0]), task_name(orders[2]))
    assert codes(look) == {task_name(orders[0]): 137, task_name(orders[2]): 0}


# --- added tasks ------------------------------------------------------------------------------------------------------

UNTIL_TOLD = b'echo ready; while [ ! -e "%s/go" ]; do sleep 0.02; done; echo "$1"; exit "$1"'


@pytest.mark.parametrize("kind", SHELLS)
def test_tasks_are_added_while_a_batch_runs(node_of: NodeOf, kind: str) -> None:
    node = node_of(kind)
    orders = numbered(node, UNTIL_TOLD % os.fsencode(node.folder), 9)
    batch = node.start_batch(orders[:2])
    said(node, batch, orders[0])
    assert node.add_tasks(batch, 2, orders[2:5]) == f"claimed {batch}.2"
    assert node.add_tasks(batch, 2, orders[2:5]) == f"already {batch}.2"
    assert node.add_tasks(batch, 3, orders[5:]) == f"claimed {batch}.3"
    (node.folder / "go").touch()
    look = node.ended_batch(batch)
    assert codes(look) == {task_name(order): number for number, order in enumerate(orders)}
    assert {out(end) for end in look.ended} == {b"ready\n%d\n" % number for number in range(9)}
    assert look.records == 18


@pytest.mark.parametrize("kind", SHELLS)
def test_a_batch_that_has_ended_takes_no_more_tasks(node_of: NodeOf, kind: str) -> None:
    node = node_of(kind)
    orders = numbered(node, b'exit "$1"', 4)
    batch = node.start_batch(orders[:2])
    node.ended_batch(batch)
    assert node.add_tasks(batch, 2, orders[2:]) == f"already {batch}.2"
    assert codes(node.batch_status(batch)) == {task_name(orders[0]): 0, task_name(orders[1]): 1}
    node.batch_verb("clean", batch)
    assert node.add_tasks(batch, 2, orders[2:]) == f"already {batch}.2"
    assert not (node.workdir / "runs" / batch).exists()


def test_F5_added_tasks_that_are_late_or_lack_an_object_are_refused(node: ShellNode) -> None:
    source = b'[ "$1" != 0 ] || { echo ready; exec sleep 600; }; cat'
    first, second = node.order(source, b"0"), node.order(source, b"1", stdin=b"1")
    batch = node.start_batch([first])
    said(node, batch, first)
    assert node.add_tasks(batch, 2, [second], not_after=uptime() - 2) == f"late {batch}.2"
    assert second.program.stdin
    (node.workdir / "objects" / second.program.stdin.sha256).rename(node.folder / "aside")
    assert node.add_tasks(batch, 2, [second]) == f"missing {batch}.2 {second.program.stdin.sha256}"
    (node.folder / "aside").rename(node.workdir / "objects" / second.program.stdin.sha256)
    assert node.add_tasks(batch, 2, [second]) == f"claimed {batch}.2"
    node.batch_verb("signal", f"{batch}/{task_name(first)}", "KILL")
    assert codes(node.ended_batch(batch)) == {task_name(first): 137, task_name(second): 0}


@pytest.mark.parametrize("kind", SHELLS)
def test_added_tasks_continue_in_a_new_lane(node_of: NodeOf, kind: str) -> None:
    node = node_of(kind)
    wait = b'while [ ! -e "%s/go" ]; do sleep 0.02; done' % os.fsencode(node.folder)
    orders = numbered(node, b'[ "$1" != 0 ] || { echo ready; ' + wait + b'; kill -9 0; }; exit "$1"', 3)
    batch = node.start_batch(orders[:1])
    said(node, batch, orders[0])
    assert node.add_tasks(batch, 2, orders[1:]) == f"claimed {batch}.2"
    (node.folder / "go").touch()
    look = node.ended_batch(batch)
    assert codes(look) == {task_name(orders[0]): 137, task_name(orders[1]): 1, task_name(orders[2]): 2}


@pytest.mark.parametrize("kind", SHELLS)
def test_a_new_lane_reuses_no_folder_of_an_earlier_task(node_of: NodeOf, kind: str) -> None:
    node = node_of(kind)
    orders = numbered(node, b'ls -A; echo mine >"of $1"; [ "$1" != 1 ] || kill -9 0', 5)
    ends = node.run_batch(orders)
    assert [out(ends[task_name(order)]) for order in orders] == [b""] * 5


# --- the batch as a run -----------------------------------------------------------------------------------------------


def test_a_batch_starts_once_and_in_time(node: ShellNode) -> None:
    orders = numbered(node, b"cat", 2)
    batch = make_batch(orders)
    assert node.start(batch, not_after=uptime() - 2) == f"late {batch.run}"
    (node.workdir / "objects" / orders[0].recipe.layout[0][1].sha256).rename(node.workdir / "aside")
    assert node.start(batch).startswith(f"missing {batch.run} ")
    (node.workdir / "aside").rename(node.workdir / "objects" / orders[0].recipe.layout[0][1].sha256)
    node.run_batch(orders)
    assert node.start(batch) == f"already {batch.run}"
    other = make_batch([node.order(b"cat", stdin=b"1"), node.order(b"cat", stdin=b"2")])
    inputs = [order.program.stdin.sha256 for order in other.tasks if order.program.stdin]
    for sha256 in inputs:
        (node.workdir / "objects" / sha256).unlink()
    assert node.start(other) == f"missing {other.run} {inputs[0]} {inputs[1]}"


def test_a_batch_with_a_killed_wrapper_starts_no_task_after_a_status_request(node: ShellNode) -> None:
    orders = numbered(node, LONG, 4)
    batch = node.start_batch(orders)
    said(node, batch, orders[0])
    wrapper = str((node.workdir / "runs" / batch / "pid").readlink())
    os.kill(int(wrapper.partition(",")[0].removeprefix("pid=")), signal.SIGKILL)
    lanes = lanes_of(node, batch)
    wait_until(lambda: not node.batch_status(batch).run.alive, "the death to be seen")
    look = node.batch_status(batch)
    assert not look.ended
    assert look.begun == (task_name(orders[0]),)
    assert not any(map(is_alive, lanes))
    assert not node.processes(node.grid)


def test_clean_ends_a_running_batch_and_leaves_nothing(node: ShellNode) -> None:
    orders = numbered(node, b"setsid sleep 600 & echo ready; exec sleep 600", 4)
    batch = node.start_batch(orders)
    said(node, batch, orders[0])
    assert node.batch_verb("clean", batch) == ""
    assert not (node.workdir / "runs" / batch).exists()
    assert not node.processes()


def test_F6_a_lease_ends_the_whole_batch(node: ShellNode) -> None:
    orders = numbered(node, LONG, 3)
    batch = node.start_batch(orders, lease=uptime() + 5)
    said(node, batch, orders[0])
    wait_until(lambda: not node.batch_status(batch).run.alive, "the lease to end", 20.0)
    look = node.batch_status(batch)
    assert look.run.why == "lease"
    assert look.begun == (task_name(orders[0]),)
    assert not node.processes()


@pytest.mark.parametrize("kind", SHELLS)
def test_the_ledger_is_read_from_any_record(node_of: NodeOf, kind: str) -> None:
    node = node_of(kind)
    orders = numbered(node, b'echo "$1"; exit "$1"', 30)
    batch = node.start_batch(orders)
    whole = node.ended_batch(batch)
    assert whole.records == 60
    parts = [node.news_of_batch(batch, start) for start in (0, 7, 31, 59, 60)]
    assert [part.records for part in parts] == [60, 53, 29, 1, 0]
    assert [part.ended[-1].task for part in parts[:-1]] == [whole.ended[-1].task] * 4
    assert [out(end) for end in parts[2].ended] == [out(end) for end in whole.ended[-len(parts[2].ended) :]]


# --- full disks -------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(disk: Disk) -> Path:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount small file systems")
    return disk("size=3m")


@pytest.mark.parametrize("kind", SHELLS)
def test_F23_no_exit_code_of_a_batch_is_lost_on_a_full_disk(small: Path, node_of: NodeOf, kind: str) -> None:
    node = node_of(kind, small / "w")
    source = b'echo ready; while [ ! -e "%s/go" ]; do sleep 0.02; done; echo more; exit 7' % os.fsencode(node.folder)
    orders = [node.order(source) for _ in range(3)]
    batch = node.start_batch(orders)
    said(node, batch, orders[0])
    fill(small)
    (node.folder / "go").touch()
    look = node.ended_batch(batch)
    assert [(end.record.code, end.why) for end in look.ended] == [(7, "full")] * 3
