"""GNU parallel over ssh, through connections that are open already, with as many runs at once on a host as sshgrid.

A source is compiled in each run, or here once and the result sent to each host before its first run (`--basefile`, the
manual's way for what all runs need) or with each run (`--transferfile`). Refuses languages that it has no line for.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Literal

from bench.installed import TIMEOUT_SECONDS, Failed, seconds
from bench.peers.ground import Ground
from bench.work import Work, joblog_codes

Way = Literal["compiled in each run", "--basefile", "--transferfile"]

# What a run is, with the argument as {}. Java's own launcher compiles in memory: quicker than javac and java.
AS_IT_IS = {"": "{program} {{}}", ".sh": "sh {program} {{}}"}
IN_EACH = {
    ".c": "d=$(mktemp -d) && gcc -O2 -o $d/run {program} -lm && $d/run {{}}; s=$?; rm -rf $d; exit $s",
    ".java": "java {program} {{}}",
}
COMPILE = {".c": ["gcc", "-O2", "-o", "square", "{program}", "-lm"], ".java": ["javac", "{program}"]}
COMPILED = {".c": ("square", "./square {}"), ".java": ("Square.class", "java -cp . Square {}")}


class Parallel:
    def __init__(self, ground: Ground, way: Way = "--basefile") -> None:
        self.name = "GNU parallel" if way == "--basefile" else f"GNU parallel {way}"
        self._ground = ground
        self._way = way
        self._log = ground.home / "parallel.joblog"

    def install(self) -> str:
        self._ground.apt(parallel="parallel", rsync="rsync")
        said = subprocess.run(["parallel", "--version"], check=True, capture_output=True, text=True).stdout
        return said.splitlines()[0].removeprefix("GNU parallel ")

    def run(self, work: Work) -> float:
        folder, start = work.program.parent, time.perf_counter()
        options, line = self._words(work, folder)
        hosts = [f"{self._ground.slots}/ssh -F {self._ground.ssh_config} {host}" for host in self._ground.hosts]
        logins = [word for host in hosts for word in ("-S", host)]
        log = ["--joblog", str(self._log)]
        command = ["parallel", "--will-cite", *logins, *log, *options, line, ":::", *work.arguments]
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=folder,
            timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
        taken = time.perf_counter() - start
        if done.returncode != 0:
            raise Failed(f"{self.name}: status {done.returncode}, said {done.stderr[-500:]!r}")
        work.check(self.name, done.stdout, joblog_codes(self._log))
        return taken

    def close(self) -> None:
        """Nothing of it outlives a run."""

    def _words(self, work: Work, folder: Path) -> tuple[list[str], str]:
        """Options and the line of a run; compiles here where that is the way."""
        suffix, name = work.program.suffix, work.program.name
        if not suffix:
            return [], AS_IT_IS[suffix].format(program=work.program)
        if suffix in AS_IT_IS:
            return ["--basefile", name, "--cleanup"], AS_IT_IS[suffix].format(program=name)
        if self._way == "compiled in each run":
            return ["--basefile", name, "--cleanup"], IN_EACH[suffix].format(program=name)
        seconds([word.format(program=name) for word in COMPILE[suffix]], cwd=folder)
        result, line = COMPILED[suffix]
        # With each run means into a folder of its own, or the end of one run removes the file of another.
        apart = ["--workdir", "..."] if self._way == "--transferfile" else []
        return [*apart, self._way, result, "--cleanup"], line
