"""The environment of the peers: the hosts with an open ssh connection to each, a folder, and a folder that hosts share.

Packages are installed with apt and pip as configured on this machine. A package that cannot be installed raises Failed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Self

from bench.installed import Failed
from tests.lab.hosts import Lab

# A lab host has its own /tmp, /home and /root, but sees this folder of the machine.
SHARED = Path("/var/lib")
PYTHON = "/usr/bin/python3"  # the hosts have no other
INSTALL_SECONDS = 600


class Environment:
    """A context manager that opens and closes the connections."""

    def __init__(self, lab: Lab, home: Path, slots: int) -> None:
        self.lab = lab
        self.hosts = tuple(lab.hosts)
        self.home = home
        self.slots = slots  # parallel runs on each host, the same for all peers
        self.ssh_config = home / "ssh_config"

    def __enter__(self) -> Self:
        self.home.mkdir()
        # A folder of its own, as the path of a socket may have about 100 bytes, and `home` may be long.
        self._sockets = Path(tempfile.mkdtemp(prefix="sgb-"))
        sharing = ("ControlMaster auto", "ControlPersist 600", f"ControlPath {self._sockets}/%n")
        everywhere = "\n".join(("Host *", *(f"    {line}" for line in sharing), ""))
        self.ssh_config.write_text(f"{self.lab.ssh_config.read_text()}\n{everywhere}")
        self.shared = Path(tempfile.mkdtemp(prefix="sshgrid-bench-", dir=SHARED))
        self.shared.chmod(0o755)
        for host in self.hosts:
            self.open(host)
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            subprocess.run(self.ssh("-q", "-O", "exit", host), check=False, capture_output=True)
        shutil.rmtree(self._sockets)
        shutil.rmtree(self.shared)

    @property
    def all_slots(self) -> int:
        return self.slots * len(self.hosts)

    def ssh(self, *words: str) -> list[str]:
        return ["ssh", "-F", str(self.ssh_config), *words]

    def open(self, host: str) -> None:
        """Open the connection that later commands use."""
        subprocess.run(self.ssh("-MNf", host), check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    # --- packages

    def apt(self, **packages: str) -> None:
        """Install the packages whose command is missing: apt(rsync="rsync")."""
        missing = [package for command, package in packages.items() if not shutil.which(command)]
        if missing:
            environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
            _install(["apt-get", "-q", "-y", "install", "--no-install-recommends", *missing], environment)

    def pip(self, name: str, *packages: str) -> Path:
        """A Python with these packages in the shared folder, which the hosts can start."""
        folder = self.shared / name
        # That Python may have no pip, so this one installs into it.
        _install([PYTHON, "-m", "venv", "--without-pip", str(folder)])
        python = folder / "bin/python"
        _install([sys.executable, "-m", "pip", "--python", str(python), "install", "-q", *packages])
        return python


def _install(command: list[str], environment: dict[str, str] | None = None) -> None:
    try:
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment,
            timeout=INSTALL_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-500:]}")
