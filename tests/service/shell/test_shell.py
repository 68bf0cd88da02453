"""The prompt on a real terminal, against a scripted master."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import stat
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from sshgrid.model import Caps, JobId, NodeState, Role
from sshgrid.prompt.completion import split_line
from sshgrid.protocol import messages, user_messages
from sshgrid.shell import counts_text
from tests.service.conftest import Cli
from tests.service.fake_master import FakeMaster, job_line, node_line, output, status_reply

_CURSOR_ASKED = b"\x1b[6n"
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The shell on a pseudo-terminal of 100 columns, which reports the position of the cursor, as terminals do."""

    def __init__(self, cli: Cli) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 30, 100, 0, 0))
        self.child = subprocess.Popen(
            [sys.executable, "-m", "sshgrid", "shell"],
            cwd=cli.folder,
            env={**cli.environ, "TERM": "xterm"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        cli.children.append(self.child)
        self._seen = b""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, expected: str) -> None:
        """Wait until the screen shows this text, after the text that was expected last."""
        deadline = time.monotonic() + 15
        while expected.encode() not in (plain := _ESCAPES.sub(b"", self._seen)):
            ready, _, _ = select.select([self._master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"waited for {expected!r}, saw {plain!r}"
            piece = os.read(self._master, 65536)
            if _CURSOR_ASKED in piece:
                os.write(self._master, b"\x1b[1;1R")
            self._seen += piece
        self._seen = plain.partition(expected.encode())[2]

    def close(self) -> None:
        os.close(self._master)


@pytest.fixture
def terminal(cli: Cli, fake: FakeMaster) -> Iterator[Terminal]:
    terminal = Terminal(cli)
    terminal.expect("sshgrid>")
    yield terminal
    terminal.close()


def test_commands_run_status_is_shown_and_ctrl_d_leaves(terminal: Terminal, fake: FakeMaster) -> None:
    fake.reply(messages.Watch, output("stdout", b"the output\n"), messages.Ended(job_line(exit_status=3)))
    terminal.type("attach 7\r")
    terminal.expect("the output")
    terminal.expect("[3] sshgrid>")
    terminal.type("\x04")
    assert terminal.child.wait(10) == 3


def test_ctrl_c_cancels_the_followed_job_and_the_prompt_returns(
    terminal: Terminal, fake: FakeMaster, program: str
) -> None:
    fake.reply(messages.Watch, output("stdout", b"working\n"))
    fake.reply(messages.Cancel, messages.Done(1), messages.Ended(job_line(state="CANCELLED")))
    terminal.type(f"run {program}\r")
    terminal.expect("working")
    terminal.type("\x03")
    terminal.expect("[130] sshgrid>")
    assert fake.received(messages.Cancel) == [messages.Cancel((JobId(42),), "INT")]
    terminal.type("\x03")
    terminal.type("version\r")
    terminal.expect("sshgrid 0.")


def test_the_bottom_line_counts_jobs_and_nodes(fake: FakeMaster, cli: Cli) -> None:
    fake.reply(messages.Status, status_reply(cli.places, RUNNING=3, PENDING=12))
    fake.reply(messages.Nodes, messages.NodesReply((node_line("h1"), node_line("h2", state=NodeState.DOWN))))
    terminal = Terminal(cli)
    terminal.expect("jobs: 3 running, 12 pending   nodes: 1 of 2 up")
    terminal.close()


def test_tab_completes_users(terminal: Terminal, fake: FakeMaster) -> None:
    alice = user_messages.UserLine("alice", Role.USER, False, False, 0.0, (), Caps(), 0, 0)
    fake.reply(user_messages.Users, user_messages.UsersReply((alice,)))
    terminal.type("user limit al")
    terminal.expect("al")
    terminal.type("\t")
    terminal.expect("ice")


@pytest.mark.parametrize(
    ("typed", "completed"),
    [("toolc", "hains"), ("ps --no-h", "eader"), ("info 4", "2"), ("node drain h", "2")],
)
def test_tab_completes_commands_options_jobs_and_nodes(terminal: Terminal, typed: str, completed: str) -> None:
    terminal.type(typed)
    terminal.expect(typed.split()[-1])
    terminal.type("\t")
    # The terminal gets only the changes of the screen: the rest of the word.
    terminal.expect(completed)


def test_tab_completes_file_names(terminal: Terminal, program: str) -> None:
    terminal.type("run hel")
    terminal.expect("hel")
    terminal.type("\t")
    terminal.expect("lo.py")


def test_the_history_is_private(terminal: Terminal, cli: Cli) -> None:
    terminal.type("version\r")
    terminal.expect("sshgrid 0.")
    history = cli.home / "history"
    assert "+version" in history.read_text()
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_without_a_terminal_lines_are_read_from_stdin(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(messages.Watch, messages.Ended(job_line(exit_status=7)))
    done = cli("shell", stdin=b"version\n# a comment\n\nwait 'open\nsshgrid attach 42\nexit\nversion\n")
    assert (done.returncode, done.stdout.count(b"sshgrid 0.")) == (7, 1)
    assert done.stderr == b"error: unbalanced quotes: No closing quotation\n"


@pytest.mark.parametrize(
    ("text", "words", "incomplete"),
    [
        ("", [], ""),
        ("ps", [], "ps"),
        ("ps ", ["ps"], ""),
        ("sshgrid run 'a b", ["run"], "a b"),
        ("run \"it's", ["run"], "it's"),
    ],
)
def test_a_line_is_split_at_the_cursor(text: str, words: list[str], incomplete: str) -> None:
    assert split_line(text) == (words, incomplete)


def test_the_counts_report_an_invalid_inventory(cli: Cli) -> None:
    import msgspec

    broken = msgspec.structs.replace(status_reply(cli.places), inventory_error="line 3")
    assert counts_text(broken, messages.NodesReply(())).endswith("the inventory has errors")
