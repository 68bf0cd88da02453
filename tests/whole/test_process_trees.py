"""Child processes of a program: their limit, and which of them are left when the run ends."""

from __future__ import annotations

import os
import signal
import uuid

import pytest

from tests.lab.hosts import Lab
from tests.whole.grid import Grid, job_pids, wait_until

pytestmark = pytest.mark.lab

# Starts this number of children, then prints a line.
MANY = """import os, signal, sys, time
for _ in range(int(sys.argv[1])):
    if os.fork() == 0:
        signal.pause()
print("all begun", flush=True)
time.sleep(float(sys.argv[2]))
"""
# Each process starts others until a time limit, in case that nothing else ends them.
BOMB = """import os, time
end = time.monotonic() + 20
while time.monotonic() < end:
    try:
        os.fork()
    except BlockingIOError:
        time.sleep(0.001)
"""
# Starts a child in another session.
LEAVES = """import os, subprocess, sys, time
subprocess.Popen(["sleep", sys.argv[1]], start_new_session=True, stdin=subprocess.DEVNULL,
                 stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print("left", flush=True)
time.sleep(float(sys.argv[2]))
"""


def unique_duration() -> str:
    """A duration for sleep that identifies the process."""
    return f"600.{uuid.uuid4().int % 10**9:09d}"


def test_F22_exceeding_max_processes_ends_the_run(grid: Grid) -> None:
    grid.write("many.py", MANY)
    assert grid("run", "--max-processes", "30", "many.py", "40", "600").code == 137
    last = grid.last_job()
    assert (last["state"], last["reason"]) == ("FAILED", "limit of 30 processes")
    assert grid("run", "--max-processes", "30", "many.py", "20", "2") == (0, b"all begun\n", "")


def test_F22_a_fork_bomb_ends_with_its_job_and_the_node_runs_the_next_one(grid: Grid) -> None:
    grid.write("bomb.py", BOMB)
    grid.write("hello.sh", "echo hello\n")
    assert grid("run", "--on", "h1", "--max-processes", "100", "bomb.py").code == 137
    assert grid("run", "--on", "h1", "hello.sh") == (0, b"hello\n", "")  # the fixture checks for processes


def test_keep_children_keeps_a_child_after_the_run(grid: Grid, lab: Lab) -> None:
    grid.write("leaves.py", LEAVES)
    seconds = unique_duration()
    try:
        assert grid("run", "--on", "h1", "--keep-children", "leaves.py", seconds, "0") == (0, b"left\n", "")
        assert grid.info("last")["attempts"][-1]["isolation"] == "session"
        # The cleanup of a run ends with the removal of its folder.
        wait_until(lambda: not lab["h1"].leftovers(), "the run folder to be gone")
        assert len(job_pids(lab["h1"], seconds)) == 1
    finally:
        for pid in job_pids(lab["h1"], seconds):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("end", ["time limit", "kill"])
def test_keep_children_does_not_keep_children_of_a_run_that_is_killed_or_times_out(
    grid: Grid, lab: Lab, end: str
) -> None:
    grid.write("leaves.py", LEAVES)
    seconds = unique_duration()
    limit = ("--time-limit", "1s") if end == "time limit" else ()
    with grid.start("run", "--on", "h1", "--keep-children", *limit, "leaves.py", seconds, "600") as run:
        run.wait_for_stdout(b"left\n")
        if end == "kill":
            assert grid("kill", "last").code == 0
        assert run.result(30).code in (124, 128 + signal.SIGTERM)
    wait_until(lambda: not job_pids(lab["h1"], seconds), "the child to be gone")
