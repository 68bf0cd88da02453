"""The lab itself: an ordinary ssh client sees the effect of each of its methods."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.lab import machine
from tests.lab.hosts import Lab, LabError, LabHost

pytestmark = pytest.mark.lab
REPOSITORY = Path(__file__).parents[2]


def ssh(lab: Lab, name: str, command: str, stdin: str = "", seconds: float = 20) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        lab.ssh(name, command), input=stdin, capture_output=True, text=True, timeout=seconds, check=False
    )


def stdout_of(lab: Lab, name: str, command: str, stdin: str = "") -> str:
    done = ssh(lab, name, command, stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def can_connect(host: LabHost, seconds: float) -> bool:
    """Whether the host accepts a connection. TimeoutError when it does not answer."""
    try:
        socket.create_connection((host.address, 22), timeout=seconds).close()
    except ConnectionError:
        return False
    return True


def drain(connection: socket.socket) -> None:
    while connection.recv(4096):
        pass


def wait_for_processes(host: LabHost, *expected: tuple[str, ...]) -> None:
    """Wait until exactly these processes run: the shell that started them may need a moment to exit."""

    def seen() -> list[tuple[str, ...]]:
        return [process.argv for process in host.processes()]

    machine.wait_until(lambda: seen() == list(expected), f"only {expected}", 5, seen)


def detached(command: str) -> str:
    return f"setsid sh -c '{command}' </dev/null >/dev/null 2>&1 &"


def test_a_lab_of_four_hosts_starts_within_ten_seconds() -> None:
    start = time.monotonic()
    with Lab(4) as lab:
        seconds = time.monotonic() - start
        names = [stdout_of(lab, name, "hostname") for name in lab.hosts]
    assert names == ["h1", "h2", "h3", "h4"]
    assert seconds < 10


def test_a_second_lab_has_its_own_addresses_and_leaves_nothing_behind(lab_hosts: Lab) -> None:
    with Lab(1) as other:
        assert other["h1"].address != lab_hosts["h1"].address
        assert stdout_of(other, "h1", "id -un") == stdout_of(lab_hosts, "h1", "id -un") == "grid"
        address, directory = other["h1"].address, other.directory
    assert not directory.exists()
    assert directory.name not in machine.call("ip", "link") + machine.call("ip", "netns")
    assert address not in machine.call("ip", "neigh")


def test_the_inventory_lists_every_host_with_its_key_and_known_host_key(lab_hosts: Lab) -> None:
    text = lab_hosts.inventory_yaml("placement: pack\n", fields={"h2": {"tags": ["fast"], "slots": 3}})
    inventory = yaml.safe_load(text)
    assert inventory["placement"] == "pack"
    assert list(inventory["nodes"]) == ["h1", "h2", "h3", "h4"]
    assert inventory["nodes"]["h2"]["tags"] == ["fast"]
    assert inventory["nodes"]["h2"]["host"] == lab_hosts["h2"].address
    assert Path(inventory["nodes"]["h3"]["identity_file"]).exists()
    assert lab_hosts["h3"].address in Path(inventory["nodes"]["h3"]["known_hosts"]).read_text()


def test_a_cut_drops_packets_silently_and_heal_restores_the_same_connection(lab_hosts: Lab) -> None:
    host = lab_hosts["h1"]
    session = subprocess.Popen(lab_hosts.ssh("h1", "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with session:
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(b"before\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"before\n"
        host.cut()
        with pytest.raises(TimeoutError):
            can_connect(host, 0.5)
        session.stdin.write(b"after\n")
        session.stdin.flush()
        assert session.poll() is None
        host.heal()
        assert session.stdout.readline() == b"after\n"
    assert can_connect(host, 5)


def test_power_off_kills_all_processes_and_the_host_does_not_answer(lab_hosts: Lab) -> None:
    host = lab_hosts["h2"]
    assert stdout_of(lab_hosts, "h2", detached("exec sleep 1000")) == ""
    wait_for_processes(host, ("sleep", "1000"))
    outside = [pid for pid in machine.descendants(host.init) if machine.argv_of(pid) == ("sleep", "1000")]
    assert len(outside) == 1
    host.power_off()
    assert host.processes() == []
    assert not any(machine.is_alive(pid) for pid in outside)
    with pytest.raises(TimeoutError):
        can_connect(host, 0.5)


def test_F16_a_reboot_keeps_the_disk_and_changes_boot_id_and_uptime(lab_hosts: Lab) -> None:
    host = lab_hosts["h3"]
    identity = "cat /proc/sys/kernel/random/boot_id; readlink /proc/self/ns/pid"
    before = stdout_of(
        lab_hosts, "h3", identity + "; echo kept >/var/tmp/kept; echo gone >/tmp/gone; echo gone >~/gone"
    )
    host.power_cycle()
    after = stdout_of(lab_hosts, "h3", identity)
    assert set(before.split()).isdisjoint(after.split())
    assert stdout_of(lab_hosts, "h3", "cat /var/tmp/kept; ls /tmp ~") == "kept\n/home/grid:\n\n/tmp:"
    if machine.has_time_namespaces():
        assert float(stdout_of(lab_hosts, "h3", "cat /proc/uptime").split()[0]) < 60 < machine.uptime() + 60


def test_each_host_has_its_own_load_and_cpu_counters(lab_hosts: Lab) -> None:
    lab_hosts["h1"].set_load(7.5, 1.0)
    assert stdout_of(lab_hosts, "h1", "cat /proc/loadavg").startswith("7.50 ")
    assert stdout_of(lab_hosts, "h2", "cat /proc/loadavg").startswith("0.00 ")
    busy, idle = (cpu_deltas(lab_hosts, name) for name in ("h1", "h2"))
    assert busy[0] > 0
    assert idle[0] == 0 < idle[1]


def cpu_deltas(lab: Lab, name: str) -> tuple[int, int]:
    """Ticks spent busy and idle on all cores between two different readings."""

    def look() -> list[int]:
        return [int(word) for word in lab[name].run(["head", "-n1", "/proc/stat"]).stdout.split()[1:]]

    first = last = look()

    def moved() -> bool:
        nonlocal last
        last = look()
        return last != first

    machine.wait_until(moved, "/proc/stat to move")
    return last[0] - first[0], last[3] - first[3]


@pytest.mark.parametrize("shell", ["bash", "dash", "csh", "fish", "mksh"])
def test_A12_set_shell_changes_the_login_shell(lab_hosts: Lab, shell: str) -> None:
    lab_hosts["h1"].set_shell(shell)
    # The login shell is the parent of the command that it starts.
    program = stdout_of(lab_hosts, "h1", "sh -c 'readlink /proc/$PPID/exe; :'; true").rpartition("/")[2]
    assert program.removeprefix("bsd-") == shell


def test_A13_an_account_with_nologin_runs_no_command(lab_hosts: Lab) -> None:
    lab_hosts["h1"].set_shell("nologin")
    done = ssh(lab_hosts, "h1", "echo ran")
    assert done.returncode == 1
    assert "ran" not in done.stdout


def test_A14_the_output_of_bashrc_comes_before_that_of_the_command(lab_hosts: Lab) -> None:
    lab_hosts["h1"].set_bashrc("echo noise\n")
    assert stdout_of(lab_hosts, "h1", "echo word") == "noise\nword"
    lab_hosts["h1"].power_cycle()
    assert stdout_of(lab_hosts, "h1", "echo word") == "noise\nword"


def test_F8_reset_sessions_ends_the_session_but_not_a_detached_process(lab_hosts: Lab) -> None:
    host = lab_hosts["h4"]
    with subprocess.Popen(
        lab_hosts.ssh("h4", "echo here; exec cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as session:
        assert session.stdout is not None
        assert session.stdout.readline() == b"here\n"
        stdout_of(lab_hosts, "h4", detached("exec sleep 1001"))
        host.reset_sessions()
        assert session.wait(10) == 255
    wait_for_processes(host, ("sleep", "1001"))
    host.end_processes()
    assert host.processes() == []
    assert can_connect(host, 5)


def test_F7_connections_are_reset_until_the_host_is_healed(lab_hosts: Lab) -> None:
    host = lab_hosts["h3"]
    with socket.create_connection((host.address, 22), timeout=5) as connection:
        assert connection.recv(4) == b"SSH-"
        host.reset_connections()
        connection.sendall(b"SSH-2.0-test\r\n")
        with pytest.raises(ConnectionResetError):
            drain(connection)
    assert not can_connect(host, 5)
    host.heal()
    assert can_connect(host, 5)


def test_a_host_that_loses_all_packets_does_not_answer_until_it_is_healed(lab_hosts: Lab) -> None:
    host = lab_hosts["h3"]
    host.lose(100)
    with pytest.raises(TimeoutError):
        can_connect(host, 0.3)
    host.heal()
    assert can_connect(host, 5)


def test_F9_stop_server_refuses_new_connections_and_keeps_sessions(lab_hosts: Lab) -> None:
    host = lab_hosts["h4"]
    with subprocess.Popen(lab_hosts.ssh("h4", "cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE) as session:
        assert session.stdin is not None
        assert session.stdout is not None
        session.stdin.write(b"one\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"one\n"
        host.stop_server()
        assert not can_connect(host, 5)
        session.stdin.write(b"two\n")
        session.stdin.flush()
        assert session.stdout.readline() == b"two\n"
    host.start_server()
    assert can_connect(host, 5)


def test_F4_a_frozen_host_sends_nothing_until_it_is_thawed(lab_hosts: Lab) -> None:
    host = lab_hosts["h1"]
    host.freeze()
    with socket.create_connection((host.address, 22), timeout=5) as connection:
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        host.thaw()
        connection.settimeout(5)
        assert connection.recv(4) == b"SSH-"


def test_F23_a_small_disk_can_be_filled_and_freed(lab_hosts: Lab) -> None:
    host = lab_hosts["h2"]
    host.small_disk(1 << 20)
    host.fill_disk()
    assert ssh(lab_hosts, "h2", "echo text >/var/tmp/file").returncode != 0
    host.free_disk()
    assert stdout_of(lab_hosts, "h2", "echo text >/var/tmp/file; cat /var/tmp/file") == "text"
    host.power_cycle()
    assert stdout_of(lab_hosts, "h2", "cat /var/tmp/file") == "text"
    with pytest.raises(LabError, match="small"):
        lab_hosts["h1"].fill_disk()


def test_a_hidden_tool_is_missing_only_on_that_host(lab_hosts: Lab) -> None:
    lab_hosts["h1"].hide("gcc", "perl")
    for name, found in (("h1", ""), ("h2", "/usr/bin/perl")):
        assert stdout_of(lab_hosts, name, "command -v perl; true") == found
    assert stdout_of(lab_hosts, "h1", "command -v gcc cc; true") == ""
    assert stdout_of(lab_hosts, "h2", "command -v gcc cc") == "/usr/bin/gcc\n/usr/bin/cc"
    lab_hosts["h1"].power_cycle()
    assert stdout_of(lab_hosts, "h1", "command -v perl; true") == ""
    lab_hosts["h1"].reset()
    assert stdout_of(lab_hosts, "h1", "command -v perl") == "/usr/bin/perl"


def test_leftovers_are_found_even_when_the_host_is_off(lab_hosts: Lab) -> None:
    host = lab_hosts["h1"]
    assert host.leftovers() == []
    stdout_of(lab_hosts, "h1", f"mkdir -p {host.workdir}/runs/0a0a0a0a-1.1")
    host.power_off()
    assert host.leftovers() == ["0a0a0a0a-1.1"]


def test_check_quiet_reports_a_process_left_on_a_host(lab_hosts: Lab) -> None:
    stdout_of(lab_hosts, "h1", detached("exec sleep 1002"))
    with pytest.raises(LabError, match="1002"):
        lab_hosts.check_quiet(0.2)
    lab_hosts["h1"].end_processes()


def test_check_quiet_reports_a_server_that_ended_unexpectedly(lab_hosts: Lab) -> None:
    lab_hosts["h1"].run(["sh", "-c", "kill -9 $(pgrep -o sshd)"])
    with pytest.raises(LabError, match="ended unexpectedly"):
        lab_hosts.check_quiet(0.2)
    lab_hosts["h1"].start_server()


def test_orphaned_processes_are_reaped(lab_hosts: Lab) -> None:
    stdout_of(lab_hosts, "h1", "(sh -c 'exit 3' &); setsid true; true")

    def zombies() -> str:
        return lab_hosts["h1"].run(["sh", "-c", "grep -l '^State:.Z' /proc/[0-9]*/status || :"]).stdout

    machine.wait_until(lambda: not zombies(), "no zombie", 5, zombies)


def test_A21_new_host_key_differs_from_the_one_in_known_hosts(lab_hosts: Lab) -> None:
    with Lab(1) as other:
        other["h1"].new_host_key()
        done = ssh(other, "h1", "true")
    assert done.returncode == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in done.stderr


def test_F16_processes_are_listed_with_the_pids_that_the_host_sees(lab_hosts: Lab) -> None:
    process_id = int(stdout_of(lab_hosts, "h1", "sleep 1003 </dev/null >/dev/null 2>&1 & echo $!"))
    wait_for_processes(lab_hosts["h1"], ("sleep", "1003"))
    assert [process.pid for process in lab_hosts["h1"].processes()] == [process_id]
    assert process_id < 1000
    lab_hosts["h1"].end_processes()


def test_A18_the_busybox_host_has_busybox_and_no_sftp(busybox_lab: Lab, busybox_host: LabHost) -> None:
    assert stdout_of(busybox_lab, "b1", "readlink -f /bin/sh") == "/bin/busybox"
    assert stdout_of(busybox_lab, "b1", "command -v bash java gcc python3 perl; true") == ""
    assert stdout_of(busybox_lab, "b1", "cat /proc/loadavg").startswith("0.00")
    batch = ["-b", "-", "-F", str(busybox_lab.ssh_config), "b1"]
    done = subprocess.run(["sftp", *batch], input="pwd\n", capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode != 0
    stdout_of(busybox_lab, "b1", "echo kept >/var/tmp/kept")
    busybox_host.power_cycle()
    assert stdout_of(busybox_lab, "b1", "cat /var/tmp/kept") == "kept"


def test_sftp_works_on_an_openssh_host(lab_hosts: Lab) -> None:
    batch = ["-b", "-", "-F", str(lab_hosts.ssh_config), "h1"]
    done = subprocess.run(["sftp", *batch], input="pwd\n", capture_output=True, text=True, check=False, timeout=20)
    assert "/home/grid" in done.stdout


def test_a_new_lab_removes_what_a_killed_one_left() -> None:
    script = """
