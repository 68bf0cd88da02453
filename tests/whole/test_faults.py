"""Faults of the network, the SSH server and the node, caused on real hosts: each job still gets its result.

The table of all faults is docs/faults.md.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.lab.host import LabHost
from tests.lab.hosts import Lab
from tests.whole.grid import Grid, open_gate, wait_for_value, wait_until
from tests.whole.samples import halves, output_of_halves

pytestmark = pytest.mark.lab

IMPATIENT = "retry: {patience: [8s, 1m]}"
HALVES, OUTPUT = halves(100), output_of_halves(100)


@pytest.fixture(scope="module", autouse=True)
def short_patience(module_grid: Grid) -> None:
    """Give up a silent host after 8 seconds, not 10."""
    module_grid.write_inventory(IMPATIENT)


@pytest.fixture
def inventory(grid: Grid) -> Iterator[Path]:
    """The inventory file, which is restored after the test."""
    before = grid.inventory.read_text()
    yield grid.inventory
    grid.inventory.write_text(before)


def start_waiting_job(grid: Grid, gate: str, *options: str) -> tuple[str, LabHost]:
    """Start a job that waits for the gate; returns its ID and its host."""
    grid.write("halves.py", HALVES)
    job = grid.detach(*options, "halves.py", gate)
    with grid.start("logs", "-f", job) as logs:
        logs.wait_for_stdout(b"first 99\n")
    return job, grid.lab[grid.info(job)["node"]]


def peak_memory_bytes(pid: int) -> int:
    """The peak of the resident memory of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) * 1024


# --- network and SSH server -------------------------------------------------------------------------------------------

# Each attempt writes its number and the time to the disk of its host; only the first one continues until it is killed.
TICKS = """import os, time
attempt = os.environ["SSHGRID_ATTEMPT"]
with open("/var/tmp/ticks", "a") as file:
    while True:
        print(attempt, time.time(), file=file, flush=True)
        if attempt != "1": break
        if file.tell() < 100: print("begun", flush=True)
        time.sleep(0.02)
"""


def times_alive(lab: Lab) -> dict[str, list[float]]:
    """The times that each attempt has written. All hosts of a lab have the same clock."""
    found: dict[str, list[float]] = {}
    for host in lab:
        path = host.disk_path("/var/tmp/ticks")
        for line in path.read_text().splitlines() if path.exists() else ():
            attempt, at = line.split()
            found.setdefault(attempt, []).append(float(at))
    return found


def test_F3_with_fence_a_cut_off_run_ends_before_the_next_attempt_starts(
    grid: Grid, hosts: Lab, inventory: Path
) -> None:
    grid.write_inventory("retry: {patience: [2s, 1m]}")
    grid.wait_until_up()
    grid.write("ticks.py", TICKS)
    try:
        with grid.start("run", "--on-host-loss", "fence", "ticks.py") as client:
            client.wait_for_stdout(b"begun\n")
            lost = hosts[grid.last_job()["node"]]
            lost.cut()
            done = client.result(40)
        assert done.code == 0, done
        alive = times_alive(hosts)
        assert max(alive["1"]) < min(alive["2"])
        assert [attempt["node"] == lost.name for attempt in grid.last_job()["attempts"]] == [True, False]
    finally:
        for host in hosts:
            host.disk_path("/var/tmp/ticks").unlink(missing_ok=True)


def test_F9_a_stopped_ssh_server_does_not_affect_the_open_connection(grid: Grid, hosts: Lab, gate: str) -> None:
    grid.wait_until_up()
    job, host = start_waiting_job(grid, gate)
    host.stop_server()
    grid.write("node.py", "import os; print(os.environ['SSHGRID_NODE'])")
    assert grid("run", "--on", host.name, "node.py").text == f"{host.name}\n"
    open_gate(hosts, gate)
    assert grid("attach", job) == (0, OUTPUT, "")
    assert grid.nodes()[host.name]["state"] != "DOWN"


def test_F34_frozen_sessions_are_replaced_by_new_ones(grid: Grid, hosts: Lab, gate: str) -> None:
    grid.wait_until_up()
    job, host = start_waiting_job(grid, gate)
    host.freeze_sessions()
    open_gate(hosts, gate)
    assert grid("attach", job) == (0, OUTPUT, "")
    assert len(grid.info(job)["attempts"]) == 1


