"""`connection: local`: this machine as a node, without sshd and without root. The same command line, the same path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.whole.grid import LocalGrid, until

FOREVER = "import time\nprint('begun', flush=True)\nwhile True: time.sleep(0.1)\n"


@pytest.fixture
def here(tmp_path: Path) -> Iterator[LocalGrid]:
    grid = LocalGrid(tmp_path)
    yield grid
    try:
        assert "Traceback" not in grid.log
        until(
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
        client.until_out(b"begun\n")
        client.interrupt()
        assert client.done().code == 130
    assert here("run", "-I", "say.py", stdin=b"typed").out == b"[] typed\n"
    assert [job["exit_code"] for job in here("--json", "ps", "-a").json["jobs"]][:2] == [3, 139]
