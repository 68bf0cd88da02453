"""Injects the faults of a plan into the hosts, the master and the clients at their times, and records them.

Each host has its own thread, so that a slow boot does not delay a fault of another host. `end` restores all hosts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.clients import Clients
from tests.chaos.grid import Grid
from tests.chaos.plan import Fault, Plan
from tests.lab.host import LabHost

LOST_PERCENT = 33


@dataclass
class FaultRecord:
    """An injected fault. `seconds` is its duration; for a killed master the time until the next one listened."""

    kind: str
    host: str
    at: float
    seconds: float


class FaultInjector:
    """The faults of one run. `done` has their records."""

    def __init__(self, plan: Plan, grid: Grid, clients: Clients) -> None:
        self.done: list[FaultRecord] = []
        self.errors: list[str] = []  # of the lab, not of sshgrid
        self._plan = plan
        self._grid = grid
        self._clients = clients
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []

    def begin(self, since: float) -> None:
        for host in ("", *self._grid.lab.hosts):
            faults = [fault for fault in self._plan.faults if fault.host == host]
            thread = threading.Thread(target=self._all, args=(faults, since), daemon=True)
            thread.start()
            self._threads.append(thread)

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()

    def end(self) -> None:
        """Inject no further fault, and restore all hosts."""
        self._ended.set()
        self.wait()
        for host in self._grid.lab:
            host.power_on()
            host.heal()
            host.start_server()
            host.free_disk()

    def _all(self, faults: list[Fault], since: float) -> None:
        for fault in faults:
            if self._ended.wait(max(0.0, since + fault.at - time.monotonic())):
                return
            record = FaultRecord(fault.kind, fault.host, time.time(), 0.0)
            try:
                self._one(fault)
            except Exception as error:  # noqa: BLE001 - it is reported as a finding
                self.errors.append(f"{fault}: {type(error).__name__}: {error}")
            record.seconds = time.time() - record.at
            self.done.append(record)

    def _one(self, fault: Fault) -> None:
        match fault.kind:
            case "kill-master":
                self._kill_master()
            case "kill-client":
                self._clients.kill_one()
            case _:
                begin, end = _pair(fault.kind, self._grid.lab[fault.host])
                begin()
                try:
                    self._ended.wait(fault.seconds)
                finally:
                    end()

    def _kill_master(self) -> None:
        """Kill the master, and wait until this method or a client has started the next one."""
        killed = self._grid.kill_master()
        done = self._grid("master", "start")
        if done.returncode != 0:
            self.errors.append(f"no new master after {killed}: {done.stderr.decode(errors='replace')}")


def _pair(kind: str, host: LabHost) -> tuple[Callable[[], None], Callable[[], None]]:
    """The functions that begin and end a fault of a host."""
    match kind:
        case "cut" | "long-cut":
            return host.cut, host.heal
        case "reset-sessions":
            return host.reset_sessions, lambda: None
        case "refuse":
            return host.reset_connections, host.heal
        case "lose":
            return lambda: host.lose(LOST_PERCENT), host.heal
        case "stop-server":
            return host.stop_server, host.start_server
        case "power" | "long-power":
            return host.power_off, host.power_on
        case "full-disk":
            return host.fill_disk, host.free_disk
        case _:
            raise ValueError(kind)
