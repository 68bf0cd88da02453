"""Sweeps on real hosts: one result for each task, also after masters and clients were killed, and the files."""

from __future__ import annotations

import csv
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests.whole.grid import Grid, wait_until

pytestmark = pytest.mark.lab

TASKS = 200
# Each task prints its number and its square, and fails when the number ends in 7.
SQUARE = """import os, sys, time
x = int(sys.argv[1])
print(x, "squared")
time.sleep(0.05)
print(x * x)
print("task", os.environ["SSHGRID_TASK_ID"], file=sys.stderr)
sys.exit(3 if x % 10 == 7 else 0)
"""
FAILED = TASKS // 10


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def check_results(folder: Path, tasks: int = TASKS) -> None:
    """Check that each task has one row, with its output and exit code."""
    found = rows(folder)
    assert Counter(int(row["task"]) for row in found) == Counter(range(1, tasks + 1))
    for row in found:
        x, task = int(row["x"]), folder / f"x={row['x']}"
        assert row["exit_code"] == ("3" if x % 10 == 7 else "0")
        assert (task / "stdout").read_text() == f"{x} squared\n{x * x}\n"
        assert (task / "rc").read_text() == row["exit_code"] + "\n"
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def wait_for_rows(folder: Path, count: int) -> None:
    wait_until(lambda: (folder / "results.csv").exists() and len(rows(folder)) >= count, f"{count} rows", 60)


def test_a_sweep_runs_each_task_once_and_keep_order_prints_in_order(grid: Grid) -> None:
    grid.write("square.py", SQUARE)
    done = grid(
        "sweep", "--keep-order", "--tag", "--results", "out", "--joblog", "log", "-p", f"x=1..{TASKS}", "square.py"
    )
    assert done.code == FAILED
    assert done.out.decode() == "".join(f"{x}\t{x} squared\n{x}\t{x * x}\n" for x in range(1, TASKS + 1))
    check_results(grid.folder / "out")
    assert len({row["node"] for row in rows(grid.folder / "out")}) > 1
    lines = (grid.folder / "log").read_text().splitlines()[1:]
    assert sorted(int(line.split("\t")[0]) for line in lines) == list(range(1, TASKS + 1))


def test_tasks_of_a_batch_have_their_own_time_limits(grid: Grid) -> None:
    grid.write("words.txt", "words\n")
    grid.write("third.sh", 'read -r word <words.txt; echo "$word $1"; [ $(($1 % 3)) != 0 ] || exec sleep 1000\n')
    options = ("--with", "words.txt", "--timeout", "1s", "--joblog", "log")
    done = grid("sweep", *options, "-p", "x=1..60", "third.sh")
    assert done.code == 20
    assert sorted(done.out.splitlines()) == sorted(b"words %d" % x for x in range(1, 61))
    lines = [line.split("\t") for line in (grid.folder / "log").read_text().splitlines()[1:]]
    assert {int(line[0]): line[6] for line in lines} == {x: "0" if x % 3 else "124" for x in range(1, 61)}


