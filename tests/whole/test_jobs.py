"""Jobs over their lifetime: detach and attach, Ctrl-C, signals, the terminal, limits and the environment."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.lab.machine import argv_of
from tests.whole.grid import Grid, find_leftovers, job_pids, killed_at_exit, open_gate, wait_until
from tests.whole.samples import FOREVER, WAIT_FOR_GATE

pytestmark = pytest.mark.lab

# Prints a line, waits for the file of its argument, prints another line and exits with 7.
GATED = f"""import os, sys, time
gate = sys.argv[1]
print("first", flush=True)
{WAIT_FOR_GATE}
print("second", flush=True)
sys.exit(7)
"""


# --- detach and attach ------------------------------------------------------------------------------------------------


def test_a_detached_job_can_be_waited_for_followed_and_removed(grid: Grid, gate: str) -> None:
    grid.write("gated.py", GATED)
    detached = grid("run", "-d", "gated.py", gate)
    assert (detached.code, detached.err) == (0, "")
    job = detached.text.strip()
    assert job.isdigit()
    grid.wait_for_state(job, "RUNNING")
    assert grid("wait", "--timeout", "100ms", job).code == 124
    assert grid("rm", job).code == 1
    assert [line["id"] for line in grid("--json", "ps").json["jobs"]] == [int(job)]
    with grid.start("attach", job) as attached, grid.start("logs", "-f", job) as followed:
        attached.wait_for_stdout(b"first\n")
        followed.wait_for_stdout(b"first\n")
        open_gate(grid.lab, gate)
        assert attached.result() == (7, b"first\nsecond\n", "")
        assert followed.result() == (0, b"first\nsecond\n", "")
    assert grid("wait", job).code == 7
    assert grid("logs", job) == (0, b"first\nsecond\n", "")
    assert grid("logs", "--tail", "1", job).out == b"second\n"
    assert grid("logs", "--stderr", job).out == b""
    assert grid("attach", job) == (7, b"first\nsecond\n", "")
    assert grid("--json", "ps").json["jobs"] == []
    assert grid("rm", job).code == 0
    assert grid("info", job).code == 1


def test_the_check_for_leftovers_finds_a_running_job(grid: Grid) -> None:
    grid.write("forever.py", FOREVER)
    job = grid.detach("forever.py")
    node = grid.wait_for_state(job, "RUNNING")["node"]
    wait_until(lambda: job_pids(grid.lab[node], "forever.py"), "the program to run")
    assert any(f"-{job}.1" in str(found) for found in find_leftovers(grid.lab[node]))
    assert len(find_leftovers(grid.lab[node])) >= 2
    assert grid("kill", job).code == 0
    assert grid("wait", job).code == 143
    assert grid("kill", job).code == 1
    assert grid.info(job)["state"] == "CANCELLED"


@pytest.mark.parametrize(("name", "code"), [("TERM", 143), ("KILL", 137), ("INT", 130)])
def test_kill_sends_a_signal_and_ends_the_job(grid: Grid, name: str, code: int) -> None:
    grid.write("forever.py", FOREVER)
    job = grid.detach("forever.py")
    grid.wait_for_state(job, "RUNNING")
    assert grid("kill", "--signal", name, job).code == 0
    assert grid("wait", job).code == code


def test_kill_with_USR1_sends_the_signal_and_does_not_cancel(grid: Grid) -> None:
    grid.write(
        "listen.py",
        "import signal, sys\nsignal.signal(signal.SIGUSR1, lambda *_: sys.exit(9))\n"
        "print('ready', flush=True)\nwhile True: signal.pause()\n",
    )
    with grid.start("run", "listen.py") as client:
        client.wait_for_stdout(b"ready\n")
        assert grid("kill", "--signal", "USR1", "last").code == 0
        assert client.result().code == 9
    assert grid.last_job()["state"] == "FAILED"


def test_kill_ends_a_program_that_ignores_signals(grid: Grid) -> None:
    grid.write(
        "deaf.py",
        "import signal\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\n"
        "print('deaf', flush=True)\nwhile True: signal.pause()\n",
    )
    with grid.start("run", "deaf.py") as client:
        client.wait_for_stdout(b"deaf\n")
        assert grid("kill", "last").code == 0
        assert client.result(20).code != 0
    assert grid.last_job()["state"] == "CANCELLED"


def test_the_environment_of_a_job_has_its_ids_attempt_and_node(grid: Grid) -> None:
    grid.write(
        "node.py", "import os\nfor n in ('JOB_ID', 'TASK_ID', 'ATTEMPT', 'NODE'): print(os.environ['SSHGRID_' + n])\n"
    )
    done = grid("run", "--on", "h3", "node.py")
    job = grid.last_job()["id"]
    assert done.text.split() == [str(job), str(job), "1", "h3"]


def test_wait_for_several_jobs_exits_with_0_or_1(grid: Grid) -> None:
    grid.write("leave.py", "import sys; sys.exit(int(sys.argv[1]))")
    first = int(grid.detach("leave.py", "0"))
    assert int(grid.detach("leave.py", "0")) == first + 1
    assert grid("wait", f"{first}-{first + 1}").code == 0
    grid.detach("leave.py", "5")
    assert grid("wait", f"{first},{first + 2}").code == 1


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_the_job_and_exits_with_130(grid: Grid) -> None:
    grid.write("forever.py", FOREVER)
    with grid.start("run", "forever.py") as client:
        client.wait_for_stdout(b"begun\n")
        began = time.monotonic()
        client.interrupt()
        assert client.result().code == 130
    assert time.monotonic() - began < 5  # no second signal was needed: Python ends on INT
    job = grid.last_job()
    assert (job["state"], job["exit_status"]) == ("CANCELLED", 130)
    assert not job_pids(grid.lab[job["node"]], "forever.py")


def test_a_second_ctrl_c_detaches_and_prints_the_id(grid: Grid) -> None:
    grid.write(
        "slow.py",
        "import signal\nsignal.signal(signal.SIGINT, lambda *_: print('interrupted', flush=True))\n"
        "print('begun', flush=True)\nwhile True: signal.pause()\n",
    )
    with grid.start("run", "slow.py") as client:
        client.wait_for_stdout(b"begun\n")
        client.interrupt()
        client.wait_for_stdout(b"interrupted\n")
        client.interrupt()
        done = client.result()
    job = grid.last_job()
    assert done.code == 130
    assert f"job {job['id']} continues" in done.err
    assert f"sshgrid attach {job['id']}" in done.err
    grid("kill", "--signal", "KILL", "last")
    assert grid("wait", "last").code == 137


def test_the_job_of_a_killed_client_continues_without_on_disconnect_cancel(grid: Grid, gate: str) -> None:
    grid.write("gated.py", GATED)
    with grid.start("run", "gated.py", gate) as client:
        client.wait_for_stdout(b"first\n")
        client.process.kill()
    with grid.start("run", "--on-disconnect", "cancel", "gated.py", f"{gate}-never") as client:
        client.wait_for_stdout(b"first\n")
        client.process.kill()
    lost = int(grid.last_job()["id"])
    grid.wait_for_state(str(lost), "CANCELLED")
    assert grid.info(lost - 1)["state"] == "RUNNING"
    open_gate(grid.lab, gate)
    assert grid("attach", str(lost - 1)) == (7, b"first\nsecond\n", "")


def test_closing_stdout_cancels_the_run(grid: Grid) -> None:
    grid.write("yes.py", "while True: print('yes', flush=True)")
    client = subprocess.Popen(
        grid.argv("run", "yes.py"),
        cwd=grid.folder,
        env=grid.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    with killed_at_exit(client):
        assert client.stdout is not None
        assert client.stdout.readline() == b"yes\n"
        client.stdout.close()
        assert client.wait(20) == 128 + signal.SIGPIPE
    grid.wait_for_state("last", "CANCELLED")


# --- interactive ------------------------------------------------------------------------------------------------------

TALK = """import sys
print("name?", flush=True)
name = sys.stdin.readline().strip()
print("hello", name, sys.stdin.isatty(), sys.stdout.isatty(), flush=True)
sys.exit(6)
"""


def test_an_interactive_run_reads_input_from_a_pipe_while_it_runs(grid: Grid) -> None:
    grid.write("talk.py", TALK)
    read, write = os.pipe()
    with grid.start("run", "-I", "talk.py", stdin=read) as client:
        os.close(read)
        client.wait_for_stdout(b"name?\n")
        os.write(write, b"world\n")
        client.wait_for_stdout(b"hello world")
        os.close(write)
        assert client.result() == (6, b"name?\nhello world False False\n", "")


class Terminal:
    """A pseudo-terminal in which a command runs."""

    def __init__(self, grid: Grid, *words: str) -> None:
        self.master, slave = pty.openpty()
        termios.tcsetwinsize(slave, (33, 99))
        self.modes = termios.tcgetattr(slave)
        self.seen = b""
        environ = {**grid.environ, "TERM": "xterm"}
        self.process = subprocess.Popen(
            grid.argv(*words), cwd=grid.folder, env=environ, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True,
        )  # fmt: skip
        self._slave = slave

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        os.close(self.master)
        os.close(self._slave)

    def wait_for(self, wanted: bytes, seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while wanted not in self.seen:
            assert time.monotonic() < deadline, f"no {wanted!r} in {self.seen!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.seen += os.read(self.master, 65536)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    @property
    def is_restored(self) -> bool:
        return termios.tcgetattr(self._slave) == self.modes


def test_an_interactive_run_has_a_terminal_of_the_same_size(grid: Grid) -> None:
    grid.write("talk.py", "import os\nprint('size', os.get_terminal_size(1), flush=True)\n" + TALK)
    with Terminal(grid, "run", "-I", "talk.py") as terminal:
        terminal.wait_for(b"name?")
        terminal.type(b"world\r")
        terminal.wait_for(b"hello world True True")
        assert terminal.process.wait(20) == 6
        assert terminal.is_restored
    assert b"columns=99, lines=33" in terminal.seen
    assert b"\x1b" not in terminal.seen


def test_ctrl_c_on_an_interactive_terminal_goes_to_the_program(grid: Grid) -> None:
    grid.write(
        "heed.py",
        "import signal\ntry:\n    print('ready', flush=True)\n    signal.pause()\nexcept KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n    raise SystemExit(11)\n",
    )
    with Terminal(grid, "run", "-I", "heed.py") as terminal:
        terminal.wait_for(b"ready")
        terminal.type(b"\x03")
        terminal.wait_for(b"interrupted")
        assert terminal.process.wait(20) == 11
        assert terminal.is_restored


def test_an_interactive_run_ends_when_its_client_is_killed(grid: Grid) -> None:
    grid.write("forever.py", FOREVER)
    read, write = os.pipe()
    with grid.start("run", "-I", "forever.py", stdin=read) as client:
        os.close(read)
        client.wait_for_stdout(b"begun\n")
        client.process.kill()
    os.close(write)
    wait_until(lambda: grid.last_job()["state"] not in ("RUNNING", "PENDING"), "the job to end", 20, grid.last_job)


def test_a_run_at_a_terminal_prints_the_output_of_the_program(grid: Grid) -> None:
    grid.write("hello.py", "print('hello')")
    with Terminal(grid, "run", "hello.py") as terminal:
        terminal.wait_for(b"hello\r\n")
        assert terminal.process.wait(20) == 0


# --- limits and environment ------------------------------------------------------------------------------------------


def test_exceeding_the_memory_limit_exits_with_137_and_state_OUT_OF_MEMORY(grid: Grid) -> None:
    grid.write(
        "greedy.py",
        "import signal\nkeep = bytearray(300 << 20)\nfor n in range(0, len(keep), 4096): keep[n] = 1\nsignal.pause()\n",
    )
    done = grid("run", "--memory", "100M", "greedy.py")
    assert done.code == 137
    assert grid.last_job()["state"] == "OUT_OF_MEMORY"


def test_A37_an_environment_value_does_not_appear_in_processes_logs_or_listings(grid: Grid) -> None:
    secret = "hunter2-" + os.urandom(8).hex()
    grid.write("print_token.py", "import os, signal\nprint(os.environ['TOKEN'], flush=True)\nsignal.pause()\n")
    environ = {**grid.environ, "TOKEN": secret}
    with (grid.folder / "out").open("wb") as out:
        client = subprocess.Popen(
            grid.argv("run", "--env", "TOKEN", "print_token.py"),
            cwd=grid.folder,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=out,
        )
    with killed_at_exit(client):
        wait_until(lambda: secret.encode() in (grid.folder / "out").read_bytes(), "the program to print the value")
        node = grid.lab[grid.last_job()["node"]]
        assert job_pids(node, "print_token.py")
        assert job_pids(node, secret) == []
        pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        assert not any(secret in word for pid in pids for word in argv_of(pid))
        for words in (["ps", "-a"], ["info", "last"], ["master", "logs"], ["--json", "info", "last"]):
            assert secret not in grid(*words).text
        found = node.run(["grep", "-rl", secret, "/var/tmp", "/tmp"], check=False).stdout.split()
        modes = node.run(["stat", "-c", "%a", *found]).stdout.split() if found else []
        assert set(modes) <= {"600"}
        assert grid("kill", "last").code == 0
        client.wait(20)
    assert secret not in grid.log
    found = node.run(["grep", "-rl", secret, "/var/tmp"], check=False).stdout.split()
    wait_until(
        lambda: not node.run(["grep", "-rl", secret, "/var/tmp"], check=False).stdout, "the value to be removed", 10
    )
