"""Speculative attempts on real hosts: one result for each task, and nothing is left of the other attempt."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sshgrid.model import JobId, task_id
from tests.lab.hosts import Lab
from tests.whole.grid import Grid, job_pids, open_gate, wait_for_value, wait_until
from tests.whole.samples import WAIT_FOR_GATE

pytestmark = pytest.mark.lab

TASKS = 9
# The first attempt of the last task hangs, with a child; the speculative attempt continues when the gate is open.
HANGING_PROGRAM = f"""import os, subprocess, sys, time
x, gate = int(sys.argv[1]), sys.argv[2]
attempt = int(os.environ["SSHGRID_ATTEMPT"])
print(x, "by attempt", attempt, flush=True)
if x == {TASKS} and attempt == 1:
    subprocess.run(["sleep", "543"])
if x == {TASKS}:
    {WAIT_FOR_GATE}
print(x * x)
"""
# The first attempt of one of many short tasks hangs, so that others wait behind it in its batch.
HANGING = 260
SHORT = f"""echo $1 by attempt $SSHGRID_ATTEMPT
[ $1.$SSHGRID_ATTEMPT != {HANGING}.1 ] || sleep 543
"""


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open(newline="") as file:
        return sorted(csv.DictReader(file), key=lambda row: int(row["task"]))


def attempts(grid: Grid) -> list[dict[str, Any]]:
    """The attempts of the last task of the newest sweep; empty before the first one."""
    newest = grid("--json", "info", "last")
    task = grid("--json", "info", f"{newest.json['id']}.{TASKS}") if newest.code == 0 else newest
    return list(task.json["attempts"]) if task.code == 0 else []


def wait_for_second_attempt(grid: Grid) -> list[dict[str, Any]]:
    """Wait until the last task has two attempts; returns them."""
    both = ["", ""]
    return wait_for_value(
        lambda: attempts(grid), lambda found: [each["outcome"] for each in found] == both, "a speculative attempt", 30
    )


def check_records(grid: Grid, backup: dict[str, Any]) -> None:
    """Check that each task has one row, the last one with the output of the speculative attempt."""
    found = rows(grid.folder / "out")
    assert [int(row["task"]) for row in found] == list(range(1, TASKS + 1))
    assert {row["exit_code"] for row in found} == {"0"}
    assert (found[-1]["attempt"], found[-1]["node"]) == ("2", backup["node"])
    assert (grid.folder / "out" / f"x={TASKS}" / "stdout").read_text() == f"{TASKS} by attempt 2\n{TASKS**2}\n"
    hosts = {line.split("\t")[0]: line.split("\t")[1] for line in (grid.folder / "log").read_text().splitlines()[1:]}
    assert (len(hosts), hosts[str(TASKS)]) == (TASKS, backup["node"])


def test_a_speculative_attempt_replaces_a_straggler_which_leaves_nothing(grid: Grid, lab: Lab, gate: str) -> None:
    grid.write("hangs.py", HANGING_PROGRAM)
    words = ("--backup", "--results", "out", "--joblog", "log", "-p", f"x=1..{TASKS}", "hangs.py", "{x}", gate)
    with grid.start("sweep", *words) as sweep:
        original, backup = wait_for_second_attempt(grid)
        assert original["node"] != backup["node"]
        assert (original["speculative"], backup["speculative"]) == (False, True)
        # A stopped process must end as well.
        for pid in job_pids(lab[original["node"]], "hangs.py"):
            os.kill(pid, signal.SIGSTOP)
        open_gate(lab, gate)
        done = sweep.result(30)
    assert (done.code, done.err) == (0, "")
    assert sorted(done.out.splitlines()) == sorted(
        line.encode() for x in range(1, TASKS + 1) for line in (f"{x} by attempt {1 + (x == TASKS)}", str(x * x))
    )
    check_records(grid, backup)
    outcomes = [attempt["outcome"] for attempt in attempts(grid)]
    assert outcomes == ["superseded by attempt 2", "exited 0"]


def test_the_next_master_continues_both_attempts_of_a_task(grid: Grid, lab: Lab, gate: str) -> None:
    grid.write("hangs.py", HANGING_PROGRAM)
    words = ("--backup", "--results", "out", "--joblog", "log", "-p", f"x=1..{TASKS}", "hangs.py", "{x}", gate)
    with grid.start("sweep", *words) as sweep:
        _, backup = wait_for_second_attempt(grid)
        wait_until(lambda: job_pids(lab[backup["node"]], "hangs.py"), "the speculative attempt to run")
        grid.kill_master()
        assert [each["outcome"] for each in attempts(grid)] == ["", ""]
        open_gate(lab, gate)
        done = sweep.result(60)
    assert done.code == 0, done.err
    check_records(grid, backup)


def batch_of(grid: Grid, task: JobId) -> str:
    """The batch of the first attempt of a task; `""` for none."""
    with closing(sqlite3.connect(grid.state_dir / "queue.db")) as queue:
        ((record,),) = queue.execute("SELECT record FROM attempt WHERE job = ? AND number = 1", (task,)).fetchall()
    return str(json.loads(record)["batch"])


def test_a_straggler_in_a_batch_gets_a_speculative_attempt(grid: Grid) -> None:
    grid.write("short.sh", SHORT)
    done = grid("sweep", "--backup", "--results", "out", "-p", "x=1..300", "short.sh")
    assert (done.code, done.err) == (0, "")
    found = rows(grid.folder / "out")
    assert [int(row["task"]) for row in found] == list(range(1, 301))
    assert found[HANGING - 1]["attempt"] == "2"
    assert (grid.folder / "out" / f"x={HANGING}" / "stdout").read_text() == f"{HANGING} by attempt 2\n"
    assert len(done.out.splitlines()) == 300
    assert batch_of(grid, task_id(JobId(grid.last_job()["id"]), HANGING))
