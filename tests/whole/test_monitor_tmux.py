"""`sshgrid monitor` on a real terminal, over a real master with this machine as its node."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole.grid import LocalGrid, wait_until
from tests.whole.tmux import Tmux

FOREVER = (
    "import time\nfor n in range(10**9):\n    print('line', n, '\\x1b[2Jescaped', flush=True)\n    time.sleep(0.2)\n"
)


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


def monitor(grid: LocalGrid, columns: int = 80, lines: int = 24) -> Tmux:
    return Tmux(grid.folder, [str(word) for word in grid.argv("monitor")], grid.environ, columns, lines)


def test_jobs_are_listed_shown_and_killed(here: LocalGrid) -> None:
    here.write("forever.py", FOREVER)
    job = here.detach("--name", "evil\x1b[31m", "forever.py")
    here.wait_for_state(job, "RUNNING")
    with monitor(here) as tmux:
        tmux.see("evil\\x1b[31m")
        tmux.wait_until(
            lambda screen: any(line.startswith(">here") and "%]" in line for line in screen.splitlines()), "CPU"
        )
        assert "local" in tmux.screen  # the client that submitted it, and this monitor
        tmux.press("Tab", "l")
        tmux.see("line 3 \\x1b[2Jescaped")
        tmux.see("line 20 \\x1b[2Jescaped")  # the page follows the output
        tmux.press("q", "Enter")
        tmux.see("ATTEMPT")
        tmux.press("q", "x")
        tmux.see(f"kill job {job}? [y/N]")
        tmux.press("n")
        tmux.see("nothing changed")
        tmux.press("x", "y")
        tmux.see(f"job {job} is being cancelled")
        here.wait_for_state(job, "CANCELLED")
        tmux.see("no jobs wait or run")
        tmux.press("q")
        assert tmux.status() == 0


def test_a_node_is_drained_and_resumed(here: LocalGrid) -> None:
    with monitor(here) as tmux:
        tmux.see(">here")
        tmux.press("Enter")
        tmux.see("toolchains")
        tmux.press("Escape", "d")
        tmux.see("drain here (start no more jobs)? [y/N]")
        tmux.press("y")
        tmux.see("DRAINED")
        assert here.nodes()["here"]["state"] == "DRAINED"
        tmux.press("d", "y")
        tmux.see("IDLE")
        assert here.nodes()["here"]["state"] == "IDLE"
        tmux.press("?")
        tmux.see("keys of the monitor")
        tmux.press("q", "C-c")
        assert tmux.status() == 0


def test_the_screen_follows_the_size_of_the_window(here: LocalGrid) -> None:
    with monitor(here, 200, 50) as tmux:
        tmux.see("LAST MINUTE")
        tmux.resize(80, 24)
        tmux.wait_until(lambda screen: " MINUTE " in screen and "LAST" not in screen, "the small layout")
        assert len(tmux.lines) == 24
        tmux.resize(60, 20)
        tmux.see("needs 80x24, the terminal has 60x20")
        tmux.resize(120, 30)
        tmux.see("LAST MINUTE")
        tmux.type("/nothing")
        tmux.see("no line contains 'nothing'")
        tmux.press("Escape")
        tmux.see(">here")


def test_a_lost_master_is_shown_until_it_is_back(here: LocalGrid) -> None:
    with monitor(here) as tmux:
        tmux.see(">here")
        here.stop()
        tmux.see("reconnecting")
        assert ">here" in tmux.screen  # the last snapshot stays
        here("master", "start")
        tmux.see_no_more("reconnecting")
        tmux.see("IDLE")
        tmux.press("q")
        assert tmux.status() == 0


def test_once_prints_the_screen_or_one_json_value(here: LocalGrid) -> None:
    here.wait_until_up("here")
    frame = here("monitor", "--once")
    assert frame.code == 0, frame
    assert "nodes 1 of 1 up" in frame.text
    assert "\x1b" not in frame.text
    found = here("--json", "monitor", "--once").json
    assert [node["name"] for node in found["nodes"]] == ["here"]
    assert [(client["address"], client["connections"]) for client in found["clients"]] == [("local", 1)]
    assert found["schema"] == 1
    wait_until(lambda: here("--json", "monitor", "--once").json["nodes"][0]["cpu_minute"], "a sample")
    refused = here("monitor")
    assert (refused.code, "--once" in refused.err) == (2, True)
