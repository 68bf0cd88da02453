"""`connection: local`: this machine as a node, without sshd and without root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole.grid import LocalGrid, wait_until
from tests.whole.samples import FOREVER


@pytest.fixture
def here(tmp_path: Path) -> Iterator[LocalGrid]:
    grid = LocalGrid(tmp_path)
    yield grid
    try:
        assert "Traceback" not in grid.log
        wait_until(
            lambda: not list(grid.workdir.glob("runs/*")),
            "no run folder",
            20,
            lambda: list(grid.workdir.glob("runs/*")),
        )
    finally:
        grid.stop()


def test_a_local_node_runs_programs(here: LocalGrid) -> None:
    here.write("say.py", "import sys; print(sys.argv[1:], sys.stdin.read()); sys.exit(3)")
    assert here("run", "say.py", "a b", stdin=b"in") == (3, b"['a b'] in\n", "")
    here.write("say.sh", "echo $SSHGRID_NODE; kill -SEGV $$")
    assert here("run", "say.sh") == (139, b"here\n", "")
    here.write("forever.py", FOREVER)
    assert here("run", "--time-limit", "1s", "forever.py").code == 124
    with here.start("run", "forever.py") as client:
        client.wait_for_stdout(b"begun\n")
        client.interrupt()
        assert client.result().code == 130
    assert here("run", "-I", "say.py", stdin=b"typed").out == b"[] typed\n"
    assert [job["exit_code"] for job in here("--json", "ps", "-a").json["jobs"]][:2] == [3, 139]


def test_a_sweep_runs_its_tasks_on_a_local_node(here: LocalGrid) -> None:
    here.write("say.py", "import sys; print(sys.argv[1:]); sys.exit(sys.argv[1] == '2')")
    words = ("--results", "out", "-p", "x=1..3", "say.py", ":::", "a b")
    done = here("sweep", "-k", *words)
    assert (done.code, done.text) == (1, "['1', 'a b']\n['2', 'a b']\n['3', 'a b']\n")
    assert (here.folder / "out" / "x=2,2=a%20b" / "rc").read_text() == "1\n"
    assert here("sweep", "-k", "--resume-failed", *words)[:2] == (1, b"['2', 'a b']\n")
    assert here("--json", "progress", "last").json["ended"] == 1
    job = here("sweep", "-d", "-p", "x=1,2", "say.py").text.strip()
    assert here("attach", job).code == 1
    assert here("retry", job, "--failed").code == 0
    assert here("wait", job).code == 1


def test_tasks_of_a_sweep_can_read_the_sent_files(here: LocalGrid) -> None:
    here.write("data/words", "some words\n")
    here.write("cat.py", "import sys; print(sys.argv[1], open('data/words').read(), end='')")
    done = here("sweep", "-k", "--with", "data", "-p", "x=1..3", "cat.py")
    assert (done.code, done.text) == (0, "1 some words\n2 some words\n3 some words\n"), done


SIDE_BY_SIDE = """class SideBySide {
    public static void main(String[] args) throws Exception {
        System.out.println(args[0]);
        Thread.sleep(500);
    }
}
"""


def test_concurrent_jvms_print_no_warnings(here: LocalGrid) -> None:
    # HotSpot names its files in /tmp by the pid, which is the same in each PID namespace.
    here.write("SideBySide.java", SIDE_BY_SIDE)
    done = here("sweep", "-k", "--timeout", "60s", "-p", "x=1..8", "SideBySide.java")
    assert done == (0, b"".join(b"%d\n" % x for x in range(1, 9)), "")
