"""A peer that is a Python library: it lives in a process of its own Python, and is asked for runs over a pipe.

Its library's start, and that of its services, are not measured; what is, is measured in that process. Refuses to wait
for ever.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.installed import ROOT, TIMEOUT_SECONDS, Failed
from bench.work import Work

START_SECONDS = 120.0
# Of the program with each of these arguments: seconds, and the code of each run.
Run = Callable[[str, list[str]], tuple[float, list[int]]]


class Driven:
    """The near end; `module` is one of ours that serves Answers."""

    def __init__(self, name: str, module: str, log: Path) -> None:
        self._name = name
        self._module = module
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def start(self, python: Path, *words: str) -> str:
        """Its version, as soon as it is ready to run something."""
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", self._module, *words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self._log.parent,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        return str(self._answer(START_SECONDS)["version"])

    def run(self, work: Work) -> float:
        if self._process is None or self._process.stdin is None:
            raise Failed(f"{self._name} is not there")
        self._process.stdin.write(json.dumps([str(work.program), work.arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._answer(TIMEOUT_SECONDS)
        work.check(self._name, "", answer["codes"])
        return float(answer["seconds"])

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate(timeout=60)

    def _answer(self, seconds: float) -> Any:
        if self._process is None or self._process.stdout is None:
            raise Failed(f"{self._name} is not there")
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise Failed(f"{self._name}: no answer; it said {self._log.read_text()[-500:]!r}")
        return json.loads(line)


class Answers:
    """The far end. Made before the library is used, which may print what it likes: its stdout goes to the log then."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def serve(self, version: str, run: Run) -> None:
        """Says that it is ready, then answers until its stdin ends."""
        self._say({"version": version})
        for line in sys.stdin:
            program, arguments = json.loads(line)
            seconds, codes = run(program, arguments)
            self._say({"seconds": seconds, "codes": codes})

    def _say(self, answer: dict[str, object]) -> None:
        self._stream.write(json.dumps(answer) + "\n")
        self._stream.flush()