def test_F29_24_nodes_on_one_server_all_connect(grid: Grid, hosts: Lab, inventory: Path) -> None:
    """sshd drops connections at random when more than ten have not yet logged in."""
    node = hosts.inventory_yaml(hosts=["h1"]).partition("  h1:\n")[2]
    names = [f"n{number}" for number in range(24)]
    many = "".join(f"  {name}:\n{node}" for name in names)
    inventory.write_text(f"version: 1\n{IMPATIENT}\ndefaults: {{toolchains: [sh]}}\nnodes:\n{many}")
    grid.wait_until_up(*names)
    assert " is down: " not in grid.log[grid._log_read :]


def test_F30_interactive_runs_over_the_channel_limit_are_refused_and_the_others_run(
    grid: Grid, hosts: Lab, gate: str, inventory: Path
) -> None:
    """sshd allows ten channels on a connection."""
    grid.write_inventory(IMPATIENT, fields={"h1": {"slots": 20}})
    grid.wait_until_up()
    grid.write("halves.py", HALVES)
    with ExitStack() as stack:
        clients = [stack.enter_context(grid.start("run", "-I", "--on", "h1", "halves.py", gate)) for _ in range(9)]
        wait_until(
            lambda: all(b"first 99\n" in client.out or client.process.poll() is not None for client in clients),
            "all runs to have begun or to be refused",
            20,
            lambda: [(client.out[-20:], client.err) for client in clients],
        )
        refused = [client.result() for client in clients if client.process.poll() is not None]
        assert grid("run", "--on", "h1", "halves.py", "/").code == 0
        open_gate(hosts, gate)
        ends = [client.result() for client in clients]
    assert all(done.code == 125 and "no further channel" in done.err for done in refused), refused
    assert len([done for done in ends if (done.code, done.out) == (0, OUTPUT)]) == 9 - len(refused) >= 5


# --- the node ---------------------------------------------------------------------------------------------------------


def test_F17_the_result_of_an_ended_run_survives_a_crash_of_its_node(grid: Grid, hosts: Lab, gate: str) -> None:
    grid.wait_until_up()
    job, host = start_waiting_job(grid, gate)
    host.cut()
    open_gate(hosts, gate)
    run = next(name for name in host.leftovers() if name.endswith(f"-{job}.1"))
    record = host.disk_path(f"{host.workdir}/runs/{run}/rc")
    wait_until(record.is_symlink, "the run to end")
    host.power_cycle()
    assert grid("attach", job) == (0, OUTPUT, "")
    assert len(grid.info(job)["attempts"]) == 1


def test_F26_F27_100_MB_for_a_stopped_client_do_not_fill_the_memory_of_the_master(grid: Grid, hosts: Lab) -> None:
    grid.wait_until_up()
    count = 100_000_000
    grid.write("much.sh", f"head -c {count} /dev/zero")
    pid = grid.master_pid()
    before = peak_memory_bytes(pid)
    with grid.start("run", "--on", "h1", "much.sh") as client:
        wait_until(lambda: client.out, "the first bytes")
        client.process.send_signal(signal.SIGSTOP)
        assert grid("wait", "last").code == 0
        client.process.send_signal(signal.SIGCONT)
        done = client.result()
    assert (done.code, len(done.out)) == (0, count)
    assert peak_memory_bytes(pid) - before < 64 << 20
    grid("rm", "last")


def test_F36_hosts_that_share_a_working_folder_keep_the_runs_of_each_other(grid: Grid, hosts: Lab, gate: str) -> None:
    """As with a home on NFS: two machines with different boot IDs and one folder."""
    shared = hosts["h1"].disk_path("/var/tmp")
    hosts["h2"].run(["mount", "--bind", str(shared), "/var/tmp"])
    hosts["h2"].reset_sessions()
    try:
        grid.wait_until_up()
        jobs = [start_waiting_job(grid, gate, "--on", name)[0] for name in ("h1", "h2", "h1", "h2")]
        grid.kill_master()
        grid.wait_until_up()
        hosts["h1"].reset_sessions()
        grid.wait_until_up()
        open_gate(hosts, gate)
        assert [grid("attach", job) for job in jobs] == [(0, OUTPUT, "")] * 4
        assert [len(grid.info(job)["attempts"]) for job in jobs] == [1] * 4
        wait_for_value(hosts["h1"].leftovers, lambda found: not found, "the folder to be clean")
    finally:
        hosts["h2"].run(["umount", "-l", "/var/tmp"])
        hosts["h2"].reset_sessions()
