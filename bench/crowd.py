"""What many connected hosts cost the master: 200 nodes, each with its own connection and a load sample a second.

The nodes are 200 names for the four sshd of the lab, each with a working folder of its own; their processes are not the
master's and do not count. Refuses the figure when a node was not up, or its last sample was old.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from bench.installed import Failed, Grid
from bench.table import Row, say, spread
from tests.lab.hosts import Lab

NODES = 200
WINDOW_SECONDS = 20.0
WINDOWS = 3
MOST_OF_A_CORE = 0.10
OLD_SECONDS = 3.0


def rows(lab: Lab, command: Path, home: Path) -> Iterator[Row]:
    with Grid(command, home, _inventory(lab)) as grid:
        grid.seconds("master", "start")
        say(f"waiting until {NODES} nodes are up and have proved sh")
        grid.wait_for_toolchains({"sh"}, deadline_seconds=900)
        pid = grid.json("master", "status")["pid"]
        shares = [_share(grid, pid) for _ in range(WINDOWS)]
        figure = statistics.median(shares)
        yield Row(
            f"master with {NODES} nodes, a sample a second each: share of a core",
            f"{figure:.1%}",
            f"{min(shares):.1%}..{max(shares):.1%}",
            f"< {MOST_OF_A_CORE:.0%}",
            figure < MOST_OF_A_CORE,
            f"{WINDOWS} x {WINDOW_SECONDS:.0f} s of /proc/PID/stat",
        )
        yield Row("the same: memory of the master", f"{memory_mib(pid):.0f} MiB", "", note="VmRSS")
        runs = [grid.seconds("run", str(_program(home)), expected=b"hello\n") * 1000 for _ in range(10)]
        yield Row(
            "the same: a warm run of a sh program",
            f"{statistics.median(runs):.0f} ms",
            spread(runs, 0),
            note=f"{len(runs)} runs, on nodes that did not have it",
        )


def _inventory(lab: Lab) -> str:
    hosts = list(lab)
    lines = ["version: 1", "nodes:"]
    for number in range(NODES):
        host = hosts[number % len(hosts)]
        node = {
            "host": host.address,
            "user": "grid",
            "identity_file": str(lab.identity_file),
            "known_hosts": str(lab.known_hosts),
            "toolchains": ["sh"],
            "workdir": f"/var/tmp/crowd/n{number:03d}",
        }
        lines.append(f"  n{number:03d}: {json.dumps(node)}")
    return "\n".join((*lines, ""))


def _program(home: Path) -> Path:
    path = home / "hello.sh"
    path.write_text("echo hello\n")
    return path


def _share(grid: Grid, pid: int) -> float:
    _check_all_up(grid)
    before, start = _cpu_seconds(pid), time.monotonic()
    time.sleep(WINDOW_SECONDS)
    used, lasted = _cpu_seconds(pid) - before, time.monotonic() - start
    _check_all_up(grid)
    return used / lasted


def _check_all_up(grid: Grid) -> None:
    now = time.time()
    for node in grid.json("nodes")["nodes"]:
        seen = datetime.fromisoformat(node["last_seen"]).replace(tzinfo=UTC).timestamp() if node["last_seen"] else 0.0
        if node["state"] == "DOWN" or now - seen > OLD_SECONDS:
            raise Failed(f"node {node['name']} is {node['state']}, last seen {now - seen:.1f} s ago: {node['reason']}")


def _cpu_seconds(pid: int) -> float:
    """User and system time of the process with all its threads: proc_pid_stat(5)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int, which: str = "VmRSS") -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{which}:")).split()[1]) / 1024
