"""GNU parallel through open ssh connections, with as many parallel runs on a host as sshgrid.

A source is compiled in each run, or once here; the result is then sent to each host before its first run (`--basefile`)
or with each run (`--transferfile`).
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Literal

from bench.installed import TIMEOUT_SECONDS, Failed, seconds
from bench.peers.environment import Environment
from bench.work import Work, joblog_codes

Way = Literal["compiled in each run", "--basefile", "--transferfile"]

# The command of a run; {} is the argument. The launcher of Java compiles in memory, faster than javac and java.
RUN = {"": "{program} {{}}", ".sh": "sh {program} {{}}"}
COMPILE_AND_RUN = {
    ".c": "d=$(mktemp -d) && gcc -O2 -o $d/run {program} -lm && $d/run {{}}; s=$?; rm -rf $d; exit $s",
    ".java": "java {program} {{}}",
}
COMPILE = {".c": ["gcc", "-O2", "-o", "square", "{program}", "-lm"], ".java": ["javac", "{program}"]}
RUN_COMPILED = {".c": ("square", "./square {}"), ".java": ("Square.class", "java -cp . Square {}")}


class Parallel:
    def __init__(self, environment: Environment, way: Way = "--basefile") -> None:
        self.name = "GNU parallel" if way == "--basefile" else f"GNU parallel {way}"
        self._environment = environment
        self._way = way
        self._log = environment.home / "parallel.joblog"

    def install(self) -> str:
        self._environment.apt(parallel="parallel", rsync="rsync")
        output = subprocess.run(["parallel", "--version"], check=True, capture_output=True, text=True).stdout
        return output.splitlines()[0].removeprefix("GNU parallel ")

    def run(self, work: Work) -> float:
        folder, start = work.program.parent, time.perf_counter()
        options, line = self._words(work, folder)
        hosts = [
            f"{self._environment.slots}/ssh -F {self._environment.ssh_config} {host}"
            for host in self._environment.hosts
        ]
        logins = [word for host in hosts for word in ("-S", host)]
        log = ["--joblog", str(self._log)]
        command = ["parallel", "--will-cite", *logins, *log, *options, line, ":::", *work.arguments]
        done = subprocess.run(
            command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=folder,
            timeout=TIMEOUT_SECONDS,
        )  # fmt: skip
        taken = time.perf_counter() - start
        if done.returncode != 0:
            raise Failed(f"{self.name}: status {done.returncode}, printed {done.stderr[-500:]!r}")
        work.check(self.name, done.stdout, joblog_codes(self._log))
        return taken

    def close(self) -> None:
        """No process to end."""

    def _words(self, work: Work, folder: Path) -> tuple[list[str], str]:
        """The options and the command line of a run. Compiles the program here unless each run does."""
        suffix, name = work.program.suffix, work.program.name
        if not suffix:
            return [], RUN[suffix].format(program=work.program)
        if suffix in RUN:
            return ["--basefile", name, "--cleanup"], RUN[suffix].format(program=name)
        if self._way == "compiled in each run":
            return ["--basefile", name, "--cleanup"], COMPILE_AND_RUN[suffix].format(program=name)
        seconds([word.format(program=name) for word in COMPILE[suffix]], cwd=folder)
        result, line = RUN_COMPILED[suffix]
        # Each run needs its own folder; otherwise the end of one run removes the file of another.
        own_folder = ["--workdir", "..."] if self._way == "--transferfile" else []
        return [*own_folder, self._way, result, "--cleanup"], line
