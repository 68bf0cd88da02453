"""Faults of the master as a user sees them: killed masters, concurrent starts, and a damaged or unsafe state folder."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.whole.grid import Grid, open_gate, wait_for_value, wait_until
from tests.whole.samples import halves, output_of_halves

pytestmark = pytest.mark.lab

LINES = halves(1000) + "sys.exit(0)\n"
OUTPUT = output_of_halves(1000)


def test_F10_the_next_master_finishes_the_job_of_a_killed_one(grid: Grid, gate: str) -> None:
    grid.write("lines.py", LINES)
    job = grid.detach("lines.py", gate)
    with grid.start("logs", "-f", job) as logs:
        logs.wait_for_stdout(b"first 999\n")
    pid = grid.kill_master()
    open_gate(grid.lab, gate)
    assert grid("attach", job) == (0, OUTPUT, "")
    found = grid.info(job)
    assert (found["state"], len(found["attempts"])) == ("COMPLETED", 1)
    assert grid("logs", job).out == OUTPUT
    assert grid.master_pid() != pid


def test_F10_a_run_survives_its_master_and_prints_each_line_once(grid: Grid, gate: str) -> None:
    grid.write("lines.py", LINES)
    with grid.start("run", "lines.py", gate) as client:
        client.wait_for_stdout(b"first 999\n")
        grid.kill_master()
        open_gate(grid.lab, gate)
        assert client.result(40) == (0, OUTPUT, "")
    assert len(grid.last_job()["attempts"]) == 1


def test_F13_the_next_master_collects_a_run_that_ended_without_one(grid: Grid, gate: str) -> None:
    grid.write("lines.py", LINES.replace("sys.exit(0)", "sys.exit(9)"))
    job = grid.detach("lines.py", gate)
    node = grid.wait_for_state(job, "RUNNING")["node"]
    grid.kill_master()
    open_gate(grid.lab, gate)
    run = next(name for name in grid.lab[node].leftovers() if f"-{job}." in name)
    record = grid.lab[node].disk_path(f"{grid.lab[node].workdir}/runs/{run}/rc")
    wait_until(record.is_symlink, "the run to end")
    assert grid("attach", job) == (9, OUTPUT, "")


def test_a_stopped_master_leaves_its_jobs_running(grid: Grid, gate: str) -> None:
    grid.write("lines.py", LINES)
    job = grid.detach("lines.py", gate)
    grid.wait_for_state(job, "RUNNING")
    assert grid("master", "stop").code == 0
    assert grid("master", "status").code == 1
    assert grid.info(job)["state"] in ("RUNNING", "DISCONNECTED")
    open_gate(grid.lab, gate)
    assert grid("wait", job).code == 0
    assert len(grid.info(job)["attempts"]) == 1


def test_concurrent_runs_start_one_master(new_grid: Callable[[], Grid]) -> None:
    grid = new_grid()
    grid.write("hello.py", "print('hello')")
    clients = [grid.start("run", "hello.py") for _ in range(4)]
    assert [client.result() for client in clients] == [(0, b"hello\n", "")] * 4
    assert grid.log.count(" serves ") == 1
    assert [job["exit_code"] for job in grid("--json", "ps", "-a").json["jobs"]] == [0] * 4


def test_a_stale_socket_is_replaced(new_grid: Callable[[], Grid]) -> None:
    grid = new_grid()
    grid.write("hello.py", "print('hello')")
    grid("master", "start")
    path = grid("--json", "master", "status").json["socket"]
    grid.kill_master()
    assert Path(path).is_socket()
    assert grid("run", "hello.py") == (0, b"hello\n", "")
    grid.stop()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    assert grid("run", "hello.py") == (0, b"hello\n", "")


def test_a_corrupt_queue_file_is_reported_and_not_changed(new_grid: Callable[[], Grid]) -> None:
    grid = new_grid()
    grid.write("hello.py", "print('hello')")
    assert grid("run", "hello.py").code == 0
    grid.stop()
    path = grid.state_dir / "queue.db"
    good = path.read_bytes()
    damages = {
        "something else": b"something else\n" * 1000,
        "cut short": good[: len(good) // 2],
        "a bad page": good[:4096] + b"\xff" * 4096 + good[8192:],
    }
    for damage, text in damages.items():
        path.write_bytes(text)
        done = grid("run", "hello.py")
        assert (done.code, done.out) == (125, b""), damage
        assert str(path) in done.err, damage
        assert "hint: " in done.err, damage
        assert path.read_bytes() == text, damage
    path.write_bytes(good)
    assert grid("run", "hello.py").out == b"hello\n"


def test_A40_a_state_folder_that_others_can_write_is_refused(new_grid: Callable[[], Grid]) -> None:
    grid = new_grid()
    grid.write("hello.py", "print('hello')")
    assert grid("run", "hello.py").code == 0
    grid.stop()
    grid.state_dir.chmod(0o777)
    done = grid("run", "hello.py")
    assert (done.code, done.out) == (125, b"")
    assert f"{grid.state_dir} can be written by others" in done.err
    grid.state_dir.chmod(0o700)
    (grid.state_dir / "queue.db").chmod(0o644)
    done = grid("run", "hello.py")
    assert (done.code, done.out) == (125, b"")
    assert "queue.db" in done.err
    (grid.state_dir / "queue.db").chmod(0o600)
    assert grid("run", "hello.py").code == 0


def test_A40_the_files_of_the_master_are_private(grid: Grid) -> None:
    grid.write("hello.py", "print('hello')")
    assert grid("run", "hello.py").code == 0
    paths = [grid.state_dir, *grid.state_dir.rglob("*")]
    assert {path.name: oct(path.stat().st_mode & 0o077) for path in paths if path.stat().st_mode & 0o077} == {}


def test_an_invalid_or_missing_inventory_is_reported_with_its_path(new_grid: Callable[[], Grid]) -> None:
    grid = new_grid()
    good = grid.inventory.read_text()
    grid.write("hello.py", "print('hello')")
    for text in ("version: 1\nnodes:\n  h1: {hots: 10.0.0.1}\n", "nodes: [", ""):
        grid.inventory.write_text(text)
        done = grid("run", "hello.py")
        assert (done.code, done.out) == (125, b"")
        assert "inventory.yaml" in done.err
        assert "hint: " in done.err
    grid.inventory.unlink()
    done = grid("run", "hello.py")
    assert (done.code, done.out) == (125, b"")
    assert "no inventory" in done.err
    assert "sshgrid node add" in done.err
    grid.inventory.write_text(good)
    assert grid("run", "hello.py").code == 0


def test_an_idle_master_exits_and_the_next_command_starts_one(new_grid: Callable[[], Grid], gate: str) -> None:
    grid = new_grid()
    grid.write("lines.py", LINES)
    assert grid("master", "start", "--idle-exit", "1s").code == 0
    job = grid.detach("lines.py", gate)
    grid.wait_for_state(job, "RUNNING")
    pid = grid.master_pid()
    open_gate(grid.lab, gate)
    assert grid("wait", job).code == 0
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the master to exit")
    assert grid.info(job)["state"] == "COMPLETED"


def test_master_stop_drain_waits_for_running_jobs(new_grid: Callable[[], Grid], gate: str) -> None:
    grid = new_grid()
    grid.write("lines.py", LINES)
    job = grid.detach("lines.py", gate)
    grid.wait_for_state(job, "RUNNING")
    with grid.start("master", "stop", "--drain") as stopping:
        waiting = wait_for_value(
            lambda: grid.detach("lines.py", gate),
            lambda job: grid.info(job)["state"] == "PENDING",
            "a job to wait",
        )
        open_gate(grid.lab, gate)
        assert stopping.result(40).code == 0
    assert grid("wait", waiting).code == 0
