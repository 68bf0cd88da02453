"""`node add` on real hosts: host keys, the installation of the user's key, and the change of the inventory."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from collections.abc import Iterator

import pytest

from tests.lab.hosts import Lab, LabHost
from tests.whole.grid import Grid, wait_until

pytestmark = pytest.mark.lab

PASSWORD = "corréct horse $(touch /tmp/never) 'battery'"
PORT = 2222
NOISY = 'echo "Welcome!"; printf "no end of line"; read -r line; echo "you said $line" >&2\n'


@pytest.fixture
def one_node_grid(grid: Grid, lab: Lab) -> Iterator[Grid]:
    """A grid with only h1 and a comment in its inventory; only the host key of h1 is known."""
    before = grid.inventory.read_text()
    fields = {"toolchains": ["python"], "user": "grid", "identity_file": str(lab.identity_file)}
    one = f"# ours\ndefaults: {json.dumps(fields)}\nnodes:\n  h1: {{host: {lab['h1'].address}}}   # the first\n"
    grid.inventory.write_text(one)
    (grid.home / "known_hosts").write_text(lab["h1"].known_host + "\n")
    grid.wait_until_up("h1")
    yield grid
    grid.inventory.write_text(before)
    (grid.home / "known_hosts").unlink()
    grid.wait_until_up("h1", "h2", "h3", "h4")


@pytest.fixture
def password_host(hosts: Lab) -> LabHost:
    """h3 with a bashrc that prints and reads, and an SSH server that accepts the password but not our key."""
    host = hosts["h3"]
    host.take_passwords(PASSWORD, PORT)
    host.set_bashrc(NOISY)
    host.run(["rm", "-r", "/home/grid/.ssh"])
    return host


def authorized_keys(host: LabHost) -> list[str]:
    return host.run(["cat", "/home/grid/.ssh/authorized_keys"]).stdout.splitlines()


def test_removing_an_added_node_restores_the_inventory_file(one_node_grid: Grid, hosts: Lab) -> None:
    before = one_node_grid.inventory.read_bytes()
    refused = one_node_grid("--no-input", "node", "add", "h2", f"grid@{hosts['h2'].address}")
    assert refused.code == 1
    assert "h2: unknown host key SHA256:" in refused.err
    assert "--accept-new" in refused.err
    assert one_node_grid.inventory.read_bytes() == before
    added = one_node_grid("node", "add", "h2", f"grid@{hosts['h2'].address}", "--accept-new", "--tag", "new")
    assert added.code == 0, added
    assert f"  h2: {{host: {hosts['h2'].address}, user: grid, tags: [new]}}\n" in added.text
    assert "host key SHA256:" in added.err
    assert hosts["h2"].known_host in (one_node_grid.home / "known_hosts").read_text()
    assert set(one_node_grid.nodes()) == {"h1", "h2"}  # without a restart of the master
    assert one_node_grid("node", "rm", "h2").code == 0
    assert one_node_grid.inventory.read_bytes() == before


def test_node_add_shows_the_fingerprint_and_asks_once(one_node_grid: Grid, hosts: Lab) -> None:
    words = [*one_node_grid.argv("node", "add", "h2", hosts["h2"].address)]
    before = one_node_grid.inventory.read_bytes()
    shown, code = run_on_terminal(one_node_grid, words, "that machine?", "n\n")
    assert (code, shown.count("[y/N]")) == (1, 1), shown
    assert "host key SHA256:" in shown
    assert "--no-check" not in shown
    assert one_node_grid.inventory.read_bytes() == before
    shown, code = run_on_terminal(one_node_grid, words, "that machine?", "y\n")
    assert (code, shown.count("[y/N]")) == (0, 1), shown
    assert "h2: {host: " in shown


def run_on_terminal(grid: Grid, words: list[str | bytes], question: str, answer: str) -> tuple[str, int]:
    """Run a command in a terminal and answer one question; returns the text shown and the exit code."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        words,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=grid.folder,
        env={**grid.environ, "NO_COLOR": "1"},
        start_new_session=True,
    )
    os.close(theirs)
    shown, answered = b"", False
    try:
        while piece := _read(ours):
            shown += piece
            if question.encode() in shown and not answered:
                answered = True
                os.write(ours, answer.encode())
        return shown.decode(), process.wait(30)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # the last process with this terminal has ended
        return b""


