"""A real terminal for tests: a tmux server of its own, typed keys, and the visible screen.

On a machine without tmux these tests are skipped; in CI that is a failure. Every wait has a deadline.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from tests.whole.grid import wait_for_value, wait_until

SECONDS = 30.0


class Tmux:
    """One program in one window."""

    def __init__(
        self, folder: Path, words: Sequence[str], environ: Mapping[str, str], columns: int = 80, lines: int = 24
    ) -> None:
        if shutil.which("tmux") is None:
            assert os.environ.get("CI") != "true", "CI has no tmux: scripts/setup-test-host.sh"
            pytest.skip("tmux is not installed: scripts/setup-test-host.sh")
        # A relative name, as the path of a socket must be short.
        self._folder, self._tmux = folder, ["tmux", "-S", "tmux.socket", "-f", "/dev/null"]
        self._environ = {**environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
        # The shell keeps the exit status, which tmux can lose; Ctrl-C must reach only the program.
        command = f"trap : INT; {shlex.join(words)}; echo $? >tmux.status.new; mv tmux.status.new tmux.status"
        size = ("-x", str(columns), "-y", str(lines))
        self._call(
            "set-option", "-g", "remain-on-exit", "on", ";", "new-session", "-d", *size, "-c", str(folder), command
        )

    def __enter__(self) -> Tmux:
        return self

    def __exit__(self, *_: object) -> None:
        self._call("kill-server")

    def _call(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tmux, *words],
            cwd=self._folder,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout

    # --- hands and eyes

    def press(self, *keys: str) -> None:
        """Press keys, by the names of tmux: Enter, Tab, Up, C-c, M-Enter, Escape."""
        self._call("send-keys", "-t", ":", *keys)

    def type(self, text: str, *keys: str) -> None:
        """Type this text, then press these keys."""
        self._call("send-keys", "-t", ":", "-l", "--", text)
        if keys:
            self.press(*keys)

    def resize(self, columns: int, lines: int) -> None:
        self._call("resize-window", "-t", ":", "-x", str(columns), "-y", str(lines))

    @property
    def screen(self) -> str:
        return self._call("capture-pane", "-p", "-t", ":")

    @property
    def lines(self) -> list[str]:
        return self.screen.splitlines()

    @property
    def pid(self) -> int:
        """The process ID of the program."""
        shell = psutil.Process(int(self._call("display-message", "-p", "-t", ":", "#{pane_pid}")))
        return int(shell.children()[0].pid)

    # --- waiting

    def wait_until(self, holds: Callable[[str], object], what: str, seconds: float = SECONDS) -> str:
        """The first screen for which the predicate is true."""
        return wait_for_value(lambda: self.screen, lambda screen: bool(holds(screen)), f"{what} on the screen", seconds)

    def see(self, expected: str, seconds: float = SECONDS) -> str:
        return self.wait_until(lambda screen: expected in screen, f"{expected!r}", seconds)

    def see_no_more(self, unwanted: str) -> str:
        return self.wait_until(lambda screen: unwanted not in screen, f"{unwanted!r} to be gone")

    def status(self, seconds: float = SECONDS) -> int:
        """The exit status of the program."""
        file = self._folder / "tmux.status"
        wait_until(file.exists, "the program to end", seconds, lambda: self.screen)
        return int(file.read_text())
