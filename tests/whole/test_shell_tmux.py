"""`sshgrid shell` on a real terminal with real keys, over a real master with this machine as its node."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole.grid import ROOT, LocalGrid, wait_until
from tests.whole.samples import WAIT_FOR_GATE
from tests.whole.tmux import Tmux

WAITS = f"""import os, sys, time
gate = sys.argv[1]
print('begun', flush=True)
{WAIT_FOR_GATE}
print('ended')
"""
TALKS = "import time\nfor n in range(10**9):\n    print('word', n, '\\x1b[31m', flush=True)\n    time.sleep(0.05)\n"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[LocalGrid]:
    grid = LocalGrid(tmp_path)
    yield grid
    try:
        grid("kill", "all", "--signal", "KILL")
        wait_until(lambda: not list(grid.workdir.glob("runs/*")), "no run folder")
        assert "Traceback" not in grid.log
    finally:
        grid.stop()


@pytest.fixture
def tmux(here: LocalGrid) -> Iterator[Tmux]:
    here.wait_until_up("here")
    with Tmux(here.folder, [str(word) for word in here.argv("shell")], here.environ, 100, 30) as tmux:
        tmux.see("1 of 1 up")
        yield tmux
        assert "internal error" not in tmux.screen
        assert f"{ROOT}/sshgrid" not in tmux.screen  # a traceback of sshgrid, not of a program


def prompt(tmux: Tmux) -> str:
    """The line with the cursor: the last one above the bottom line."""
    return next((line for line in reversed(tmux.lines) if "sshgrid>" in line), "")


def at_prompt(tmux: Tmux, expected: str) -> None:
    tmux.wait_until(lambda _: prompt(tmux) == expected, f"a prompt that is {expected!r}")


def test_a_program_is_edited_run_and_run_again_from_the_history(tmux: Tmux, here: LocalGrid) -> None:
    tmux.type("edit hello.py", "Enter")
    tmux.see("Ctrl-S saves")
    tmux.type("for n in range(3):", "Enter", "Tab")
    tmux.type("print('hello', n * n)", "C-s")
    at_prompt(tmux, "sshgrid>")
    assert (here.folder / "hello.py").read_text() == "for n in range(3):\n    print('hello', n * n)\n"
    tmux.type("run", "Enter")
    tmux.see("\nhello 4\n")
    tmux.type("edit", "Enter")
    tmux.see("Ctrl-S saves")
    tmux.type("; import sys; sys.exit(3)", "M-Enter")
    at_prompt(tmux, "sshgrid>")
    tmux.type("edit", "Enter")
    tmux.see("Ctrl-S saves")
    tmux.type("nonsense", "C-c")
    tmux.see("hello.py: not changed")
    tmux.type("run --show-node", "Enter")
    tmux.see("node: here")
    at_prompt(tmux, "[3] sshgrid>")
    tmux.press("C-r")
    tmux.type("ed")
    tmux.see("edit hello.py")
    tmux.press("C-c")
    tmux.type("run --sh")
    at_prompt(tmux, "[3] sshgrid> run --show-node")  # the rest is suggested from the history
    tmux.press("Right", "Enter")
    tmux.wait_until(lambda screen: screen.count("node: here") == 2, "the same command again")


def test_a_text_that_cannot_be_saved_stays_in_the_editor(tmux: Tmux, here: LocalGrid) -> None:
    tmux.type("edit later/hello.py", "Enter")
    tmux.see("Ctrl-S saves")
    tmux.type("print('kept')", "C-s")
    tmux.see("later/hello.py: not saved: No such file or directory")
    (here.folder / "later").mkdir()
    tmux.wait_until(lambda screen: screen.count("print('kept')") == 2, "the same words again")
    tmux.press("C-s")
    at_prompt(tmux, "sshgrid>")
    assert [path.name for path in (here.folder / "later").iterdir()] == ["hello.py"]
    assert (here.folder / "later" / "hello.py").read_text() == "print('kept')\n"


def test_tab_completes(tmux: Tmux, here: LocalGrid) -> None:
    here.write("program.py", "print(1)")
    for typed, completed in (
        ("toolc", "toolchains"),
        ("unw", "unwatch"),
        ("node drain h", "node drain here"),
        ("run --lang pytho", "run --lang python"),
        ("run prog", "run program.py"),
        ("edit prog", "edit program.py"),
        ("ps --no-h", "ps --no-header"),
    ):
        tmux.type(typed, "Tab")
        at_prompt(tmux, f"sshgrid> {completed}")
        tmux.press("C-c")
        at_prompt(tmux, "sshgrid>")
    job = here.detach("program.py")
    tmux.type("watch ", "Tab")
    tmux.see(f"{job} ")
    tmux.see("the newest")


def test_output_of_a_background_job_appears_above_the_prompt(tmux: Tmux, here: LocalGrid) -> None:
    here.write("talks.py", TALKS)
    tmux.type("run talks.py &", "Enter")
    tmux.see("1: word 3 \\x1b[31m")
    tmux.type("kill 1 --sig")
    tmux.see("1: word 30 \\x1b[31m")
    assert prompt(tmux).startswith("sshgrid> kill 1 --sig")
    assert all(re.fullmatch(r"1: word \d+ \\x1b\[31m", line) for line in tmux.lines if line.startswith("1: ")), (
        tmux.screen
    )
    assert "1 running" in tmux.screen
    tmux.type("nal TERM", "Enter")
    tmux.see("[1] CANCELLED")
    tmux.see("0 running")


def test_watch_and_unwatch(tmux: Tmux, here: LocalGrid) -> None:
    here.write("talks.py", TALKS)
    job = here.detach("talks.py")
    tmux.type("watch last", "Enter")
    tmux.see(f"{job}: word 2 ")
    tmux.type("unwatch", "Enter")
    tmux.type("unwatch", "Enter")
    tmux.see("error: no such job is watched")
    assert here.info(job)["state"] == "RUNNING"


def test_ctrl_c_cancels_the_followed_job_and_not_the_shell(tmux: Tmux, here: LocalGrid) -> None:
    here.write("talks.py", TALKS)
    tmux.type("run talks.py", "Enter")
    tmux.see("word 3")
    tmux.press("C-c")
    at_prompt(tmux, "[130] sshgrid>")
    here.wait_for_state("1", "CANCELLED")
    job = here.detach("talks.py")
    tmux.type(f"attach {job}", "Enter")
    tmux.see("word 7")
    tmux.press("C-c")
    tmux.see(f"job {job} continues")
    assert here.info(job)["state"] == "RUNNING"
    tmux.type("version", "Enter")
    tmux.see("sshgrid 0.")


def test_ctrl_d_must_be_repeated_while_own_jobs_run(tmux: Tmux, here: LocalGrid) -> None:
    here.write("waits.py", WAITS)
    gate = here.folder / "gate"
    tmux.type(f"run waits.py {gate} &", "Enter")
    tmux.see("1: begun")
    tmux.press("C-d")
    tmux.see("still running: 1;")
    tmux.type("ps", "Enter")
    tmux.see("PROGRAM")
    at_prompt(tmux, "sshgrid>")
    tmux.press("C-d")
    tmux.wait_until(
        lambda screen: screen.count("still running: 1;") == 2, "the question again, as a command came between"
    )
    tmux.press("C-d")
    assert tmux.status() == 0
    assert here.info("1")["state"] == "RUNNING"
    gate.touch()
    here.wait_for_state("1", "COMPLETED")


def test_the_bottom_line_shows_when_the_master_is_lost_and_back(tmux: Tmux, here: LocalGrid) -> None:
    here.stop()
    tmux.see("no master is running")
    tmux.type("nodes", "Enter")  # starts a master, as it does outside of the shell
    tmux.see("TOOLCHAINS")
    tmux.see("1 of 1 up")
    tmux.press("C-d")
    assert tmux.status() == 0


def test_the_monitor_runs_in_the_shell(tmux: Tmux) -> None:
    tmux.type("monitor", "Enter")
    tmux.see(">here")
    tmux.press("q")
    at_prompt(tmux, "sshgrid>")
    tmux.type("help", "Enter")
    tmux.see("unwatch [ID]")
