"""Hosts that lose power, fall silent, refuse connections or have a full disk: jobs move and give complete output."""

from __future__ import annotations

import contextlib
import hashlib
import operator
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.lab import machine
from tests.lab.host import LabHost
from tests.lab.hosts import Lab
from tests.whole.grid import Grid, RunningCommand, find_leftovers, open_gate, wait_for_value, wait_until
from tests.whole.samples import halves, output_of_halves

pytestmark = pytest.mark.lab

# Prints its first half, and the second half when the gate exists.
HALVES, OUTPUT = halves(100), output_of_halves(100)


@pytest.fixture(scope="module", autouse=True)
def short_patience(module_grid: Grid) -> None:
    """Give up a silent host after 8 seconds, not 10; a cut is still detected earlier."""
    module_grid.write_inventory("retry: {patience: [8s, 1m]}")


def node_of_running_job(grid: Grid) -> str:
    """Wait until the last job runs; returns its node."""
    return str(grid.wait_for_state("last", "RUNNING")["node"])


def test_F16_a_job_moves_to_another_node_when_its_host_loses_power(grid: Grid, hosts: Lab, gate: str) -> None:
    grid.wait_until_up()
    grid.write("halves.py", HALVES)
    with grid.start("run", "halves.py", gate) as client:
        client.wait_for_stdout(b"first 99\n")
        lost = node_of_running_job(grid)
        hosts[lost].power_off()
        open_gate(hosts, gate)
        done = client.result(40)
    assert (done.code, done.out) == (0, OUTPUT)
    job = grid.last_job()
    first, second = job["attempts"]
    assert (job["state"], job["attempt"]) == ("COMPLETED", 2)
    assert (first["node"], second["node"] != lost) == (lost, True)
    assert "no answer" in first["outcome"]
    assert f"{lost} lost" in done.err
    assert f"moved to {second['node']} (attempt 2 of 3)" in done.err
    hosts[lost].power_on()
    grid.wait_until_up(lost)
    wait_for_value(lambda: find_leftovers(hosts[lost]), lambda found: not found, f"{lost} to be cleaned")


def test_F16_a_second_attempt_starts_when_the_host_of_a_job_reboots(grid: Grid, hosts: Lab, gate: str) -> None:
    grid.wait_until_up()
    grid.write("halves.py", HALVES)
    with grid.start("run", "--on", "h1,h2", "halves.py", gate) as client:
        client.wait_for_stdout(b"first 99\n")
        lost = node_of_running_job(grid)
        hosts[lost].power_cycle()
        open_gate(hosts, gate)
        done = client.result(40)
    assert (done.code, done.out) == (0, OUTPUT)
    assert len(grid.last_job()["attempts"]) == 2


def test_F2_a_cut_that_heals_in_time_needs_no_second_attempt(grid: Grid, hosts: Lab, gate: str) -> None:
    grid.wait_until_up()
    grid.write("halves.py", HALVES)
    with grid.start("run", "halves.py", gate) as client:
        client.wait_for_stdout(b"first 99\n")
        node = node_of_running_job(grid)
        hosts[node].cut()
        grid.wait_for_state("last", "DISCONNECTED")
        open_gate(hosts, gate)
        hosts[node].heal()
        assert client.result(40) == (0, OUTPUT, "")
    assert len(grid.last_job()["attempts"]) == 1


def test_F7_a_reset_during_a_run_needs_no_second_attempt(grid: Grid, hosts: Lab, gate: str) -> None:
    grid.wait_until_up()
    grid.write("halves.py", HALVES)
    with grid.start("run", "halves.py", gate) as client:
        client.wait_for_stdout(b"first 99\n")
        node = node_of_running_job(grid)
        hosts[node].reset_sessions()
        open_gate(hosts, gate)
        assert client.result(40) == (0, OUTPUT, "")
    assert len(grid.last_job()["attempts"]) == 1


