"""What people copy files to hosts with: scp, and tar through ssh; to all hosts at once, through an open connection.

Afterwards, and not measured, the work's program looks at what has come. Refuses work without files.
"""

from __future__ import annotations

import shlex
import subprocess
import time

from bench.installed import TIMEOUT_SECONDS, Failed
from bench.peers.ground import Ground
from bench.work import Work

COPIED = "/var/tmp/copied"  # on the disk on which sshgrid works, too


class Copying:
    """`tar` names the one of the two."""

    def __init__(self, ground: Ground, *, tar: bool) -> None:
        self.name = "tar | ssh" if tar else "scp"
        self._ground = ground
        self._tar = tar

    def install(self) -> str:
        said = subprocess.run(
            ["tar" if self._tar else "ssh", "--version" if self._tar else "-V"],
            check=True,
            capture_output=True,
            text=True,
        )
        return (said.stdout or said.stderr).splitlines()[0].partition(",")[0].removeprefix("tar (GNU tar) ")

    def run(self, work: Work) -> float:
        for host in self._ground.hosts:
            self._ground.lab[host].run(["sh", "-c", f"rm -rf {COPIED} && mkdir {COPIED}"], user="grid")
        start = time.perf_counter()
        copies = [subprocess.Popen(self._command(work, host), stdin=subprocess.DEVNULL) for host in work.arguments]
        codes = [copy.wait(TIMEOUT_SECONDS) for copy in copies]
        taken = time.perf_counter() - start
        work.check(self.name, "".join(self._looked(work, host) for host in work.arguments), codes)
        return taken

    def close(self) -> None:
        """Nothing of it outlives a run."""

    def _command(self, work: Work, host: str) -> list[str]:
        if work.cargo is None:
            raise Failed(f"{self.name} has nothing to copy")
        if not self._tar:
            return ["scp", "-q", "-r", "-F", str(self._ground.ssh_config), str(work.cargo), f"{host}:{COPIED}"]
        here = shlex.join(["tar", "-C", str(work.cargo.parent), "-cf", "-", work.cargo.name])
        return ["sh", "-c", f"{here} | {shlex.join(self._ground.ssh(host, 'tar', '-C', COPIED, '-xf', '-'))}"]

    def _looked(self, work: Work, host: str) -> str:
        done = self._ground.lab[host].run(
            ["sh", "-c", f"cd {COPIED} && sh -s"], user="grid", stdin=work.program.read_text()
        )
        return done.stdout
