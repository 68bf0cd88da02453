"""sshgrid as users run it: each command is a process, with its own SSHGRID_HOME, on a lab of real hosts.

The package is copied first, so that an edit during the run changes nothing. Signals go only to the clients and the
master of this run.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.chaos.program import LEDGER, SOURCE, create_ledger
from tests.lab.hosts import Lab

ROOT = Path(__file__).parents[2]
DISK_BYTES = 96 << 20
ANSWER_SECONDS = 60.0


class Grid:
    """An inventory with all hosts of a lab, and a home for its master."""

    def __init__(self, lab: Lab, folder: Path, *, slots: int, extra: str = "") -> None:
        self.lab = lab
        self.folder = folder
        self._home = folder / "h"
        self._home.mkdir(mode=0o700)
        shutil.copytree(ROOT / "sshgrid", folder / "code" / "sshgrid", ignore=shutil.ignore_patterns("__pycache__"))
        self.program = folder / "work.py"
        self.program.write_text(SOURCE)
        fields = {name: {"slots": slots} for name in lab.hosts}
        inventory = self._home / "inventory.yaml"
        inventory.write_text(lab.inventory_yaml(extra, fields=fields))
        inventory.chmod(0o600)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SSHGRID_")}
        self._environ = {
            **kept,
            "SSHGRID_HOME": str(self._home),
            "HOME": str(folder),
            "PYTHONPATH": str(folder / "code"),
            "PYTHONDONTWRITEBYTECODE": "",
        }

    def start(self, *words: str, stdout: Path | int, stderr: Path | int) -> subprocess.Popen[bytes]:
        """Start a client without waiting."""
        with contextlib.ExitStack() as stack:
            out, err = (
                stack.enter_context(place.open("wb")) if isinstance(place, Path) else place
                for place in (stdout, stderr)
            )
            return subprocess.Popen(
                [sys.executable, "-m", "sshgrid", *words],
                cwd=self.folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def __call__(self, *words: str, seconds: float = ANSWER_SECONDS) -> subprocess.CompletedProcess[bytes]:
        """Run a client to its end. Raises TimeoutError."""
        child = self.start(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = child.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            out, err = child.communicate()
            raise TimeoutError(f"sshgrid {' '.join(words)}: no answer in {seconds:g} s: {err[-500:]!r}") from None
        return subprocess.CompletedProcess(words, child.returncode, out, err)

    def json(self, *words: str) -> Any:
        """The output of a client with --json. Raises RuntimeError for another exit status than 0."""
        done = self("--json", *words)
        if done.returncode != 0:
            raise RuntimeError(f"sshgrid {' '.join(words)}: {done.returncode}: {done.stdout!r} {done.stderr!r}")
        return json.loads(done.stdout)

    def jobs(self) -> list[dict[str, Any]]:
        return list(self.json("ps", "-a")["jobs"])

    def job(self, number: int) -> dict[str, Any]:
        return dict(self.json("info", str(number)))

    # --- the master

    @property
    def state(self) -> Path:
        return next((self._home / "state").iterdir())

    def master_pid(self) -> int | None:
        """The pid of the process that listens on the master's socket; None when there is none."""
        found = list((self._home / "state").glob("*/master.sock"))
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(found[0]))
            except (OSError, IndexError):
                return None
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[0])

    def kill_master(self) -> int | None:
        """Send SIGKILL to the master; returns its pid, or None when there is none."""
        pid = self.master_pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pid

    def master_log(self) -> str:
        return (self.state / "master.log").read_text(errors="replace")


@contextlib.contextmanager
def grid_over(lab: Lab, *, slots: int, extra: str = "", small_disks: bool = True) -> Iterator[Grid]:
    """A grid whose hosts have ledgers. At the end its home is removed and the disks have their normal size."""
    # A short path, as that of the socket is limited to about 100 bytes.
    folder = Path(tempfile.mkdtemp(prefix="sgc-", dir="/tmp"))
    try:
        for host in lab:
            if small_disks:
                host.small_disk(DISK_BYTES)
            create_ledger(host.disk_path(LEDGER))
        grid = Grid(lab, folder, slots=slots, extra=extra)
        try:
            yield grid
        finally:
            grid.kill_master()
    finally:
        if small_disks:
            lab.reset()
        shutil.rmtree(folder, ignore_errors=True)
