"""A queue that is restored from a backup, which was made while jobs ran: each job has one result.

Between the backup and the restore, jobs may have begun, ended or been accepted. The restored queue does not contain
that; the nodes and the spool still have the files of these jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole.grid import LocalGrid, wait_until
from tests.whole.samples import WAIT_FOR_GATE

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount a file system")

# Writes a unique word into the ledger, waits for its gate, and prints the word.
GATED = f"""import os, sys, time, uuid
ledger, gate, name = sys.argv[1:]
word = name + " " + str(uuid.uuid4())
with open(ledger, "a") as file: file.write(word + "\\n")
print("begun", flush=True)
{WAIT_FOR_GATE}
print(word, flush=True)
"""


class Restorable(LocalGrid):
    """This machine as a node with two slots, a ledger of the runs, and gates."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ledger = folder / "ledger"
        self.copy = folder / "copy.db"
        self.write("gated.py", GATED)
        self.write_slots(slots=2)

    def write_slots(self, *, slots: int) -> None:
        node = {"connection": "local", "workdir": str(self.workdir), "toolchains": ["python"], "slots": slots}
        self.inventory.write_text(f"version: 1\nnodes:\n  here: {json.dumps(node)}\n")

    def submit(self, name: str) -> str:
        return self.detach("gated.py", str(self.ledger), str(self.gate(name)), name)

    def gate(self, name: str) -> Path:
        return self.folder / f"gate-{name}"

    def words_of(self, name: str) -> list[str]:
        """The words that the runs of this program have written, in order."""
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return [line for line in lines if line.startswith(f"{name} ")]

    def wait_until_begun(self, name: str, times: int = 1) -> None:
        wait_until(lambda: len(self.words_of(name)) >= times, f"{name} to begin", 20, lambda: self.log)

    def restore(self) -> None:
        """Replace the queue by the backup, as the manual describes."""
        for path in self.state_dir.glob("queue.db*"):
            path.unlink()
        shutil.copy(self.copy, self.state_dir / "queue.db")
        (self.state_dir / "queue.db").chmod(0o600)

    def assert_finishes(self, job: str, name: str) -> None:
        """Open the gate, and check that the job prints the word of its last run once."""
        self.gate(name).touch()
        assert self("attach", job)[:2] == (0, f"begun\n{self.words_of(name)[-1]}\n".encode())

    def runs(self) -> list[str]:
        """Run folders, without those that block a start which may still arrive."""
        folders = [path for path in self.workdir.glob("runs/*") if "-0." not in path.name]
        return [path.name for path in folders if _target(path / "why") != "refused"]


def _target(link: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return str(link.readlink())
    return ""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Restorable]:
    grid = Restorable(tmp_path)
    yield grid
    grid("kill", "all", "--signal", "KILL")
    try:
        assert "Traceback" not in grid.log
        wait_until(lambda: not grid.runs(), "no run folder", 20, grid.runs)
    finally:
        grid.stop()


def test_running_and_waiting_jobs_of_a_restored_queue_run_once(here: Restorable) -> None:
    here.write_slots(slots=1)
    running, waiting = here.submit("a"), here.submit("b")
    here.wait_until_begun("a")
    assert here("master", "backup", str(here.copy)).code == 0
    here.kill_master()
    here.restore()
    here.assert_finishes(running, "a")
    here.assert_finishes(waiting, "b")
    assert [len(here.words_of(name)) for name in "ab"] == [1, 1]
    assert [len(here.info(job)["attempts"]) for job in (running, waiting)] == [1, 1]


def test_a_job_that_a_restored_queue_lacks_does_not_affect_the_next_job_with_its_id(here: Restorable) -> None:
    first = here.submit("a")
    here.wait_until_begun("a")
    assert here("master", "backup", str(here.copy)).code == 0
    forgotten = here.submit("forgotten")
    here.wait_until_begun("forgotten")
    here.kill_master()
    here.restore()
    assert here.submit("new") == forgotten
    here.assert_finishes(forgotten, "new")
    here.assert_finishes(first, "a")
    assert len(here.words_of("a")) == 1


def test_jobs_that_ended_after_the_backup_run_again_and_have_one_result(here: Restorable) -> None:
    """Only here a program runs twice: the restored queue does not contain its end."""
    here.write_slots(slots=1)
    running, waiting = here.submit("a"), here.submit("b")
    here.wait_until_begun("a")
    assert here("master", "backup", str(here.copy)).code == 0
    here.assert_finishes(running, "a")
    here.wait_until_begun("b")
    here.assert_finishes(waiting, "b")
    here.kill_master()
    here.restore()
    assert here("wait", f"{running},{waiting}").code == 0
    for job, name in ((running, "a"), (waiting, "b")):
        first, second = here.words_of(name)
        assert first != second
        assert here("logs", job).out == f"begun\n{second}\n".encode()
        assert here.info(job)["state"] == "COMPLETED"


def test_a_queue_restored_without_the_spool_ends_running_jobs_and_reports_missing_programs(here: Restorable) -> None:
    """The backup contains only the queue; programs and output are in the spool."""
    here.write_slots(slots=1)
    running, waiting = here.submit("a"), here.submit("b")
    here.wait_until_begun("a")
    assert here("master", "backup", str(here.copy)).code == 0
    here.kill_master()
    here.restore()
    shutil.rmtree(here.state_dir / "spool")
    here.assert_finishes(running, "a")
    assert here("wait", waiting).code == 125
    assert "gated.py is no longer in the spool" in here.info(waiting)["reason"]
    assert here("run", "gated.py", str(here.ledger), str(here.gate("a")), "c").code == 0


def test_a_backup_to_an_existing_file_is_refused(here: Restorable) -> None:
    here.copy.write_text("precious")
    done = here("master", "backup", str(here.copy))
    assert (done.code, done.out) == (2, b"")
    assert f"{here.copy}: already exists" in done.err
    assert "hint: choose another name" in done.err
    assert here.copy.read_text() == "precious"


def test_a_second_master_is_refused_and_the_first_continues(here: Restorable) -> None:
    job = here.submit("a")
    here.wait_until_begun("a")
    pid = here.master_pid()
    with here.start("master", "start", "--foreground") as second:
        done = second.result()
    assert (done.code, done.out) == (125, b"")
    assert "another master already works in" in done.err
    here.assert_finishes(job, "a")
    assert here.master_pid() == pid


@needs_root
def test_F14_the_next_master_cleans_up_after_one_killed_between_result_and_cleanup(here: Restorable) -> None:
    """A mounted file system in the folder of the run prevents the first master from removing it."""
    job = here.submit("a")
    here.wait_until_begun("a")
    (run,) = here.workdir.glob("runs/*-1.1")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", run / "work"], check=True)
    try:
        here.assert_finishes(job, "a")
        here.kill_master()
        assert run.is_dir()
    finally:
        subprocess.run(["umount", run / "work"], check=True)
    here("master", "start")
    wait_until(lambda: not run.exists(), "the folder to be removed", 20, lambda: here.log)
    here.assert_finishes(job, "a")
    assert len(here.words_of("a")) == 1
