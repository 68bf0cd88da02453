"""A host that has only dropbear and busybox: no bash, no SFTP, no Python."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.host import LabHost
from tests.lab.hosts import Lab
from tests.whole.grid import Grid

pytestmark = pytest.mark.lab


@pytest.fixture
def busybox_grid(busybox_lab: Lab, busybox_host: LabHost, tmp_path: Path) -> Iterator[Grid]:
    """A grid whose only node is the busybox host."""
    grid = Grid(busybox_lab, tmp_path)
    yield grid
    grid.check()
    grid.stop()


def test_A18_a_busybox_host_runs_shell_scripts(busybox_grid: Grid) -> None:
    grid = busybox_grid
    grid.write("say.sh", 'printf "%s|" "$@"; cat; echo oops >&2; exit 3\n')
    assert grid("run", "say.sh", "a b", "it's", "", stdin=b"\x00\xff in") == (3, b"a b|it's||\x00\xff in", "oops\n")
    assert grid("run", "say.sh").code == 3
    assert grid.last_job()["attempts"][0]["uploaded_bytes"] == 0

    grid.write("die.sh", "kill -9 $$")
    assert grid("run", "die.sh").code == 137
    grid.write("forever.sh", "echo begun; while :; do sleep 1; done")
    assert grid("run", "--time-limit", "1s", "forever.sh") == (124, b"begun\n", expected_error(grid))
    with grid.start("run", "forever.sh") as client:
        client.wait_for_stdout(b"begun\n")
        client.interrupt()
        assert client.result().code == 130
    grid.write("x.py", "print(1)")
    assert grid("run", "x.py").code == 127

    node = grid.nodes()["b1"]
    assert node["load"] is not None
    assert "sh" in node["toolchains"]


def expected_error(grid: Grid) -> str:
    job = grid.last_job()
    return f"error: job {job['id']}: {job['reason']}\nhint: sshgrid info {job['id']}\n"


def test_A19_an_unknown_server_with_one_type_of_host_key_is_accepted_with_accept_new(
    busybox_grid: Grid, busybox_lab: Lab, busybox_host: LabHost
) -> None:
    """The process of dropbear ends when a client offers only other key types, as for an unknown host."""
    grid = busybox_grid
    keys = busybox_lab.known_hosts.read_text()
    busybox_lab.known_hosts.write_text("")
    try:
        assert grid("node", "check", "b1").code == 1
        assert "unknown host key SHA256:" in grid.nodes()["b1"]["reason"]
        assert grid("node", "check", "b1", "--accept-new").code == 0
        assert busybox_host.known_host in busybox_lab.known_hosts.read_text()
        grid.write("say.sh", "echo up")
        assert grid("run", "say.sh").out == b"up\n"
    finally:
        busybox_lab.known_hosts.write_text(keys)


def test_A17_without_sftp_a_large_input_is_sent_through_a_channel(busybox_grid: Grid) -> None:
    grid = busybox_grid
    grid.write("size.sh", "wc -c\n")
    (grid.folder / "in").write_bytes(bytes(range(256)) * 20_000)
    assert grid("run", "--stdin", "in", "size.sh").text.split() == ["5120000"]


def test_files_are_sent_and_fetched_without_sftp(busybox_grid: Grid) -> None:
    grid = busybox_grid
    grid.write("add.sh", 'mkdir "o ut"; for f in data/*; do cat "$f" >>"o ut/all"; done; ln -s all "o ut/near"\n')
    for number in range(20):
        grid.write(f"data/{number:02} ü", f"{number}\n")
    (grid.folder / "data/big").write_bytes(bytes(2_000_000))
    done = grid("run", "--with", "data", "--fetch", "o*", "--into", "b", "add.sh")
    assert (done.code, done.out) == (0, b""), done
    content = b"".join(b"%d\n" % number for number in range(20)) + bytes(2_000_000)
    assert (grid.folder / "b/o ut/all").read_bytes() == (grid.folder / "b/o ut/near").read_bytes() == content
