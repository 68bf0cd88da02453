"""Runs a peer that is a Python library in a process of its own Python; runs are requested over a pipe.

The start of the library and of its services is not measured. That process measures the runs itself. All waits have a
timeout.
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
# (program, arguments) -> (seconds, the exit code of each run)
Run = Callable[[str, list[str]], tuple[float, list[int]]]


class LibraryProcess:
    """The client side. `module` is a module of this package that serves Answers."""

    def __init__(self, name: str, module: str, log: Path) -> None:
        self._name = name
        self._module = module
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def start(self, python: Path, *words: str) -> str:
        """Start the process; returns the version of the library when it is ready."""
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [str(python), "-m", self._module, *words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=self._log.parent,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        return str(self._answer(START_SECONDS)["version"])

    def run(self, work: Work) -> float:
        if self._process is None or self._process.stdin is None:
            raise Failed(f"{self._name} has not started")
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
            raise Failed(f"{self._name} has not started")
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            raise Failed(f"{self._name}: no answer; its log: {self._log.read_text()[-500:]!r}")
        return json.loads(line)


class Answers:
    """The server side. Create it before the library is imported: later output on stdout goes to the log."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def serve(self, version: str, run: Run) -> None:
        """Send the version, then answer requests until the end of stdin."""
        self._send({"version": version})
        for line in sys.stdin:
            program, arguments = json.loads(line)
            seconds, codes = run(program, arguments)
            self._send({"seconds": seconds, "codes": codes})

    def _send(self, answer: dict[str, object]) -> None:
        self._stream.write(json.dumps(answer) + "\n")
        self._stream.flush()