def test_a_sweep_completes_after_its_master_was_killed(grid: Grid) -> None:
    grid.write("square.py", SQUARE)
    with grid.start("sweep", "--results", "out", "-p", f"x=1..{TASKS}", "square.py") as client:
        wait_for_rows(grid.folder / "out", TASKS // 3)
        grid.kill_master()
        done = client.result(120)
    assert done.code == FAILED
    assert len(done.out.splitlines()) == 2 * TASKS
    check_results(grid.folder / "out")


def test_resume_completes_a_sweep_after_client_and_master_were_killed(grid: Grid) -> None:
    grid.write("square.py", SQUARE)
    words = ("--results", "out", "--joblog", "log", "-p", f"x=1..{TASKS}", "square.py")
    with grid.start("sweep", *words) as client:
        wait_for_rows(grid.folder / "out", TASKS // 3)
        client.process.kill()
        grid.kill_master()
    before = len(rows(grid.folder / "out"))
    done = grid("sweep", "--resume", *words)
    assert done.code == FAILED
    assert len(done.out.splitlines()) <= 2 * (TASKS - before + 1)
    check_results(grid.folder / "out")
    sweeps = [job for job in grid("--json", "ps", "-a").json["jobs"] if job.get("sweep")]
    assert sweeps[-1]["sweep"]["ended"] == TASKS  # the first sweep continued: there is no second one
    assert grid("sweep", "--resume", *words).out == b""


READ = """import sys
x, text = int(sys.argv[1]), sys.stdin.read()
print(x, text)
sys.exit(3 if text == "seven" else 0)
"""


def test_each_task_reads_its_own_stdin_also_after_a_killed_master_and_a_retry(grid: Grid) -> None:
    grid.write("read.py", READ)
    (grid.folder / "in").mkdir()
    for x in range(10):
        grid.write(f"in/{x}.txt", "seven" if x == 7 else f"input {x}")
    # The last digit of x selects the file: ten files for two hundred tasks.
    grid.write("table.csv", "x,d\n" + "".join(f"{x},{x % 10}\n" for x in range(1, TASKS + 1)))
    words = ("--results", "out", "--csv", "table.csv", "--stdin", "in/{d}.txt", "read.py", "{x}")
    with grid.start("sweep", *words) as client:
        wait_for_rows(grid.folder / "out", TASKS // 4)
        grid.kill_master()
        done = client.result(120)
    assert done.code == FAILED
    found = rows(grid.folder / "out")
    assert Counter(int(row["task"]) for row in found) == Counter(range(1, TASKS + 1))
    for row in found:
        text = "seven" if row["d"] == "7" else f"input {row['d']}"
        assert (grid.folder / "out" / f"x={row['x']},d={row['d']}" / "stdout").read_text() == f"{row['x']} {text}\n"
    sweep = grid("--json", "ps", "-a").json["jobs"][-1]["id"]
    assert grid("retry", str(sweep), "--failed").code == 0
    assert grid("wait", str(sweep)).code == FAILED
    assert grid("logs", f"{sweep}.7").out == b"7 seven\n"


def test_ctrl_c_ends_a_sweep_and_resume_runs_the_rest(grid: Grid) -> None:
    grid.write("square.py", SQUARE.replace("0.05", "0.3"))
    words = ("--results", "out", "-p", "x=1..40", "square.py")
    with grid.start("sweep", *words) as client:
        wait_for_rows(grid.folder / "out", 4)
        client.interrupt()
        assert client.result(40).code == 130
    assert 0 < len(rows(grid.folder / "out")) < 40
    assert grid.last_job()["state"] == "CANCELLED"
    assert grid("sweep", "--resume", *words).code <= 4
    check_results(grid.folder / "out", 40)


def test_the_exit_code_of_a_sweep_is_the_number_of_failed_tasks(grid: Grid) -> None:
    grid.write("fail.py", "import sys; sys.exit(1)")
    assert grid("sweep", "-p", "x=1..3", "fail.py").code == 3
    assert grid("sweep", "-p", "x=1..102", "fail.py").code == 101
    grid.write("bad.c", "int main( { return 0; }\n")
    done = grid("sweep", "-p", "x=1..20", "bad.c")
    assert (done.code, done.err.count("error:") >= 1, done.out) == (126, True, b"")
    assert done.err.count("bad.c:1:") < 5


def test_halt_now_ends_running_tasks_and_a_timeout_counts_as_a_failure(grid: Grid) -> None:
    grid.write("fail.py", "import signal, sys\nif sys.argv[1] != '1': signal.pause()\nsys.exit(1)")
    done = grid("sweep", "-j", "2", "--halt", "now,fail=1", "--results", "out", "-p", "x=1..8", "fail.py")
    assert done.code >= 1
    assert [row["task"] for row in rows(grid.folder / "out")] == ["1"]
    grid.write("late.py", "import signal; signal.pause()")
    done = grid("sweep", "--timeout", "1s", "-p", "x=1,2", "late.py")
    assert done.code == 2
    assert "error: task" in done.err


@pytest.mark.skipif(shutil.which("parallel") is None, reason="GNU parallel is not installed")
def test_gnu_parallel_and_sweep_resume_from_the_joblog_of_each_other(grid: Grid) -> None:
    """Both run the same shell script, so that their joblogs name the same command."""
    script = grid.write("say.sh", "#!/bin/sh\necho value $1\n")
    script.chmod(0o755)
    assert grid("sweep", "--joblog", "log", "-p", "x=1..3", "./say.sh").code == 0

    def parallel(*words: str) -> str:
        command = ["parallel", "--joblog", "log", "--resume", "./say.sh", ":::", *words]
        return subprocess.run(command, cwd=grid.folder, capture_output=True, text=True, timeout=30, check=True).stdout

    assert parallel("1", "2", "3", "4", "5") == "value 4\nvalue 5\n"
    done = grid("sweep", "--resume", "--joblog", "log", "-p", "x=1..6", "./say.sh")
    assert (done.code, done.out) == (0, b"value 6\n"), done


WRITES = """import sys
x = int(sys.argv[1])
open("r.txt", "w").write(f"{x}\\n")
open("other", "w").write("not wanted")
print("wrote", x)
sys.exit(x == 3)
"""


def test_files_of_each_task_are_fetched_also_when_it_fails(grid: Grid) -> None:
    grid.write("writes.py", WRITES)
    done = grid("sweep", "writes.py", "-p", "x=1..6", "--fetch", "*.txt", "--results", "out", "--into", "files")
    assert done.code == 1
    assert [(grid.folder / "files" / f"x={x}" / "r.txt").read_text() for x in range(1, 7)] == [
        f"{x}\n" for x in range(1, 7)
    ]
    assert sorted(path.name for path in (grid.folder / "files" / "x=1").iterdir()) == ["r.txt"]
    done = grid("sweep", "writes.py", "-p", "x=1..6", "--fetch", "*.txt", "--results", "again")
    assert done.code == 1
    assert (grid.folder / "again" / "x=3" / "files" / "r.txt").read_text() == "3\n"
    assert (grid.folder / "again" / "x=3" / "stdout").read_text() == "wrote 3\n"
    assert len(rows(grid.folder / "again")) == 6


def test_fetch_in_a_sweep_without_a_folder_is_refused(grid: Grid) -> None:
    grid.write("writes.py", WRITES)
    done = grid("sweep", "writes.py", "-p", "x=1..6", "--fetch", "*.txt")
    assert done.code == 2
    assert "--results DIR or --into DIR" in done.err
