"""What the lab needs of the machine that it runs on: commands, the process table, waiting with a deadline.

All functions see the hosts from outside, as root of the machine. A failed command raises LabError with its stderr.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
TOOLS = ("ip", "sshd", "ssh", "ssh-keygen", "unshare", "nsenter", "bash", "mount", "pivot_root", "nft")


class LabError(Exception):
    """An operation of the lab failed, or a process, mount or namespace was left behind."""


class Process(NamedTuple):
    """A process of a host; `pid` is the number that the host sees."""

    pid: int
    argv: tuple[str, ...]


def call(*argv: str, stdin: str = "") -> str:
    """Run a command on the machine and return its stdout. LabError with its stderr when it fails."""
    done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, env=environment())
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout


def environment() -> dict[str, str]:
    """The environment of a freshly booted machine, without the variables of the developer's shell."""
    return {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"}


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 10.0, seen: Callable[[], object] = str) -> None:
    """Return as soon as `holds()` is true. LabError after the deadline, with what was expected and what was `seen`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise LabError(f"waited {seconds:g} s for {what}; saw {seen() or 'nothing'}")
        time.sleep(0.01)


def missing(*more_tools: str) -> str:
    """The reason why no lab can run here, `""` if one can. Tries to create the namespaces."""
    if os.geteuid() != 0:
        return "the lab needs root"
    absent = [tool for tool in (*TOOLS, *more_tools) if not shutil.which(tool, path=SYSTEM_PATH)]
    if absent:
        return f"the lab needs {', '.join(absent)} (scripts/setup-test-host.sh installs what is missing)"
    try:
        call("unshare", "--net", "--mount", "--pid", "--fork", "--uts", "--ipc", "true")
    except LabError as error:
        return f"the lab needs namespaces: {error}"
    return ""


def has_time_namespaces() -> bool:
    """Whether a host can have its own uptime."""
    try:
        call("unshare", "--time", "--boottime", "1", "--fork", "true")
    except LabError:
        return False
    return True


def uptime() -> float:
    """Seconds since the machine was booted."""
    return float(Path("/proc/uptime").read_text().split()[0])


def start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of the process, which identify it with its pid. None when it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])


def descendants(root: int) -> list[int]:
    """Pids (as the machine sees them) of all descendants of `root` except zombies."""
    children: dict[int, list[int]] = {}
    for pid, parent, state in _process_table():
        if state != "Z":
            children.setdefault(parent, []).append(pid)
    found: list[int] = []
    waiting = [root]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def in_network(namespace: Path) -> list[int]:
    """Pids of all processes in a named network namespace, whatever their parent."""
    wanted = namespace.stat().st_ino
    return [pid for pid, _, state in _process_table() if state != "Z" and _network_of(pid) == wanted]


def _network_of(pid: int) -> int:
    try:
        return Path(f"/proc/{pid}/ns/net").stat().st_ino
    except OSError:
        return 0


def _process_table() -> Iterable[tuple[int, int, str]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            yield int(entry.name), int(fields[1]), fields[0]


def state_of(pid: int) -> str:
    """The state as one letter, as ps(1) shows it; `""` when the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    return state_of(pid) not in ("", "Z")


def inner_pid(pid: int) -> int:
    """The pid in the next inner PID namespace, which the host sees. 0 when the process has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    numbers = next(line for line in lines if line.startswith("NSpid:")).split()[1:]
    return int(numbers[1]) if len(numbers) > 1 else 0


def argv_of(pid: int) -> tuple[str, ...]:
    try:
        return tuple(os.fsdecode(word) for word in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:-1])
    except OSError:
        return ()


def program_of(pid: int) -> str:
    """File name of the program that a process runs; `""` when it has ended."""
    try:
        return Path(f"/proc/{pid}/exe").readlink().name
    except OSError:
        return ""


def signal_all(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
