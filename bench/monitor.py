"""Measures the processor time of the monitor with 50 nodes and 500 jobs whose values change with every reply.

The master is a fake one, so that only the monitor is measured; the terminal is tmux. The measurement fails when the
monitor does not redraw.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from bench.installed import Failed
from bench.table import Row
from sshgrid import paths
from sshgrid.protocol import messages
from tests.service.fake_master import FakeMaster, job_line, node_line
from tests.whole.tmux import Tmux

NODES, JOBS = 50, 500
WINDOW_SECONDS = 20.0
SIZES = ((80, 24), (200, 50))
MOST_OF_A_CORE = 0.02


def rows(command: Path, home: Path) -> Iterator[Row]:
    home.mkdir(mode=0o700)
    (home / "inventory.yaml").write_text("version: 1\nnodes: {n: {host: 127.0.0.1}}\n")
    environ = {**os.environ, "SSHGRID_HOME": str(home), "HOME": str(home)}
    with FakeMaster(paths.places(None, environ, str(home), str(home))) as master:
        master.scripts[messages.Nodes] = lambda _: [messages.NodesReply(tuple(_nodes()))]
        master.scripts[messages.Jobs] = lambda _: [messages.JobsReply(tuple(_jobs()))]
        master.reply(
            messages.Clients, messages.ClientsReply((messages.ClientLine("ann", "local", time.time(), 9, 5, 1),))
        )
        for columns, lines in SIZES:
            folder = home / f"{columns}x{lines}"
            folder.mkdir()
            with Tmux(folder, [str(command), "monitor"], environ, columns, lines) as tmux:
                share = _share(tmux, master)
            yield Row(
                f"monitor of {NODES} nodes at {columns}x{lines}: share of a core",
                f"{share:.2%}",
                "",
                f"<= {MOST_OF_A_CORE:.0%}",
                share <= MOST_OF_A_CORE,
                f"{WINDOW_SECONDS:.0f} s of processor time, all values change every 2 s",
            )


def _share(tmux: Tmux, master: FakeMaster) -> float:
    tmux.see(f"{NODES} of {NODES} up")
    process, replies = psutil.Process(tmux.pid), len(master.received(messages.Clients))
    before, begin = sum(process.cpu_times()[:2]), time.monotonic()
    time.sleep(WINDOW_SECONDS)
    used, seconds = sum(process.cpu_times()[:2]) - before, time.monotonic() - begin
    if len(master.received(messages.Clients)) - replies < WINDOW_SECONDS / 4:
        raise Failed("the monitor did not refresh")
    return used / seconds


def _nodes() -> Iterator[messages.NodeLine]:
    for number in range(NODES):
        minute = tuple(random.randrange(101) for _ in range(60))
        yield node_line(f"n{number:02}", cpu=random.random(), load=8 * random.random(), cpu_minute=minute)


def _jobs() -> Iterator[messages.JobLine]:
    for number in range(JOBS):
        yield job_line(number, state="RUNNING", phase="running", exit_code=None, seconds=1000 * random.random())