def test_F7_a_reset_while_output_is_collected_needs_no_second_attempt(grid: Grid, hosts: Lab) -> None:
    grid.wait_until_up()
    grid.write("much.py", "import os\nfor n in range(60): os.write(1, b'%06d\\n' % n * 149797)\n")
    with grid.start("run", "--on", "h3", "much.py") as client:
        wait_until(lambda: len(client.out) > 1 << 20, "the first megabyte")
        hosts["h3"].reset_sessions()
        done = client.result(40)
    assert done.code == 0
    assert done.out == b"".join(b"%06d\n" % n * 149797 for n in range(60))
    assert len(grid.last_job()["attempts"]) == 1
    grid("rm", "last")


SLOW_BUILD = """out: main.c
\ttouch GATE.begun
\twhile [ ! -e GATE ]; do sleep 0.05; done
\tgcc -o $@ main.c
"""


@contextmanager
def waiting_build(grid: Grid, on: str, gate: str) -> Iterator[RunningCommand]:
    """A run whose compilation has begun and waits for the gate."""
    grid.write("project/Makefile", SLOW_BUILD.replace("GATE", gate))
    grid.write("project/main.c", '#include <stdio.h>\nint main(void) { puts("built"); }\n')
    with grid.start("run", "--on", on, "project") as client:
        jobs = wait_for_value(
            lambda: grid("--json", "ps").json["jobs"],
            lambda found: found and found[-1]["phase"] == "compiling",
            "a build",
        )
        node = jobs[-1]["node"]
        wait_until(
            lambda: grid.lab[node].run(["test", "-e", f"{gate}.begun"], check=False).returncode == 0, "make to begin"
        )
        yield client


def test_F7_a_reset_during_the_compilation_needs_no_second_attempt(grid: Grid, hosts: Lab, gate: str) -> None:
    grid.wait_until_up()
    with waiting_build(grid, "h1,h2", gate) as client:
        hosts[grid.last_job()["node"]].reset_sessions()
        open_gate(hosts, gate)
        assert client.result(40) == (0, b"built\n", "")
    assert len(grid.last_job()["attempts"]) == 1


def large_input(grid: Grid) -> tuple[int, str]:
    """Write a large file `in` with new content; returns its size and its digest."""
    grid.write("size.py", "import sys\nprint(len(sys.stdin.buffer.read()))\n")
    with (grid.folder / "in").open("w+b") as file:
        file.write(secrets.token_bytes(32))
        file.truncate(300_000_000)
        file.seek(0)
        return 300_000_000, hashlib.file_digest(file, "sha256").hexdigest()


def host_that_receives(lab: Lab, sha256: str, *names: str) -> str:
    """The name of the host that is receiving this file; `""` for none."""
    for host in map(lab.__getitem__, names):
        for part in host.disk_path(host.workdir).glob(f"objects/{sha256}*part"):
            with contextlib.suppress(FileNotFoundError):
                if part.stat().st_size > 1 << 20:
                    return host.name
    return ""


def test_F25_after_a_reset_during_an_upload_the_second_attempt_succeeds(grid: Grid, hosts: Lab) -> None:
    grid.wait_until_up()
    size, sha256 = large_input(grid)
    with grid.start("run", "--on", "h1,h2", "--stdin", "in", "size.py") as client:
        hosts[wait_for_value(lambda: host_that_receives(hosts, sha256, "h1", "h2"), bool, "an upload")].reset_sessions()
        done = client.result(40)
    assert (done.code, done.out) == (0, b"%d\n" % size), done
    assert len(grid.last_job()["attempts"]) == 2
    grid("rm", "last")