from tests.lab.hosts import Lab
with Lab(1) as lab:
    print(lab.directory, lab["h1"].init, flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        directory, init = other.stdout.readline().decode().split()
        other.kill()
    machine.wait_until(lambda: not machine.is_alive(int(init)), "the init of the orphaned host to end")
    # The next lab may get the same number and the same directory: the old files must be gone in any case.
    old_file = Path(directory, "old")
    old_file.touch()
    with Lab(1):
        assert not old_file.exists()


# Run with a private /etc, mounted in a separate mount namespace.
REPLACES_ACCOUNTS = """
import os, subprocess, sys
from pathlib import Path
from tests.lab.hosts import Lab

def login(lab):
    done = subprocess.run(lab.ssh("h1", "id -un; id -gn; echo ~"), capture_output=True, text=True, check=False)
    print(done.stdout.split(), done.stderr[-300:].split(), flush=True)

with Lab(1) as lab:
    login(lab)
    for name, line in (("passwd", "grid:x:1999:1999::/nowhere:/bin/false"), ("group", "grid:x:1999:")):
        old, new = Path("/etc", name), Path("/etc", name + ".new")
        before = old.stat()
        same_number = line.replace("grid", "other").replace("1999", "2001")
        new.write_text(f"{line}\\n{same_number}\\n{old.read_text()}")
        new.chmod(before.st_mode)
        new.rename(old)
        assert old.stat().st_ino != before.st_ino
    login(lab)
    lab["h1"].set_shell("dash")
    login(lab)
    lab["h1"].power_cycle()
    login(lab)
with Lab(1) as lab:
    login(lab)
"""


def test_logins_work_after_the_accounts_of_the_machine_were_replaced(tmp_path: Path) -> None:
    shutil.copytree("/etc", tmp_path / "etc", symlinks=True)
    enter = f'mount --bind "{tmp_path}/etc" /etc && exec "$@"'
    command = ["unshare", "--mount", "sh", "-c", enter, "sh", sys.executable, "-c", REPLACES_ACCOUNTS]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["['grid', 'grid', '/home/grid'] []"] * 5


def test_a_lab_in_the_foreground_takes_commands_on_stdin_and_from_ctl() -> None:
    command = [sys.executable, "-m", "tests.lab", "--hosts", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as held:
        assert held.stdin is not None
        assert held.stdout is not None
        inventory = Path(held.stdout.readline().strip())
        assert list(yaml.safe_load(inventory.read_text())["nodes"]) == ["h1"]
        held.stdin.write("h1 run cat /etc/hostname\n")
        held.stdin.flush()
        assert held.stdout.readline() == "h1\n"
        assert run_ctl(inventory, "h1", "power-off").returncode == 0
        assert run_ctl(inventory, "status").stdout.endswith("off\n")
        wrong = run_ctl(inventory, "h9", "power-off")
        assert (wrong.returncode, wrong.stdout) == (1, "")
        assert "h9" in wrong.stderr
        held.terminate()
        assert held.wait(20) == 0
    assert not inventory.exists()


def run_ctl(inventory: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.lab", "ctl", *words],
        env={**os.environ, "SSHGRID_LAB": str(inventory)},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
