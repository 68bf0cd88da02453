"""The lab: several real SSH hosts on one machine, with keys, known host keys and a ready inventory.

All files are in one directory that only root can enter. Leaving the lab raises LabError when a process, a namespace or
a mount of it is left. A new lab removes what killed labs left, and does not touch labs that run.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from tests.lab.disk import ACCOUNT, BusyboxDirectory, HostDirectory, copy_etc
from tests.lab.host import BusyboxHost, LabHost
from tests.lab.load import Ticker
from tests.lab.machine import LabError, Process, call
from tests.lab.network import NAMESPACES, Subnet, Wire, claim_subnet, remove_dead_subnets

__all__ = ["BusyboxHost", "Lab", "LabError", "LabHost", "Process"]

ROOT = Path("/var/lib/sshgrid-lab")


class Lab:
    """`with Lab(4) as lab: lab["h1"].cut()`: hosts h1.. run OpenSSH, b1.. dropbear with busybox."""

    def __init__(self, hosts: int = 4, busybox: int = 0) -> None:
        self._openssh_names = [f"h{number}" for number in range(1, hosts + 1)]
        self._busybox_names = [f"b{number}" for number in range(1, busybox + 1)]
        self._stack = ExitStack()
        self.hosts: dict[str, LabHost] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            with _one_lab_at_a_time():
                _remove_dead_labs()
                self._subnet = claim_subnet()
                stack.callback(self._subnet.remove)
                self.directory = ROOT / self._subnet.bridge
                # This lab has the number: an existing directory is from before the last reboot of the machine.
                _remove_directory(self.directory)
            self._make_directory()
            stack.callback(_remove_directory, self.directory)
            self._make_hosts()
            stack.callback(self._power_off)
            stack.enter_context(Ticker(host.load for host in self))
            self._each(LabHost.power_on)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._check_nothing_left()

    def __getitem__(self, name: str) -> LabHost:
        return self.hosts[name]

    def __iter__(self) -> Iterator[LabHost]:
        return iter(self.hosts.values())

    # --- for clients --------------------------------------------------------------------------------------------------

    @property
    def identity_file(self) -> Path:
        return self.directory / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def ssh_config(self) -> Path:
        return self.directory / "ssh_config"

    def ssh(self, name: str, *command: str) -> list[str]:
        """The command line of the system's ssh for a host."""
        return ["ssh", "-F", str(self.ssh_config), name, *command]

    def inventory_yaml(
        self,
        extra: str = "",
        *,
        hosts: Sequence[str] | None = None,
        fields: Mapping[str, Mapping[str, object]] | None = None,
    ) -> str:
        """An inventory of all (or the named) hosts; `fields` adds keys to a node, `extra` is top-level text."""
        lines = ["version: 1", "nodes:"]
        for name in self.hosts if hosts is None else hosts:
            keys = self._node(self.hosts[name]) | dict((fields or {}).get(name, {}))
            lines += [f"  {name}:", *(f"    {key}: {json.dumps(value)}" for key, value in keys.items())]
        return "\n".join((*lines, extra))

    # --- between tests ------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Reset every host to its initial state."""
        self._each(LabHost.reset)

    def check_quiet(self, seconds: float = 10.0) -> None:
        """LabError when a host ended unexpectedly or a process was left on one."""
        self._each(lambda host: host.check_quiet(seconds))

    # --- inside -------------------------------------------------------------------------------------------------------

    def _make_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True)
        copy_etc(self.directory / "etc")
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "sshgrid lab", "-f", str(self.identity_file))

    def _make_hosts(self) -> None:
        public = self.identity_file.with_suffix(".pub").read_text()
        for position, name in enumerate([*self._openssh_names, *self._busybox_names], 1):
            wire = Wire(self._subnet, name, position)
            busybox = name in self._busybox_names
            directory = (BusyboxDirectory if busybox else HostDirectory)(self.directory / name, name, public)
            self.hosts[name] = (BusyboxHost if busybox else LabHost)(wire, directory)
        self.known_hosts.write_text("".join(f"{host.known_host}\n" for host in self))
        self.ssh_config.write_text("\n".join(self._ssh_config(host) for host in self))

    def _node(self, host: LabHost) -> dict[str, object]:
        return {
            "host": host.address,
            "port": 22,
            "user": ACCOUNT,
            "identity_file": str(self.identity_file),
            "known_hosts": str(self.known_hosts),
            "workdir": "/var/tmp/sshgrid-{uid}",
        }

    def _ssh_config(self, host: LabHost) -> str:
        return f"""Host {host.name}
    HostName {host.address}
    User {ACCOUNT}
    IdentityFile {self.identity_file}
    IdentitiesOnly yes
    UserKnownHostsFile {self.known_hosts}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    BatchMode yes
"""

    def _each(self, action: Callable[[LabHost], None]) -> None:
        """Call `action` for all hosts in parallel. LabError with the errors of all hosts."""
        with ThreadPoolExecutor(max_workers=4) as pool:
            futures = [pool.submit(action, host) for host in self]
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            raise LabError("; ".join(str(error) for error in errors)) from errors[0]

    def _power_off(self) -> None:
        self._each(LabHost.end)

    def _check_nothing_left(self) -> None:
        left = [str(path) for path in NAMESPACES.glob(f"{self._subnet.bridge}-*")]
        # Not bridge*: sgl39 and sgl3 are different labs.
        bridge = self._subnet.bridge
        left += [path.name for path in Path("/sys/class/net").iterdir() if path.name.partition("p")[0] == bridge]
        left += [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if self._owns(line)]
        if left:
            raise LabError(f"the lab left {', '.join(left)}")

    def _owns(self, mount: str) -> bool:
        return f"{self.directory}/" in mount


@contextmanager
def _one_lab_at_a_time() -> Iterator[None]:
    """Hold the lock of all labs: one could remove the directory of an ended lab while another takes its number."""
    ROOT.mkdir(parents=True, exist_ok=True)
    with (ROOT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _remove_dead_labs() -> None:
    """Remove the networks and directories of labs that were killed; their hosts have ended by themselves."""
    for number in remove_dead_subnets():
        _remove_directory(ROOT / Subnet(number).bridge)


def _remove_directory(directory: Path) -> None:
    for disk in directory.glob("*/disk"):
        if os.path.ismount(disk):
            call("umount", "-l", str(disk))
    if directory.exists():
        shutil.rmtree(directory)
