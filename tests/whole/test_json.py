"""`--json` prints the documented objects; tables are the same with and without a terminal."""

from __future__ import annotations

import json
import re

import pytest

from tests.whole.grid import Grid

pytestmark = pytest.mark.lab

JOB = {"schema", "id", "user", "program", "state", "phase", "node", "attempt", "submitted", "started", "seconds"}
JOB |= {"exit_code", "signal", "reason"}
ATTEMPT = {"number", "node", "outcome", "started", "ended", "uploaded_bytes", "compiled", "cpu_seconds", "peak_memory"}
NODE = {"name", "state", "reason", "cpu", "load", "memory_free", "running", "slots", "toolchains", "last_seen"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def test_run_prints_events_and_the_job_last(grid: Grid) -> None:
    grid.write("say.py", "import sys\nprint('out')\nprint('err', file=sys.stderr)\nsys.exit(3)\n")
    done = grid("--json", "run", "say.py")
    *events, job = done.lines
    assert done.code == 3
    assert all(event["schema"] == 1 and event["event"] for event in events)
    assert events[0]["event"] == "accepted"
    outputs = [(event["stream"], event["text"]) for event in events if event["event"] == "output"]
    assert sorted(outputs) == [("stderr", "err\n"), ("stdout", "out\n")]
    assert job.keys() >= JOB | {"attempts"}
    assert (job["id"], job["state"], job["exit_code"], job["signal"]) == (events[0]["id"], "FAILED", 3, None)
    assert done.err == ""


def test_binary_output_is_base64_in_json(grid: Grid) -> None:
    grid.write("bytes.py", "import os; os.write(1, b'\\xff\\x00')")
    events = grid("--json", "run", "bytes.py").lines
    assert [event["base64"] for event in events if event.get("event") == "output"] == ["/wA="]


def test_ps_and_info_have_the_keys_of_the_interface(grid: Grid) -> None:
    grid.write("hello.py", "print('hello')")
    grid("run", "hello.py", "a b")
    listed = grid("--json", "ps", "-a").json
    assert listed["schema"] == 1
    job = listed["jobs"][-1]
    assert job.keys() >= JOB
    assert (job["program"], job["state"], job["exit_code"]) == ("hello.py 'a b'", "COMPLETED", 0)
    assert "attempts" not in job
    info = grid.last_job()
    assert info.keys() >= JOB | {"attempts"}
    assert "why" not in info
    (attempt,) = info["attempts"]
    assert attempt.keys() >= ATTEMPT
    assert (attempt["number"], attempt["node"], attempt["compiled"]) == (1, info["node"], None)
    for value in (info["submitted"], info["started"], attempt["started"], attempt["ended"]):
        assert TIME.fullmatch(value), value
    assert isinstance(info["seconds"], float)


def test_info_of_a_waiting_job_gives_a_reason_for_each_node(grid: Grid) -> None:
    grid.write("hello.py", "print('hello')")
    assert grid("node", "drain", "h1").code == 0
    try:
        job = grid.detach("--on", "h1", "hello.py")
        info = grid.info(job)
        assert (info["state"], info["exit_code"]) == ("PENDING", None)
        (why,) = [each for each in info["why"] if each["node"] == "h1"]
        assert "drained" in why["reason"]
        assert grid("kill", job).code == 0
        assert grid.info(job)["state"] == "CANCELLED"
    finally:
        grid("node", "resume", "h1")


def test_nodes_have_the_keys_of_the_interface(grid: Grid) -> None:
    grid.wait_until_up()
    value = grid("--json", "nodes").json
    assert value["schema"] == 1
    assert [node["name"] for node in value["nodes"]] == ["h1", "h2", "h3", "h4"]
    for node in value["nodes"]:
        assert node.keys() >= NODE
        assert node["state"] in {"IDLE", "MIXED", "ALLOCATED"}
        assert TIME.fullmatch(node["last_seen"])


@pytest.mark.parametrize(
    "words",
    [
        ["ps", "-a"],
        ["nodes"],
        ["toolchains"],
        ["inventory", "check"],
        ["inventory", "show"],
        ["inventory", "path"],
        ["master", "status"],
        ["doctor"],
        ["monitor", "--once"],
        ["version"],
        ["node", "check"],
        ["info", "9999"],
        ["run", "--dry-run", "hello.py"],
        ["run", "-d", "hello.py"],
        ["wait", "last"],
    ],
    ids=" ".join,
)
def test_each_command_prints_one_json_value(grid: Grid, words: list[str]) -> None:
    grid.write("hello.py", "print('hello')")
    done = grid("--json", *words)
    assert len(done.out.splitlines()) == 1, done
    value = json.loads(done.out)
    assert value["schema"] == 1
    assert done.err == ""


def test_master_status_has_the_keys_of_the_interface(grid: Grid) -> None:
    found = grid("--json", "master", "status").json
    assert found.keys() >= {"pid", "version", "socket", "state_dir", "inventory", "uptime", "nodes", "jobs"}
    assert isinstance(found["jobs"], dict)


def test_tables_in_a_pipe_have_a_header_and_uncut_rows(grid: Grid) -> None:
    grid.write("hello.py", "print('hello')")
    long = "x" * 400
    grid("run", "hello.py", long)
    for env in ({}, {"NO_COLOR": "1"}, {"COLUMNS": "40"}, {"TERM": "dumb"}):
        done = grid("ps", "-a", env=env)
        header, *rows = done.text.splitlines()
        assert header.split()[:3] == ["ID", "USER", "STATE"]
        assert header == header.upper()
        assert any(long in row for row in rows)
        assert "\x1b" not in done.text
    assert "\x1b[" in grid("--color", "always", "ps", "-a").text
    assert "\x1b[" not in grid("nodes", env={"NO_COLOR": "1"}).text


def test_no_header_prints_no_header(grid: Grid) -> None:
    assert "STATE" not in grid("ps", "-a", "--no-header").text


def test_messages_of_run_go_to_stderr_and_only_with_show_node(grid: Grid) -> None:
    grid.write("hello.py", "print('hello')")
    assert grid("run", "hello.py").err == ""
    assert "node: h" in grid("run", "--show-node", "hello.py").err