def test_F1_F4_jobs_move_when_hosts_fall_silent_during_compilation_run_or_upload(
    grid: Grid, hosts: Lab, gate: str
) -> None:
    grid.wait_until_up()
    hosts["h4"].set_load(4.0, 1.5)
    wait_for_value(grid.nodes, lambda nodes: nodes["h4"]["load"] == 4.0, "h4 to be busy")
    size, sha256 = large_input(grid)
    grid.write("halves.py", HALVES)
    with ExitStack() as stack:
        built = stack.enter_context(waiting_build(grid, "h1,h4", gate))
        ran = stack.enter_context(grid.start("run", "--on", "h2,h4", "halves.py", gate))
        ran.wait_for_stdout(b"first 99\n")
        sent = stack.enter_context(grid.start("run", "--on", "h3,h4", "--stdin", "in", "size.py"))
        wait_until(lambda: host_that_receives(hosts, sha256, "h3"), "an upload")
        hosts["h3"].cut()
        hosts["h1"].power_off()
        hosts["h2"].freeze()
        hosts["h4"].run(["touch", gate])
        ends = [client.result(40) for client in (built, ran, sent)]
    assert [(done.code, done.out) for done in ends] == [(0, b"built\n"), (0, OUTPUT), (0, b"%d\n" % size)]
    assert all("moved to h4 (attempt 2 of 3)" in done.err for done in ends), ends
    hosts["h2"].thaw()
    hosts["h1"].power_on()
    hosts["h3"].heal()
    grid.wait_until_up()
    for name in ("h1", "h2", "h3"):
        wait_for_value(partial(find_leftovers, hosts[name]), operator.not_, f"{name} to be cleaned", 30)
    grid("rm", "last")


def test_a_run_succeeds_after_a_reset_during_the_toolchain_check(grid: Grid, hosts: Lab) -> None:
    grid.wait_until_up()
    host = hosts["h1"]
    grid.take_down(host)
    host.reset()
    grid.write("A.java", "class A { public static void main(String[] a) { System.out.print(a[0]); } }")
    with grid.start("run", "--on", "h1", "A.java", "fine") as client:
        wait_until(lambda: any("-0." in run for run in host.leftovers()), "a test of java on h1")
        host.reset_sessions()
        done = client.result(40)
    assert (done.code, done.out) == (0, b"fine"), done


@pytest.mark.parametrize("fault", ["cut", "reset", "refuse", "freeze"])
def test_F1_F7_F9_F32_a_run_skips_a_host_that_does_not_connect(grid: Grid, hosts: Lab, fault: str) -> None:
    grid.wait_until_up()
    host = hosts["h1"]
    match fault:
        case "cut":
            host.cut()
        case "reset":
            host.reset_connections()
        case "refuse":
            host.stop_server()
            host.reset_sessions()
        case "freeze":
            host.freeze()
    grid.write("node.py", "import os; print(os.environ['SSHGRID_NODE'])")
    done = grid("run", "--on", "h1,h2", "node.py")
    assert (done.code, done.out) == (0, b"h2\n"), done


def test_an_unreachable_host_does_not_slow_runs_on_other_hosts(grid: Grid, hosts: Lab) -> None:
    grid.wait_until_up()
    grid.write("hello.py", "print('hello')")

    def nine_runs() -> float:
        """The duration of the slowest of nine runs, in seconds."""
        times = []
        for _ in range(9):
            began = time.monotonic()
            assert grid("run", "hello.py").out == b"hello\n"
            times.append(time.monotonic() - began)
        return max(times)

    grid("run", "hello.py")
    before = nine_runs()
    hosts["h4"].cut()
    wait_for_value(grid.nodes, lambda nodes: nodes["h4"]["state"] == "DOWN", "h4 to be down")
    assert nine_runs() < 2 * before + 1.0


