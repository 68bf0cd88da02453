"""The load that a host shows: its /proc/loadavg and /proc/stat, updated by one thread for the whole lab.

The files are bind-mounted into the host, so they are rewritten in place and never replaced. The counters of /proc/stat
only grow, as those of the kernel do, for the number of CPUs of the machine; its real load is not shown.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path

TICKS_PER_SECOND = 100
CPUS = sum(line.startswith("cpu") for line in Path("/proc/stat").read_text().splitlines()) - 1


class Load:
    """The load that one host reports; idle until `set` is called."""

    def __init__(self, directory: Path) -> None:
        self._loadavg = directory / "loadavg"
        self._stat = directory / "stat"
        self._lock = threading.Lock()
        self._busy = [1000.0] * CPUS
        self._idle = [100_000.0] * CPUS
        self._at = time.monotonic()
        self._load1 = 0.0
        self._busy_cores = 0.0
        self.set(0.0, 0.0)

    def set(self, load1: float, busy_cores: float) -> None:
        """Report this load average and this number of busy cores, from the first core on."""
        with self._lock:
            self._advance()
            self._load1, self._busy_cores = load1, busy_cores
            self._write()

    def tick(self) -> None:
        with self._lock:
            self._advance()
            self._write()

    def _advance(self) -> None:
        now = time.monotonic()
        ticks = (now - self._at) * TICKS_PER_SECOND
        self._at = now
        for cpu in range(CPUS):
            share = min(max(self._busy_cores - cpu, 0.0), 1.0)
            self._busy[cpu] += ticks * share
            self._idle[cpu] += ticks * (1 - share)

    def _write(self) -> None:
        load = f"{self._load1:.2f}"
        _overwrite(self._loadavg, f"{load} {load} {load} 1/100 1000\n")
        _overwrite(self._stat, self._stat_text())

    def _stat_text(self) -> str:
        rows = [("cpu ", sum(self._busy), sum(self._idle))]
        rows += [(f"cpu{cpu}", self._busy[cpu], self._idle[cpu]) for cpu in range(CPUS)]
        lines = [f"{name} {int(busy)} 0 0 {int(idle)} 0 0 0 0 0 0" for name, busy, idle in rows]
        running = max(1, round(self._busy_cores))
        tail = ("intr 0", "ctxt 0", f"btime {_boot_time()}", "processes 1000", f"procs_running {running}")
        return "\n".join((*lines, *tail, "procs_blocked 0", ""))


class Ticker:
    """The thread that updates the loads of the hosts; a context manager."""

    def __init__(self, loads: Iterable[Load], seconds: float = 0.5) -> None:
        self._loads = tuple(loads)
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lab ticker", daemon=True)

    def __enter__(self) -> Ticker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            for load in self._loads:
                load.tick()


def _overwrite(path: Path, text: str) -> None:
    # Write first, then truncate: a reader in between sees the new lines, never an empty file.
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.fchmod(handle, 0o644)
        size = os.pwrite(handle, text.encode(), 0)
        os.ftruncate(handle, size)
    finally:
        os.close(handle)


def _boot_time() -> int:
    return int(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME))
