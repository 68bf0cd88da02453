"""The whole program as a user runs it: the command line in processes, its master, and the hosts of the lab.

A Grid has its own SSHGRID_HOME and an inventory of the lab. Its `check` runs after every test: it fails if a job has
left a process or a folder on a host, or if the master has logged a traceback.
"""

from __future__ import annotations

import fcntl
import json
import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tests.lab import machine
from tests.lab.host import INFRASTRUCTURE, LabHost
from tests.lab.hosts import Lab

ROOT = str(Path(__file__).parents[2])
SECONDS = 60.0  # the limit of a command
# The languages of these tests; checks of others would only load the nodes in the background.
LANGUAGES = ["c", "cpp", "java", "python", "sh", "bash", "make", "executable"]

T = TypeVar("T")


class CommandResult(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class RunningCommand:
    """A command that runs; as a context manager it is killed at the end of the block."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out, self._err = out, err

    def __enter__(self) -> RunningCommand:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)

    @property
    def out(self) -> bytes:
        return self._out.read_bytes()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait_for_stdout(self, wanted: bytes, seconds: float = 20.0) -> None:
        wait_until(lambda: wanted in self.out, f"{wanted!r} on stdout", seconds, lambda: (self.out[-500:], self.err))

    def wait_for_stderr(self, wanted: str, seconds: float = 20.0) -> None:
        wait_until(lambda: wanted in self.err, f"{wanted!r} on stderr", seconds, lambda: (self.out[-500:], self.err))

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def result(self, seconds: float = SECONDS) -> CommandResult:
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {seconds:g} s: {self.out[-500:]!r} {self.err}") from None
        return CommandResult(code, self.out, self.err)


class Commands:
    """The command line with its own home and one master, which the first command starts."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.home.mkdir(mode=0o700)
        self.folder = folder  # where commands run; each test has its own
        self.inventory = self.home / "inventory.yaml"
        self._commands = 0

    @property
    def environ(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SSHGRID_")}
        return {**kept, "SSHGRID_HOME": str(self.home), "HOME": str(self.home), "PYTHONPATH": ROOT}

    # --- commands

    def __call__(
        self, *words: str | bytes, stdin: bytes | int | None = None, env: Mapping[str, str] | None = None
    ) -> CommandResult:
        """Run a command to its end. `stdin`: bytes through a pipe, or a descriptor; without it /dev/null."""
        source: Any = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin or subprocess.DEVNULL}
        done = subprocess.run(
            self.argv(*words),
            **source,
            capture_output=True,
            cwd=self.folder,
            env={**self.environ, **(env or {})},
            timeout=SECONDS,
            check=False,
        )
        return CommandResult(done.returncode, done.stdout, done.stderr.decode(errors="backslashreplace"))

    def argv(self, *words: str | bytes) -> list[str | bytes]:
        return [sys.executable, "-m", "sshgrid", *words]

    def start(self, *words: str | bytes, stdin: int = subprocess.DEVNULL) -> RunningCommand:
        """Start a command; its output goes to files."""
        self._commands += 1
        out, err = self.folder / f".{self._commands}.out", self.folder / f".{self._commands}.err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                self.argv(*words), stdin=stdin, stdout=out_file, stderr=err_file, cwd=self.folder, env=self.environ
            )
        return RunningCommand(process, out, err)

    def write(self, name: str, text: str | bytes) -> Path:
        """Write a file into the folder where commands run."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def detach(self, *words: str | bytes) -> str:
        """`run -d`; returns the ID of the job."""
        done = self("run", "-d", *words)
        assert done.code == 0, done
        return done.text.strip()

    # --- jobs and nodes

    def info(self, job: str | int) -> dict[str, Any]:
        done = self("--json", "info", str(job))
        assert done.code == 0, done
        return dict(done.json)

    def last_job(self) -> dict[str, Any]:
        return self.info("last")

    def wait_for_state(self, job: str, state: str, seconds: float = 20.0) -> dict[str, Any]:
        return wait_for_value(
            lambda: self.info(job), lambda found: found["state"] == state, f"job {job} to be {state}", seconds
        )

    def nodes(self) -> dict[str, Any]:
        return {node["name"]: node for node in self("--json", "nodes").json["nodes"]}

    def wait_until_up(self, *names: str, seconds: float = 30.0) -> None:
        """Wait until these nodes (all, if none is named) are up and have a load sample."""
        self("node", "check", *([",".join(names)] if names else []))
        wait_for_value(
            self.nodes,
            lambda found: set(names) <= set(found) and all(found[name]["load"] is not None for name in names or found),
            f"{names or 'all nodes'} to be up",
            seconds,
        )

    def wait_for_toolchain(self, language: str, *names: str, seconds: float = 60.0) -> None:
        """Wait until the toolchain check of this language has passed on these nodes (all, if none is named)."""
        wait_for_value(
            self.nodes,
            lambda found: all(language in found[name]["toolchains"] for name in names or found),
            f"{language} on {names or 'all nodes'}",
            seconds,
        )

    # --- the master

    @property
    def state_dir(self) -> Path:
        return next((self.home / "state").iterdir())

    @property
    def log(self) -> str:
        logs = list(self.home.glob("state/*/master.log"))
        return logs[0].read_text(errors="replace") if logs else ""

    def master_pid(self) -> int:
        return int(self("--json", "master", "status").json["pid"])

    def kill_master(self) -> int:
        """Kill the master and wait until it has ended; returns its pid."""
        pid = self.master_pid()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not machine.is_alive(pid), "the master to end")
        return pid

    def stop(self) -> None:
        """Stop the master and wait until it has released its lock: it removes its socket before it closes the queue."""
        self("master", "stop")
        lock = self.state_dir / "master.lock"
        wait_until(lambda: not lock.exists() or _is_free(lock), "the master to end")


def _is_free(lock: Path) -> bool:
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class LocalGrid(Commands):
    """A grid whose only node is this machine."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.workdir = folder / "work"
        node = {"connection": "local", "workdir": str(self.workdir), "toolchains": LANGUAGES}
        self.inventory.write_text(f"version: 1\nnodes:\n  here: {json.dumps(node)}\n")