def test_F24_a_run_moves_away_from_a_host_with_a_full_disk(grid: Grid, hosts: Lab) -> None:
    host = hosts["h1"]
    grid.write("hello.py", "print('hello')")
    grid.take_down(host)
    host.small_disk(3 << 20)
    try:
        grid.wait_until_up()
        assert grid("run", "--on", "h1", "hello.py").code == 0
        host.fill_disk()
        for name in ("h2", "h3", "h4"):
            hosts[name].set_load(5.0, 1.9)
        wait_for_value(grid.nodes, lambda nodes: all(nodes[n]["load"] == 5.0 for n in ("h2", "h3", "h4")), "the loads")
        grid.write("node.py", "import os; print(os.environ['SSHGRID_NODE'])\n" + "# long\n" * 2000)
        done = grid("run", "node.py")
        assert done.code == 0, done
        assert done.out != b"h1\n"
        job = grid.last_job()
        first = job["attempts"][0]
        assert first["node"] == "h1", job
        assert "disk full" in first["outcome"] or "no space" in first["outcome"]
        host.free_disk()
    finally:
        grid.take_down(host)
        host.reset()


def test_F23_a_run_that_ends_on_a_full_disk_exits_with_125(grid: Grid, hosts: Lab, gate: str) -> None:
    host = hosts["h1"]
    grid.write("hello.py", "print('hello')")
    grid.take_down(host)
    host.small_disk(3 << 20)
    try:
        grid.wait_until_up()
        assert grid("run", "--on", "h1", "hello.py").code == 0
        grid.write("gated.py", HALVES.split('for n in range(100): print("second"')[0] + "sys.exit(5)\n")
        with grid.start("run", "--on", "h1", "--retries", "0", "gated.py", gate) as client:
            client.wait_for_stdout(b"first 99\n")
            host.fill_disk()
            host.run(["touch", gate])
            done = client.result()
            assert done.code == 125
            assert "its disk was full when the run ended" in done.err
        host.free_disk()
        wait_until(lambda: not find_leftovers(host), "h1 to be cleaned", 20, lambda: find_leftovers(host))
    finally:
        grid.take_down(host)
        host.reset()


@pytest.mark.parametrize(
    ("workdir", "why"),
    [("/tmp/others/new", "cannot make"), ("/tmp/link", "is a link"), ("/tmp/others", "another user")],
)
def test_A41_an_unsafe_workdir_is_refused_and_named(grid: Grid, hosts: Lab, workdir: str, why: str) -> None:
    before = grid.inventory.read_text()
    hosts["h1"].run(["sh", "-c", "mkdir -p /tmp/others && ln -sfn /home/grid /tmp/link"])
    grid.write("node.py", "import os; print(os.environ['SSHGRID_NODE'])")
    try:
        grid.write_inventory(fields={"h1": {"workdir": workdir}})
        found = wait_for_value(grid.nodes, lambda nodes: workdir in nodes["h1"]["reason"], "h1 to be refused")["h1"]
        assert (found["state"], why in found["reason"]) == ("DOWN", True), found
        assert grid("run", "--on", "h1,h2", "node.py").out == b"h2\n"
    finally:
        grid.inventory.write_text(before)


def test_A21_a_changed_host_key_is_refused_also_with_accept_new(grid: Grid, hosts: Lab) -> None:
    host = hosts["h1"]
    known = hosts.known_hosts.read_text()
    grid.take_down(host)
    try:
        host.new_host_key()
        grid("node", "check", "h1")
        node = grid.nodes()["h1"]
        assert node["state"] == "DOWN"
        assert "host key changed" in node["reason"]
        assert f"{hosts.known_hosts}:1" in node["reason"]
        done = grid("node", "check", "h1", "--accept-new")
        assert done.code == 1
        assert hosts.known_hosts.read_text() == known
        grid.write("node.py", "import os; print(os.environ['SSHGRID_NODE'])")
        assert grid("run", "--on", "h1", "node.py").code == 125
        assert grid("run", "--on", "h1,h2", "node.py").out == b"h2\n"
    finally:
        lines = [host.known_host if line.startswith(f"{host.address} ") else line for line in known.splitlines()]
        hosts.known_hosts.write_text("\n".join((*lines, "")))


