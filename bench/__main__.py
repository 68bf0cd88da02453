"""`python -m bench`: measures sshgrid on a lab of real SSH hosts. Needs root.

Installs sshgrid as a user does, compares it with ssh and with other tools, and prints a table of ratios. The exit
status is 1 when a target is missed. `--only PART` measures one part; `--sshgrid PATH` measures another installation.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from bench import backlog, batch, many_nodes, monitor, single, sweeps
from bench.gateway import GatewayBench
from bench.installed import ROOT, Failed, install
from bench.single import Bench
from bench.table import Row, say, text
from tests.lab import machine
from tests.lab.hosts import Lab

HOSTS = 4
PARTS = (*single.PARTS, "batch", "gateway", "monitor", "200-nodes", "1000-nodes", *sweeps.PARTS, "backlog")


def main() -> int:
    arguments = _arguments()
    if reason := machine.missing():
        say(f"error: {reason}")
        return 1
    sys.stdout.write(_machine())
    found = []
    with tempfile.TemporaryDirectory(prefix="sshgrid-bench-") as folder, Lab(HOSTS) as lab:
        home = Path(folder)
        command = arguments.sshgrid or install(home / "installed")
        try:
            for row in _rows(lab, command, home, arguments):
                say(text([row]).splitlines()[1])
                found.append(row)
        except Failed as error:
            say(f"error: {error}")
            found.append(Row("all other parts", "FAILED", "", met=False, note=str(error)[:80]))
    sys.stdout.write(text(found))
    return 0 if all(row.met is not False for row in found) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--repeats", type=int, default=20, help="pairs for each ratio (20)")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this part")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each comparison with other tools (3)")
    parser.add_argument("--short", action="store_true", help="a short test: few runs and one round of each comparison")
    parser.add_argument("--sshgrid", type=Path, help="an installed sshgrid to measure, instead of this tree")
    return parser.parse_args()


def _rows(lab: Lab, command: Path, home: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    wanted = arguments.only or PARTS
    if set(wanted) & set(single.PARTS):
        yield from Bench(lab, command, home / "single", arguments.repeats).rows(wanted)
    if "batch" in wanted:
        yield from batch.rows(lab, home / "batch")
    if "monitor" in wanted:
        yield from monitor.rows(command, home / "monitor")
    if "gateway" in wanted:
        yield from GatewayBench(lab, command, home / "gateway", arguments.repeats).rows()
    if "200-nodes" in wanted:
        yield from many_nodes.rows(lab, command, home / "200-nodes")
    if "1000-nodes" in wanted:
        yield from many_nodes.rows_of_1000(lab, command, home / "1000-nodes")
    yield from _comparisons(wanted, lab, command, home, arguments)


def _comparisons(
    wanted: Collection[str], lab: Lab, command: Path, home: Path, arguments: argparse.Namespace
) -> Iterator[Row]:
    rounds = 1 if arguments.short else arguments.rounds
    for contest in sweeps.CONTESTS:
        if contest.part in wanted:
            yield from sweeps.rows(lab, command, home / contest.part, contest, rounds, short=arguments.short)
    if "backlog" in wanted:
        yield from backlog.rows(lab, command, home / "backlog", rounds, short=arguments.short)


def _machine() -> str:
    """The facts about this machine, printed above the table."""
    facts = (
        ("date", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())),
        ("commit", _output_of("git", "-C", str(ROOT), "describe", "--always", "--dirty")),
        ("processor", f"{os.cpu_count()} x {_processor()}"),
        ("system", f"{_release()}, Linux {platform.release()}"),
        ("python", platform.python_version()),
        ("ssh", _output_of("ssh", "-V").partition(",")[0]),
        ("load before", " ".join(f"{load:.2f}" for load in os.getloadavg())),
    )
    return "".join(f"{name:<12} {value}\n" for name, value in facts) + "\n"


def _output_of(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return (done.stdout or done.stderr).strip() or "unknown"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _release() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


if __name__ == "__main__":
    sys.exit(main())