class Grid(Commands):
    """A grid with the hosts of a lab as nodes."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        super().__init__(folder)
        self.lab = lab
        self.write_inventory()
        self._log_read = 0

    def write_inventory(
        self,
        extra: str = "",
        *,
        hosts: Sequence[str] | None = None,
        fields: Mapping[str, Mapping[str, object]] | None = None,
    ) -> None:
        text = f"defaults: {{toolchains: {json.dumps(LANGUAGES)}}}\n{extra}"
        self.inventory.write_text(self.lab.inventory_yaml(text, hosts=hosts, fields=fields))

    def take_down(self, host: LabHost) -> None:
        """Stop the SSH server and the sessions of a host, and wait until the master shows it as DOWN."""
        host.stop_server()
        host.reset_sessions()
        wait_for_value(self.nodes, lambda nodes: nodes[host.name]["state"] == "DOWN", f"{host.name} to be down")

    # --- after a test

    def check(self, seconds: float = 30.0, *, with_checks: bool = False) -> None:
        """Fail if a job (`with_checks`: or a toolchain check) has left something, or if the log has a traceback."""
        log = self.log
        new, self._log_read = log[self._log_read :], len(log)
        assert "Traceback" not in new, new
        for host in self.lab:
            if host.is_on:
                wait_for_value(
                    partial(find_leftovers, host, with_checks), operator.not_, f"nothing on {host.name}", seconds
                )

    def kill_jobs(self) -> None:
        """Kill all jobs, so that those of a failed test do not affect the next one."""
        self("kill", "all", "--signal", "KILL")


# --- processes of a host ----------------------------------------------------------------------------------------------


@contextmanager
def killed_at_exit(client: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill a client that a failed assertion leaves behind; `with client` alone would wait for its end."""
    with client:
        try:
            yield
        finally:
            client.kill()


def find_leftovers(host: LabHost, with_checks: bool = False) -> list[object]:
    """Run folders and processes of jobs, `with_checks` also those of toolchain checks, which belong to no job."""
    found: list[object] = [name for name in host.leftovers() if with_checks or "-0." not in name]
    below = set(machine.descendants(host.init))
    servers = {pid for pid in below if machine.program_of(pid) in INFRASTRUCTURE}
    sessions = servers.union(*(machine.descendants(pid) for pid in servers))
    for pid in below:
        run = run_name_of(pid)
        if (with_checks or "-0." not in run) and (run or pid not in sessions) and machine.program_of(pid):
            found.append((machine.inner_pid(pid), machine.argv_of(pid), run))
    return found


def run_name_of(pid: int) -> str:
    """The name of the run that a process belongs to; `""` if its environment has none."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return ""
    return next((os.fsdecode(word[len(b"SSHGRID_RUN=") :]) for word in words if word.startswith(b"SSHGRID_RUN=")), "")


def job_pids(host: LabHost, word: str) -> list[int]:
    """Pids of the processes of a host whose command line contains this word."""
    return [pid for pid in machine.descendants(host.init) if any(word in each for each in machine.argv_of(pid))]


def open_gate(lab: Lab, gate: str) -> None:
    """Create the file for which programs wait, on all hosts that are on."""
    for host in lab:
        if host.is_on:
            host.run(["touch", gate])


# --- waiting ----------------------------------------------------------------------------------------------------------


def wait_until(holds: Callable[[], object], what: str, seconds: float = 20.0, seen: Callable[[], object] = str) -> None:
    """Return as soon as `holds()` is true. Fails after the deadline, with what was expected and what was seen."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what}; saw {seen()}"
        time.sleep(0.02)


def wait_for_value(value: Callable[[], T], good: Callable[[T], bool], what: str, seconds: float = 20.0) -> T:
    """Wait for a value that is `good`, and return it."""
    seen: list[T] = []

    def holds() -> bool:
        seen[:] = [value()]
        return good(seen[0])

    wait_until(holds, what, seconds, lambda: seen[0])
    return seen[0]