def test_a_run_skips_a_node_that_refuses_the_login_and_reports_it(grid: Grid, hosts: Lab, tmp_path: Path) -> None:
    before = grid.inventory.read_text()
    machine.call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "unknown_key"))
    try:
        grid.write_inventory(fields={"h1": {"identity_file": str(tmp_path / "unknown_key")}})
        wait_for_value(grid.nodes, lambda nodes: nodes["h1"]["state"] == "DOWN", "h1 to refuse")
        assert "login refused" in grid.nodes()["h1"]["reason"]
        grid.write("node.py", "import os; print(os.environ['SSHGRID_NODE'])")
        assert grid("run", "--on", "h1,h2", "node.py").out == b"h2\n"
        refused = grid("run", "--on", "h1", "node.py")
        assert (refused.code, "login refused" in refused.err) == (125, True)
    finally:
        grid.inventory.write_text(before)


# --- login shells -----------------------------------------------------------------------------------------------------


def reconnect(grid: Grid, host: LabHost) -> None:
    host.reset_sessions()
    grid.wait_until_up(host.name)


@pytest.mark.parametrize("shell", ["csh", "fish", "mksh", "dash"])
def test_A12_arguments_arrive_unchanged_with_each_login_shell(grid: Grid, hosts: Lab, shell: str) -> None:
    hosts["h1"].set_shell(shell)
    reconnect(grid, hosts["h1"])
    grid.write("args.py", "import sys; print(sys.argv[1:])")
    words = ["a b", "it's", 'say "hi"', "$(id) `id` $HOME", "two\nlines", "", "!x", "*"]
    done = grid("run", "--on", "h1", "args.py", *words)
    assert (done.code, done.text) == (0, f"{words}\n"), done


def test_A14_the_output_of_bashrc_is_not_in_the_output_of_the_run(grid: Grid, hosts: Lab) -> None:
    hosts["h1"].set_bashrc("echo Welcome to h1; echo oops >&2; printf 'no newline'\n")
    reconnect(grid, hosts["h1"])
    grid.write("say.py", "import sys; print('out'); print('err', file=sys.stderr); sys.exit(4)")
    assert grid("run", "--on", "h1", "say.py") == (4, b"out\n", "err\n")
    assert grid("run", "-I", "--on", "h1", "say.py") == (4, b"out\n", "err\n")


def test_A15_a_bashrc_that_reads_a_line_does_not_affect_the_run(grid: Grid, hosts: Lab) -> None:
    hosts["h1"].set_bashrc("read -r line\n")
    reconnect(grid, hosts["h1"])
    grid.write("say.py", "import sys; print('out'); sys.exit(4)")
    assert grid("run", "--on", "h1", "say.py") == (4, b"out\n", "")


def test_A16_a_node_whose_bashrc_exits_is_down_with_a_reason(grid: Grid, hosts: Lab) -> None:
    hosts["h1"].set_bashrc("exit 0\n")
    hosts["h1"].reset_sessions()
    node = wait_for_value(
        lambda: grid("node", "check", "h1") and grid.nodes()["h1"],
        lambda found: found["state"] == "DOWN",
        "h1 to be down",
        40,
    )
    assert "login" in node["reason"]
    grid.write("node.py", "import os; print(os.environ['SSHGRID_NODE'])")
    assert grid("run", "--on", "h1,h2", "node.py").out == b"h2\n"


def test_A13_a_node_with_nologin_is_down_with_a_reason(grid: Grid, hosts: Lab) -> None:
    hosts["h1"].set_shell("nologin")
    hosts["h1"].reset_sessions()
    node = wait_for_value(
        lambda: grid("node", "check", "h1") and grid.nodes()["h1"],
        lambda found: found["state"] == "DOWN",
        "h1 to be down",
    )
    assert "does not run commands" in node["reason"]
    assert "This account is currently not available" in node["reason"]