def test_copy_key_installs_the_key_once_and_does_not_store_the_password(
    one_node_grid: Grid, password_host: LabHost, lab: Lab
) -> None:
    host, place = password_host, f"grid@{password_host.address}:{PORT}"
    wrong = one_node_grid("node", "add", "h3", place, "--accept-new", "--copy-key", stdin=b"not this one\n")
    assert wrong.code == 1
    assert "the password was wrong" in wrong.err
    assert "h3" not in one_node_grid.inventory.read_text()
    done = one_node_grid("-v", "node", "add", "h3", place, "--copy-key", stdin=f"{PASSWORD}\n".encode())
    assert done.code == 0, done
    assert "your ssh-ed25519 key is installed" in done.err
    public = lab.identity_file.with_suffix(".pub").read_text().strip()
    assert authorized_keys(host) == [public]
    listed = host.run(["stat", "-c", "%a %U", "/home/grid/.ssh", "/home/grid/.ssh/authorized_keys"]).stdout
    assert listed.split() == ["700", "grid", "600", "grid"]
    # With an installed key, no password is needed.
    assert one_node_grid("node", "rm", "h3").code == 0
    again = one_node_grid("node", "add", "h3", place, "--copy-key")
    assert again.code == 0, again
    assert authorized_keys(host) == [public]
    kept = [path for path in one_node_grid.home.rglob("*") if path.is_file() and b"horse" in path.read_bytes()]
    assert kept == []


def test_copy_key_asks_for_the_password_without_echo(one_node_grid: Grid, password_host: LabHost) -> None:
    words = one_node_grid.argv(
        "node", "add", "h3", f"grid@{password_host.address}:{PORT}", "--accept-new", "--copy-key"
    )
    shown, code = run_on_terminal(one_node_grid, words, "Password of grid@", f"{PASSWORD}\n")
    assert code == 0, shown
    assert shown.count("Password of") == 1
    assert "horse" not in shown
    assert len(authorized_keys(password_host)) == 1


def test_copy_key_without_a_terminal_or_a_password_on_stdin_is_refused(
    one_node_grid: Grid, password_host: LabHost
) -> None:
    done = one_node_grid("node", "add", "h3", f"grid@{password_host.address}:{PORT}", "--accept-new", "--copy-key")
    assert done.code == 2
    assert "needs the password of the account once" in done.err
    assert "h3" not in one_node_grid.inventory.read_text()
    password_host.power_off()  # its home comes back with the key in it
    wait_until(lambda: not password_host.is_on, "h3 to be off")


def test_eight_concurrent_changes_of_the_inventory_are_all_kept(one_node_grid: Grid) -> None:
    before = one_node_grid.inventory.read_bytes()
    names = [f"x{number}" for number in range(8)]
    running = [one_node_grid.start("node", "add", name, "127.0.0.1:9", "--no-check") for name in names]
    assert [each.result().code for each in running] == [0] * 8
    assert set(one_node_grid.nodes()) == {"h1", *names}
    lines = one_node_grid.inventory.read_text().splitlines()
    assert sorted(lines[-8:]) == [f"  {name}: {{host: 127.0.0.1, port: 9}}" for name in names]
    running = [one_node_grid.start("node", "rm", name) for name in names]
    assert [each.result().code for each in running] == [0] * 8
    assert one_node_grid.inventory.read_bytes() == before
    assert set(one_node_grid.nodes()) == {"h1"}
