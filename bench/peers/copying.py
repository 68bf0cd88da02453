"""Copies files with scp, or with tar through ssh, to all hosts at once, through open connections.

After the measurement, the program of the work checks the copies. Work without data raises Failed.
"""

from __future__ import annotations

import shlex
import subprocess
import time

from bench.installed import TIMEOUT_SECONDS, Failed
from bench.peers.environment import Environment
from bench.work import Work

COPIED = "/var/tmp/copied"  # on the same disk as the working folder of sshgrid


class Copying:
    """Uses tar if `tar`, else scp."""

    def __init__(self, environment: Environment, *, tar: bool) -> None:
        self.name = "tar | ssh" if tar else "scp"
        self._environment = environment
        self._tar = tar

    def install(self) -> str:
        version = subprocess.run(
            ["tar" if self._tar else "ssh", "--version" if self._tar else "-V"],
            check=True,
            capture_output=True,
            text=True,
        )
        return (version.stdout or version.stderr).splitlines()[0].partition(",")[0].removeprefix("tar (GNU tar) ")

    def run(self, work: Work) -> float:
        for host in self._environment.hosts:
            self._environment.lab[host].run(["sh", "-c", f"rm -rf {COPIED} && mkdir {COPIED}"], user="grid")
        start = time.perf_counter()
        copies = [subprocess.Popen(self._command(work, host), stdin=subprocess.DEVNULL) for host in work.arguments]
        codes = [copy.wait(TIMEOUT_SECONDS) for copy in copies]
        taken = time.perf_counter() - start
        work.check(self.name, "".join(self._check(work, host) for host in work.arguments), codes)
        return taken

    def close(self) -> None:
        """No process to end."""

    def _command(self, work: Work, host: str) -> list[str]:
        if work.data is None:
            raise Failed(f"{self.name}: the work has no data to copy")
        if not self._tar:
            return ["scp", "-q", "-r", "-F", str(self._environment.ssh_config), str(work.data), f"{host}:{COPIED}"]
        here = shlex.join(["tar", "-C", str(work.data.parent), "-cf", "-", work.data.name])
        return ["sh", "-c", f"{here} | {shlex.join(self._environment.ssh(host, 'tar', '-C', COPIED, '-xf', '-'))}"]

    def _check(self, work: Work, host: str) -> str:
        done = self._environment.lab[host].run(
            ["sh", "-c", f"cd {COPIED} && sh -s"], user="grid", stdin=work.program.read_text()
        )
        return done.stdout
