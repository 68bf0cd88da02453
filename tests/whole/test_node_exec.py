"""`node exec`: one command on many hosts in parallel, and its output by host."""

from __future__ import annotations

import time

import pytest

from tests.lab import machine
from tests.lab.hosts import Lab
from tests.whole.grid import Grid, job_pids, wait_for_value

pytestmark = pytest.mark.lab

RULE = "-" * 15
HOSTILE = ["a  b", "it's", '"', "$(touch /tmp/never)", "`id`", "*", "new\nline", "", "-n", "\\", "é", ";", "&"]


@pytest.fixture(autouse=True)
def all_nodes_up(grid: Grid) -> None:
    grid.wait_until_up()


def test_equal_outputs_are_printed_once(grid: Grid) -> None:
    done = grid("node", "exec", "h[1-4]", "--", "echo", "same")
    assert (done.code, done.text, done.err) == (0, f"{RULE}\nh[1-4] (4)\n{RULE}\nsame\n", "")
    done = grid(
        "node", "exec", "h1,h2,h4", "--", "sh", "-c", "case $(hostname) in h2) echo other;; *) echo same;; esac"
    )
    assert done.text == f"{RULE}\nh[1,4] (2)\n{RULE}\nsame\n{RULE}\nh2\n{RULE}\nother\n"


def test_a_failed_command_exits_with_1_and_each_status_is_reported(grid: Grid) -> None:
    done = grid("node", "exec", "!h1", "--", "sh", "-c", "echo out; echo err >&2; [ $(hostname) = h3 ] || exit 3")
    assert done.code == 1
    assert done.text == f"{RULE}\nh[2,4] (2): exit 3\n{RULE}\nout\nerr\n{RULE}\nh3\n{RULE}\nout\nerr\n"
    assert done.err == "error: h[2,4]: exit 3\n"
    missing = grid("node", "exec", "h1", "--", "no-such-program")
    assert (missing.code, missing.err) == (1, "error: h1: exit 127\n")
    assert "no-such-program" in missing.text


@pytest.mark.parametrize("shell", ["bash", "csh", "fish"])
def test_arguments_arrive_unchanged_through_each_login_shell(grid: Grid, hosts: Lab, shell: str) -> None:
    hosts["h1"].set_shell(shell)
    hosts["h1"].reset_sessions()
    grid.wait_until_up("h1")
    done = grid("--json", "node", "exec", "h1", "--", "printf", "<%s>", *HOSTILE)
    assert done.code == 0, done
    (node,) = done.json["nodes"]
    assert node["output"] == "".join(f"<{word}>" for word in HOSTILE)
    assert hosts["h1"].run(["ls", "/tmp/never"], check=False).returncode != 0


def test_stdin_is_empty_and_PATH_is_that_of_runs(grid: Grid) -> None:
    done = grid("node", "exec", "h1", "--", "sh", "-c", "cat; echo $PATH; pwd", stdin=b"not for nodes")
    assert done.code == 0, done
    assert "not for nodes" not in done.text
    assert "/usr/sbin" in done.text
    assert done.text.endswith("\n/home/grid\n")


def test_the_time_limit_ends_a_command_and_its_children(grid: Grid, hosts: Lab) -> None:
    started = time.monotonic()
    script = "trap '' TERM; sleep 4567 & sleep 4567; echo no"
    done = grid("node", "exec", "h1,h2", "--time-limit", "1s", "--", "sh", "-c", script)
    assert time.monotonic() - started < 15
    assert done.code == 1
    assert "h[1-2]: exit 124; ended by the time limit of 1 s" in done.err
    wait_for_value(
        lambda: [job_pids(hosts[name], "4567") for name in ("h1", "h2")], lambda found: found == [[], []], "end"
    )


def test_background_processes_of_a_command_are_not_waited_for(grid: Grid, hosts: Lab) -> None:
    done = grid("node", "exec", "h1", "--time-limit", "20s", "--", "sh", "-c", "sleep 4568 & echo started")
    try:
        assert (done.code, done.text.splitlines()[-1]) == (0, "started")
        assert job_pids(hosts["h1"], "4568")
    finally:
        machine.signal_all(job_pids(hosts["h1"], "4568"), 9)


def test_long_output_is_cut_and_reported_and_binary_output_is_unchanged(grid: Grid) -> None:
    done = grid("--json", "node", "exec", "h[1-4]", "--", "sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x; exit 4")
    assert done.code == 1
    for node in done.json["nodes"]:
        assert (node["exit_status"], node["truncated"]) == (4, True)
        assert set(node["output"]) == {"x"}
        assert len(node["output"]) == 256 * 1024
    assert done.json["groups"] == [{"schema": 1, "nodes": "h[1-4]", "count": 4, "exit_status": 4}]
    text = grid("node", "exec", "h1", "--", "sh", "-c", "head -c 300000 /dev/zero")
    assert text.err == "h1: the output was cut\n"
    raw = grid("node", "exec", "h1", "--", "printf", r"\377\000\n")
    assert raw.out.endswith(b"\xff\x00\n")


def test_an_unreachable_node_is_reported_and_the_others_answer(grid: Grid, hosts: Lab) -> None:
    hosts["h2"].stop_server()
    hosts["h2"].reset_sessions()
    done = grid("node", "exec", "h[1-2]", "--", "hostname")
    assert done.code == 1
    assert done.text == f"{RULE}\nh1\n{RULE}\nh1\n"
    assert done.err == "error: h2: connection refused\n"
    unknown = grid("node", "exec", "nowhere", "--", "true")
    assert (unknown.code, unknown.err.splitlines()[0]) == (1, "error: no node 'nowhere'")


def test_jobs_continue_during_node_exec(grid: Grid, hosts: Lab, gate: str) -> None:
    grid.write("wait.sh", f"until [ -e {gate} ]; do sleep 0.1; done\necho through\n")
    job = grid.detach("--on", "h1", "wait.sh")
    grid.wait_for_state(job, "RUNNING")
    assert [grid("node", "exec", "h1", "--", "touch", gate).code for _ in range(3)] == [0, 0, 0]
    assert grid("wait", "--timeout", "20s", job).code == 0
    hosts["h1"].run(["rm", gate])
