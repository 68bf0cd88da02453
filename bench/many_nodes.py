"""Measures the load of the master with many nodes, each with a connection and one load sample per second.

200 nodes are names of the four lab hosts, each with its own working folder; 1,000 nodes are simulated by one process.
The processor time of the hosts does not count. The measurement fails when a node is not up or its last sample is old.
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
from bench.simulated_hosts import USER, simulated_hosts
from bench.table import Row, say, spread
from tests.lab.hosts import Lab

NODES = 200
MOST_OF_A_CORE = 0.10
MANY_NODES = 1000
MOST_OF_A_CORE_FOR_MANY = 0.40
MOST_MIB_FOR_MANY = 200
MOST_SECONDS_OF_NODES = 0.5
WINDOW_SECONDS = 20.0
WINDOWS = 3
RUNS = 10
OLD_SECONDS = 3.0
CONNECTED_SECONDS = 120.0


def rows(lab: Lab, command: Path, home: Path) -> Iterator[Row]:
    """The rows for 200 nodes with real sshd."""
    with Grid(command, home, _inventory(_aliases(lab))) as grid:
        grid.seconds("master", "start")
        say(f"waiting until {NODES} nodes are up and their toolchain sh is tested")
        grid.wait_for_toolchains({"sh"}, deadline_seconds=900)
        pid = grid.json("master", "status")["pid"]
        yield _share_row(grid, pid, NODES, MOST_OF_A_CORE)
        yield _memory_row(pid)
        yield _run_row(grid, home, "on nodes without the file")


def rows_of_1000(lab: Lab, command: Path, home: Path) -> Iterator[Row]:
    """The rows for 1,000 simulated nodes, with the lab hosts for the runs."""
    home.mkdir()
    with simulated_hosts(home / "simulated") as port:
        nodes = {**_simulated(home / "simulated", port), **_lab_nodes(lab)}
        with Grid(command, home / "grid", _inventory(nodes)) as grid:
            yield _connect_row(grid)
            pid = grid.json("master", "status")["pid"]
            yield _share_row(grid, pid, MANY_NODES, MOST_OF_A_CORE_FOR_MANY)
            memory = memory_mib(pid)
            met = memory < MOST_MIB_FOR_MANY
            yield Row(
                "the same: memory of the master", f"{memory:.0f} MiB", "", f"< {MOST_MIB_FOR_MANY} MiB", met, "VmRSS"
            )
            yield _nodes_row(grid)
            yield _run_row(grid, home, f"on {len(lab.hosts)} real hosts")


# --- rows


def _share_row(grid: Grid, pid: int, nodes: int, at_most: float) -> Row:
    shares = [_share(grid, pid) for _ in range(WINDOWS)]
    figure = statistics.median(shares)
    return Row(
        f"master with {nodes:,} nodes, one sample per second each: share of a core",
        f"{figure:.1%}",
        f"{min(shares):.1%}..{max(shares):.1%}",
        f"< {at_most:.0%}",
        figure < at_most,
        f"{WINDOWS} x {WINDOW_SECONDS:.0f} s of /proc/PID/stat",
    )


def _memory_row(pid: int, at_most: float | None = None) -> Row:
    figure = memory_mib(pid)
    what, met = "the same: memory of the master", None if at_most is None else figure < at_most
    return Row(what, f"{figure:.0f} MiB", "", "" if at_most is None else f"< {at_most:.0f} MiB", met, "VmRSS")


def _connect_row(grid: Grid) -> Row:
    begin = time.monotonic()
    grid.seconds("master", "start")
    say(f"waiting until {MANY_NODES} nodes are up")
    while down := [node for node in grid.json("nodes")["nodes"] if node["cpu"] is None]:
        if time.monotonic() - begin > CONNECTED_SECONDS:
            raise Failed(f"{len(down)} nodes are not up, the first is {down[0]}")
        time.sleep(0.2)
    taken = time.monotonic() - begin
    what = f"no master, until {MANY_NODES:,} nodes are connected and sampled"
    return Row(what, f"{taken:.1f} s", "", note="the hosts use the same processors")


def _nodes_row(grid: Grid) -> Row:
    taken = [grid.seconds("nodes") for _ in range(RUNS)]
    figure = statistics.median(taken)
    return Row(
        "the same: sshgrid nodes",
        f"{figure * 1000:.0f} ms",
        spread([1000 * each for each in taken], 0),
        f"< {MOST_SECONDS_OF_NODES * 1000:.0f} ms",
        figure < MOST_SECONDS_OF_NODES,
        f"{RUNS} times",
    )


def _run_row(grid: Grid, home: Path, where: str) -> Row:
    program = home / "hello.sh"
    program.write_text("echo hello\n")
    runs = [grid.seconds("run", str(program), expected=b"hello\n") * 1000 for _ in range(RUNS)]
    figure = f"{statistics.median(runs):.0f} ms"
    return Row("the same: a warm run of a sh program", figure, spread(runs, 0), note=f"{len(runs)} runs, {where}")


# --- nodes


def _inventory(nodes: dict[str, dict[str, object]]) -> str:
    return "\n".join(("version: 1", "nodes:", *(f"  {name}: {json.dumps(node)}" for name, node in nodes.items()), ""))


def _aliases(lab: Lab) -> dict[str, dict[str, object]]:
    hosts = list(lab)
    return {
        f"n{number:03d}": {
            "host": hosts[number % len(hosts)].address,
            "workdir": f"/var/tmp/crowd/n{number:03d}",
            **_login(lab),
        }
        for number in range(NODES)
    }


def _lab_nodes(lab: Lab) -> dict[str, dict[str, object]]:
    return {host.name: {"host": host.address, **_login(lab)} for host in lab}


def _login(lab: Lab) -> dict[str, object]:
    return {
        "user": "grid",
        "identity_file": str(lab.identity_file),
        "known_hosts": str(lab.known_hosts),
        "toolchains": ["sh"],
    }


def _simulated(folder: Path, port: int) -> dict[str, dict[str, object]]:
    """Nodes with different addresses, because the master limits the connections that it opens to one address."""
    return {
        f"p{number:04d}": {
            "host": f"127.1.{number // 250}.{number % 250 + 1}",
            "port": port,
            "user": USER,
            "identity_file": str(folder / "id_ed25519"),
            "known_hosts": str(folder / "known_hosts"),
            "toolchains": [],
        }
        for number in range(MANY_NODES)
    }


# --- measuring


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
