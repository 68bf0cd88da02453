"""Early ends of runs on a node: limits, signals, killed wrappers, reused pids; and that nothing is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import msgspec
import pytest

from sshgrid.engines.launch import RunSpec
from sshgrid.model import Limits
from sshgrid.ssh.parsers import RunLook
from tests.edge.shells import PATH, PATIENCE_SECONDS, ShellNode
from tests.lab.machine import argv_of, is_alive, start_time, uptime, wait_until

PYTHON = sys.executable.encode()
NodeOf = Callable[..., ShellNode]
# No two tests, and no two processes that run tests, wait for the same number of seconds.
_seconds = count(10_000_000 + os.getpid() * 100)

FAMILY = b"""
trap '' TERM
(trap '' TERM; exec sleep %(n)d) &
env -i sleep %(n)d &
setsid sleep %(n)d &
(setsid sh -c 'trap "" TERM HUP; sleep %(n)d & exec sleep %(n)d' &)
(sleep %(n)d & sleep %(n)d &)
echo ready
"""


def code(look: RunLook) -> int | None:
    return look.record.code if look.record else None


def sleepers(seconds: int) -> list[int]:
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdecimal())
    return [pid for pid in pids if argv_of(pid)[-1:] == (str(seconds),) and is_alive(pid)]


def gone(node: ShellNode, seconds: int = 0) -> None:
    wait_until(
        lambda: not sleepers(seconds) and not node.processes(),
        "every process of the run to be gone",
        PATIENCE_SECONDS,
        lambda: (sleepers(seconds), node.processes()),
    )


# --- limits -----------------------------------------------------------------------------------------------------------


def test_the_wall_limit_ends_a_run_in_hundredths_of_a_second(node: ShellNode) -> None:
    order = node.order(b"exec sleep 1000", limits=Limits(wall_seconds=0.25))
    began = uptime()
    look = node.run(order)
    assert 0.2 < uptime() - began < 4
    assert (code(look), look.why) == (143, "wall")
    gone(node)


@pytest.mark.parametrize("kind", ["dash-session", "dash-pidns", "busybox-session"])
def test_a_program_that_ignores_TERM_is_killed_after_five_seconds(node_of: NodeOf, kind: str) -> None:
    node, seconds = node_of(kind), next(_seconds)
    order = node.order(FAMILY % {b"n": seconds} + b"while :; do sleep 0.1; done", limits=Limits(wall_seconds=0.3))
    began = uptime()
    look = node.run(order)
    assert 5 < uptime() - began < 12
    assert (code(look), look.why) == (137, "wall")
    gone(node, seconds)


def test_the_memory_limit_counts_children_and_kills(node: ShellNode) -> None:
    source = b"import os, time\npid = os.fork()\nx = b'' if pid else b'x' * (200 << 20)\ntime.sleep(1000)"
    order = node.order(source, run=(PYTHON, b"{dir}/p.sh"), limits=Limits(memory_bytes=100 << 20))
    look = node.run(order)
    assert (code(look), look.why) == (137, "memory")
    assert look.record
    assert (look.record.peak_memory_bytes or 0) > 100 << 20
    gone(node)


def test_the_memory_limit_is_the_program_s_not_its_compiler_s(node: ShellNode) -> None:
    greedy = "import sys, time; x = b'x' * (60 << 20); time.sleep(0.5); open('exe', 'w').write('echo built')"
    order = node.order(
        b"",
        compiler=((sys.executable, "-c", greedy),),
        run=(b"/bin/sh", b"{dir}/exe"),
        limits=Limits(memory_bytes=20 << 20),
    )
    look = node.run(order)
    assert (code(look), look.why, node.read(order, "out")) == (0, "", b"built\n")


def test_F28_the_output_limit_counts_both_streams(node: ShellNode) -> None:
    order = node.order(
        b"head -c 600 /dev/zero; head -c 600 /dev/zero >&2; exec sleep 1000", limits=Limits(output_bytes=1000)
    )
    look = node.run(order)
    assert (code(look), look.why) == (143, "output")
    under = node.order(b"head -c 500 /dev/zero; head -c 500 /dev/zero >&2; sleep 0.4", limits=Limits(output_bytes=1000))
    assert code(node.run(under)) == 0
    gone(node)


def test_the_output_limit_holds_in_any_locale(node_of: NodeOf) -> None:
    """In other locales `ls -l` prints the date as two words, or one."""
    node = node_of("dash-session")
    fake = node.folder / "fake"
    fake.mkdir()
    (fake / "ls").write_text(
        '#!/bin/sh\n[ "${LC_ALL-}" = C ] || { echo "-rw- 1 0 0 9 2023-11-23 19:31 x"; exit; }\nexec /bin/ls "$@"\n'
    )
    (fake / "ls").chmod(0o755)
    node.path = f"{fake}:{node.path}"
    assert (
        node.run(node.order(b"head -c 9000 /dev/zero; exec sleep 1000", limits=Limits(output_bytes=1000))).why
        == "output"
    )


def test_a_limit_is_the_reason_of_a_run_that_survived_a_signal(node: ShellNode) -> None:
    order = node.order(
        b"trap 'echo got' INT; echo ready; while :; do sleep 0.05; done", limits=Limits(wall_seconds=1.0)
    )
    node.start(order)
    node.is_running(order, "ready")
    node.verb("signal", order.run, "INT")
    node.is_running(order, "got")
    assert node.ended(order).why == "wall"


def test_F6_a_lease_ends_at_an_absolute_time_unless_it_is_renewed(node_of: NodeOf) -> None:
    node = node_of("dash-session")
    kept, lost = node.order(b"exec sleep 1000"), node.order(b"exec sleep 1001")
    until = uptime() + 2
    for order in (kept, lost):
        assert node.start(order, lease=until) == f"claimed {order.run}"
    node.verb("renew_lease", kept.run, str(int(until) + 600))
    look = node.ended(lost)
    assert (code(look), look.why) == (137, "lease")
    assert until - 1 < uptime() < until + 6
    assert node.look(kept.run).alive
    assert not node.look(kept.run).record
    node.verb("renew_lease", kept.run, str(int(uptime()) - 1))
    assert node.ended(kept).why == "lease"


@pytest.mark.parametrize("awk", ["gawk", "mawk", "busybox"])
@pytest.mark.parametrize("page", [4096, 65536])
def test_memory_beyond_two_gigabytes_is_counted_exactly(node_of: NodeOf, awk: str, page: int) -> None:
    """mawk prints large numbers as 1.2e+10, which a shell cannot add up."""
    program = shutil.which(awk, path=PATH)
    if program is None:
        pytest.skip(f"{awk} is not installed here")
    node = node_of("dash-session")
    only = node.folder / "only"
    only.mkdir()
    (only / "awk").symlink_to(program)
    node.path = f"{only}:{node.path}"
    rest = " ".join(["0"] * 18)
    stats = [
        f"10 (sh) S 1 {rest} 0 100 {rest}",
        f"11 (a\n(b) S 1) 2 3) S 10 {rest} 0 3000000 {rest}",
        f"12 (x y) Z 1 {rest} 0 7 {rest}",
        f"13 (leaf) R 11 {rest} 0 1 {rest}",
    ]
    fake = "cat() { printf '%s\\n' '" + "' '".join(stats) + "'; }\n"
    output = node.script(f'{node.variables()}\n. "$LIB"\npage={page}\n{fake}tree 10\n'.encode()).stdout.decode()
    seen = sorted(tuple(map(int, line.split())) for line in output.splitlines())
    assert seen == [(10, 100 * page, 1), (11, 3_000_000 * page, 2), (13, page, 3)]


# --- nothing is left --------------------------------------------------------------------------------------------------


def test_F21_children_of_a_run_end_with_it(node: ShellNode) -> None:
    seconds = next(_seconds)
    order = node.order(FAMILY % {b"n": seconds} + b"exit 5")
    assert code(node.run(order)) == 5
    gone(node, seconds)


def test_F21_KILL_ends_all_processes_of_a_run(node: ShellNode) -> None:
    seconds = next(_seconds)
    order = node.order(FAMILY % {b"n": seconds} + b"exec sleep %d" % seconds)
    node.start(order)
    node.is_running(order, "ready")
    wait_until(lambda: len(sleepers(seconds)) == 8, "the whole family", 5, lambda: sleepers(seconds))
    node.verb("signal", order.run, "KILL")
    assert code(node.ended(order)) == 137
    gone(node, seconds)


def test_no_process_leaves_a_pid_namespace(node_of: NodeOf) -> None:
    node, seconds = node_of("dash-pidns"), next(_seconds)
    order = node.order(b"env -i setsid sh -c 'sleep %d & exec sleep %d' & sleep 0.1; exit 0" % (seconds, seconds))
    assert code(node.run(order)) == 0
    gone(node, seconds)


@pytest.mark.parametrize("moment", ["", "pid", "child", "running", "rc"])
def test_F20_clean_leaves_nothing_at_any_moment(node: ShellNode, moment: str) -> None:
    for _ in range(3):
        seconds = next(_seconds)
        wait = "sleep 0.05; cp p.sh exe"
        order = node.order(
            FAMILY % {b"n": seconds} + (b"exit 0" if moment == "rc" else b"exec sleep %d" % seconds),
            compiler=(("/bin/sh", "-c", wait),),
            run=(b"/bin/sh", b"{dir}/exe"),
        )
        assert node.start(order) == f"claimed {order.run}"
        if moment:
            reached = node.dir(order) / moment
            wait_until(lambda path=reached: os.path.lexists(path), moment, 10)  # type: ignore[misc]
        assert node.verb("clean", order.run) == b""
        assert not node.dir(order).exists()
        gone(node, seconds)


def test_F19_a_program_whose_wrapper_was_killed_is_found_and_killed(node: ShellNode) -> None:
    seconds = next(_seconds)
    order = node.order(FAMILY % {b"n": seconds} + b"exec sleep %d" % seconds)
    node.start(order)
    node.is_running(order, "ready")
    os.kill(node.pid(order), signal.SIGKILL)
    wait_until(lambda: not node.look(order.run).alive, "the wrapper to be seen dead", 5)
    assert not node.look(order.run).record
    assert sleepers(seconds)
    # Like the engine before it gives the run up.
    node.verb("signal", order.run, "KILL")
    wait_until(lambda: not is_alive(node.pid(order, "child")), "the program to end", 5)
    assert node.verb("clean", order.run) == b""
    gone(node, seconds)


def test_F19_limits_hold_without_the_wrapper(node_of: NodeOf) -> None:
    node = node_of("dash-session")
    order = node.order(b"echo ready; exec sleep 1000", limits=Limits(wall_seconds=1.0))
    node.start(order)
    node.is_running(order, "ready")
    os.kill(node.pid(order), signal.SIGKILL)
    wait_until(lambda: not is_alive(node.pid(order, "child")), "the watchdog to end the program", 10)
    assert node.link(order, "why") == "wall"


# --- identities -------------------------------------------------------------------------------------------------------


@contextmanager
def somebody_else() -> Iterator[int]:
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as other:
        yield other.pid
        assert other.poll() is None, "a process that is not the run's must not be touched"
        other.kill()


def forged(node: ShellNode, order: RunSpec, pid: int, start: int | None, boot: str) -> None:
    for name in ("pid", "child"):
        (node.dir(order) / name).symlink_to(f"pid={pid},start={start},boot={boot}")


def test_F18_a_reused_pid_is_not_the_run(node: ShellNode) -> None:
    order = node.order(b"echo ran")
    node.start(order, verb="prepare")
    with somebody_else() as pid:
        forged(node, order, pid, 1, node.facts.boot_id)
        assert not node.look(order.run).alive
        assert node.verb("signal", order.run, "TERM") == b"none\n"
        node.verb("signal", order.run, "KILL")
        assert node.verb("clean", order.run) == b""
        assert is_alive(pid)


def test_F16_a_process_of_another_boot_is_not_the_run(node: ShellNode) -> None:
    order = node.order(b"echo ran")
    node.start(order, verb="prepare")
    with somebody_else() as pid:
        forged(node, order, pid, start_time(pid), "another-boot")
        assert not node.look(order.run).alive
        node.verb("signal", order.run, "KILL")
        node.verb("clean", order.run)
        assert is_alive(pid)


def test_the_same_process_is_recognised(node: ShellNode) -> None:
    """The counter-check of the two tests above: with the right identity it is the run."""
    order = node.order(b"echo ran")
    node.start(order, verb="prepare")
    with subprocess.Popen(["sleep", "1000"], start_new_session=True) as other:
        forged(node, order, other.pid, start_time(other.pid), node.facts.boot_id)
        assert node.look(order.run).alive
        node.verb("clean", order.run)
        assert other.wait(5) == -signal.SIGKILL


def test_a_process_name_with_a_newline_is_parsed(node: ShellNode) -> None:
    name = b"import ctypes; ctypes.CDLL(None).prctl(15, b'a\\n) Z 1', 0, 0, 0)"
    source = name + b"\nprint('ready', flush=True)\nimport time; time.sleep(1000)"
    order = node.order(source, run=(PYTHON, b"{dir}/p.sh"))
    node.start(order)
    node.is_running(order, "ready")
    assert node.look(order.run).alive
    assert node.verb("signal", order.run, "TERM") == b"sent\n"
    assert code(node.ended(order)) == 143


# --- conversations ----------------------------------------------------------------------------------------------------


def test_an_interactive_run_uses_the_streams_of_the_channel(node: ShellNode) -> None:
    order = node.order(b"read word; echo out $word; echo err $word >&2; exit 6")
    order = msgspec.structs.replace(order, interactive=True)
    assert node.start(order, verb="prepare") == f"claimed {order.run}"
    words = [str(node.sh), str(node.library), "converse", str(node.workdir), order.run, node.facts.boot_id, "NONCE"]
    done = subprocess.run(
        words,
        input=b"typed\n",
        capture_output=True,
        check=False,
        env={"PATH": node.path},
        timeout=20,
        start_new_session=True,
    )
    assert (done.stdout, done.stderr) == (b"\nNONCE\nout typed\n", b"\nNONCE\nerr typed\n")
    assert code(node.look(order.run)) == 6
    again = subprocess.run(words, input=b"", capture_output=True, check=False, env={"PATH": node.path}, timeout=20)
    assert again.returncode == 70, "a conversation that comes a second time does not run the program again"
