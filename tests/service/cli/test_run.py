"""`run`, `attach`, `logs` and `wait` against a scripted master: bytes, exit codes, Ctrl-C, lost masters."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import time
from hashlib import sha256

import pytest

from sshgrid.model import JobId, OnDisconnect, OnHostLoss, Submission
from sshgrid.protocol import messages
from sshgrid.terminal import render
from sshgrid.terminal.bar import TransferBar
from sshgrid.terminal.screen import PlainScreen
from tests.service.conftest import Cli, interrupt, wait_until
from tests.service.fake_master import CLOSE, FakeMaster, Reply, job_line, output

EVERY_BYTE = bytes(range(256))


def submitted(fake: FakeMaster) -> Submission:
    (request,) = fake.received(messages.Submit)
    assert isinstance(request, messages.Submit)
    return request.submission


def read_until(child: subprocess.Popen[bytes], expected: bytes, stream: str = "stdout") -> bytes:
    """What the child wrote, up to and including `expected`."""
    pipe = child.stdout if stream == "stdout" else child.stderr
    assert pipe is not None
    seen, deadline = b"", time.monotonic() + 10
    while expected not in seen:
        ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"waited for {expected!r}, saw {seen!r}"
        piece = os.read(pipe.fileno(), 65536)
        assert piece, f"ended with {seen!r} instead of {expected!r}"
        seen += piece
    return seen


def test_stdout_and_stderr_are_printed_byte_for_byte(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(
        messages.Watch, output("stdout", EVERY_BYTE * 100), output("stderr", EVERY_BYTE), messages.Ended(job_line())
    )
    done = cli("run", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, EVERY_BYTE * 100, EVERY_BYTE)


@pytest.mark.parametrize("status", [0, 1, 3, 124, 125, 126, 127, 137, 255])
def test_the_exit_status_is_that_of_the_job(cli: Cli, fake: FakeMaster, program: str, status: int) -> None:
    fake.reply(messages.Watch, messages.Ended(job_line(state="FAILED", exit_status=status)))
    assert cli("run", program).returncode == status


def test_the_source_its_name_and_its_arguments_are_submitted(cli: Cli, fake: FakeMaster) -> None:
    (cli.folder / "it is.py").write_bytes(b"print()\n")
    assert cli("run", "--on", "@fast,!h1", "it is.py", "--help", "-n", "a b", "--json").returncode == 0
    got = submitted(fake)
    (file,) = got.program.files
    assert (file.name, file.sha256, file.size) == ("it is.py", sha256(b"print()\n").hexdigest(), 8)
    assert got.program.args == (b"--help", b"-n", b"a b", b"--json")
    assert (got.program.entry, got.program.language, got.on) == ("it is.py", "", "@fast,!h1")
    assert got.command == "'it is.py' --help -n 'a b' --json"
    assert fake.payload(messages.PutBlob) == b"print()\n"


def test_an_argument_that_is_not_utf8_is_submitted_unchanged(cli: Cli, fake: FakeMaster, program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sshgrid", "run", program, b"\xff\xfe"],
        cwd=cli.folder, env=cli.environ, capture_output=True, timeout=30, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert submitted(fake).program.args == (b"\xff\xfe",)


def test_every_option_of_run_is_in_the_submission(cli: Cli, fake: FakeMaster, program: str) -> None:
    argv = ["--lang", "java>=17", "--time-limit", "1m30s", "--memory", "512M", "--retries", "5", "--priority", "-3"]
    argv += ["--name", "n", "--on-host-loss", "fence", "--on-disconnect", "cancel", "--flags", "-O3 '-DA=b c'"]
    assert cli("run", *argv, "--env", "A=1=2", "--env", "B", program, B="from here").returncode == 0
    got = submitted(fake)
    assert (got.program.language, got.program.version) == ("java", ">=17")
    assert (got.program.limits.wall_seconds, got.program.limits.memory_bytes) == (90.0, 512 << 20)
    assert (got.retries, got.priority, got.name) == (5, -3, "n")
    assert (got.on_host_loss, got.on_disconnect) == (OnHostLoss.FENCE, OnDisconnect.CANCEL)
    assert got.program.flags == ("-O3", "-DA=b c")
    assert got.program.env == (("A", b"1=2"), ("B", b"from here"))
    assert not got.wait_for_nodes


def test_compiler_output_goes_to_stderr(cli: Cli, fake: FakeMaster, program: str) -> None:
    ended = messages.Ended(job_line(state="COMPILE_ERROR", exit_status=126))
    fake.reply(messages.Watch, output("compile", b"a.c:1: error\n"), ended)
    done = cli("run", program)
    assert (done.returncode, done.stdout, done.stderr) == (126, b"", b"a.c:1: error\n")


@pytest.mark.parametrize(
    ("state", "status"), [("TIMEOUT", 124), ("NODE_FAIL", 125), ("OUT_OF_MEMORY", 137), ("CANCELLED", 143)]
)
def test_an_end_by_a_limit_or_a_lost_node_is_reported(
    cli: Cli, fake: FakeMaster, program: str, state: str, status: int
) -> None:
    fake.reply(messages.Watch, messages.Ended(job_line(state=state, reason="because", exit_status=status)))
    done = cli("run", program)
    assert done.returncode == status
    assert done.stderr == b"error: job 42: because\nhint: sshgrid info 42\n"


def test_without_a_terminal_only_a_moved_job_is_reported(cli: Cli, fake: FakeMaster, program: str) -> None:
    moved = "h2 lost (no answer for 10 s), moved to h3 (attempt 2 of 3)"
    fake.reply(
        messages.Watch,
        messages.Waiting("Resources"),
        messages.Progress(1, 3, "h2", "compiling"),
        messages.Notice(moved),
        messages.Ended(job_line()),
    )
    assert cli("run", program).stderr == moved.encode() + b"\n"


def test_show_node_prints_the_node_on_stderr(cli: Cli, fake: FakeMaster, program: str) -> None:
    steps = [messages.Progress(1, 3, "h2", step) for step in ("uploading", "running")]
    fake.reply(messages.Watch, *steps, messages.Progress(2, 3, "h3", "running"), messages.Ended(job_line()))
    assert cli("run", "--show-node", program).stderr == b"node: h2\nnode: h3\n"


def test_detach_prints_only_the_id(cli: Cli, fake: FakeMaster, program: str) -> None:
    done = cli("run", "-d", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"42\n", b"")
    assert submitted(fake).wait_for_nodes
    assert not fake.received(messages.Watch)


def test_json_prints_a_line_for_each_event_and_the_job_last(cli: Cli, fake: FakeMaster, program: str) -> None:
    progress = messages.Progress(1, 3, "h2", "running")
    fake.reply(
        messages.Watch,
        progress,
        output("stdout", b"hi\n"),
        output("stdout", b"\xff"),
        messages.Ended(job_line(exit_code=3)),
    )
    lines = [json.loads(line) for line in cli("run", "--json", program).stdout.splitlines()]
    assert [line.get("event") for line in lines] == ["accepted", "progress", "output", "output", None]
    assert all(line["schema"] == 1 for line in lines)
    assert (lines[2]["text"], lines[3]["base64"]) == ("hi\n", "/w==")
    assert (lines[-1]["id"], lines[-1]["exit_code"]) == (42, 3)
    assert (lines[-1]["submitted"], lines[-1]["started"]) == ("2023-11-14T22:13:20.250Z", "2023-11-14T22:13:21.500Z")


# --- what is run -----------------------------------------------------------------------------------------------------


def test_a_missing_file_exits_with_127_without_a_master(cli: Cli, fake: FakeMaster, program: str) -> None:
    done = cli("run", "helo.py")
    assert done.returncode == 127
    assert done.stderr == b"error: no such file: helo.py\nhint: did you mean hello.py?\n"
    assert not fake.requests


def test_a_folder_with_a_makefile_is_a_project(cli: Cli, fake: FakeMaster) -> None:
    project = cli.folder / "project"
    (project / "src").mkdir(parents=True)
    (project / ".git").mkdir()
    (project / ".git" / "HEAD").write_text("secret")
    (project / "Makefile").write_text("all:\n")
    (project / "src" / "a.c").write_text("int main(){}\n")
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    assert cli("run", "project", "x").returncode == 0
    got = submitted(fake).program
    assert (got.language, got.entry) == ("make", "Makefile")
    assert {(file.name, file.executable) for file in got.files} == {
        ("Makefile", False),
        ("run.sh", True),
        ("src/a.c", False),
    }


@pytest.mark.parametrize("verb", [["run"], ["sweep", "-d", "-p", "x=1"]])
@pytest.mark.parametrize("main", ["src/a.c", "./src//a.c", "project/src/a.c"])
def test_with_main_all_files_of_a_folder_are_submitted(cli: Cli, fake: FakeMaster, main: str, verb: list[str]) -> None:
    project = cli.folder / "project"
    (project / "src").mkdir(parents=True)
    for name in ("src/a.c", "src/b.c", "b.h", "Makefile"):
        (project / name).write_text(f"// {name}\n")
    assert cli(*verb, "--main", main, "project").returncode == 0
    got = submitted(fake).program
    assert (got.language, got.entry) == ("", "src/a.c")
    assert {file.name for file in got.files} == {"src/a.c", "src/b.c", "b.h", "Makefile"}


@pytest.mark.parametrize(
    ("main", "file", "status", "argv"),
    [
        ("b.c", "project", 127, "error: no such file in project: b.c (--main)"),
        ("src", "project", 127, "error: no such file in project: src (--main)"),
        ("../hello.py", "project", 127, "error: no such file in project: ../hello.py (--main)"),
        ("/etc/passwd", "project", 127, "error: no such file in project: /etc/passwd (--main)"),
        ("a.c", "project/a.c", 2, "error: --main needs a folder, and project/a.c is not one"),
        ("a.c", "-", 127, "error: no such file: -"),
    ],
)
def test_a_main_file_outside_of_the_folder_is_refused(
    cli: Cli, fake: FakeMaster, program: str, main: str, file: str, status: int, argv: str
) -> None:
    (cli.folder / "project" / "src").mkdir(parents=True)
    (cli.folder / "project" / "a.c").write_text("int main(void) { return 0; }\n")
    done = cli("run", "--main", main, file)
    assert (done.returncode, done.stderr.decode().splitlines()[0]) == (status, argv)
    assert not fake.requests


def test_a_folder_without_a_makefile_is_wrong_usage(cli: Cli) -> None:
    (cli.folder / "project").mkdir()
    done = cli("run", "project")
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: project is a folder without a Makefile\nhint: ")


def test_A10_a_link_in_a_folder_is_refused_by_name(cli: Cli, fake: FakeMaster) -> None:
    project = cli.folder / "project"
    project.mkdir()
    (project / "Makefile").write_text("all:\n")
    (project / "x").symlink_to("/etc/passwd")
    done = cli("run", "project")
    assert (done.returncode, b"project/x is a link" in done.stderr) == (2, True)
    assert not fake.requests


def test_a_program_from_stdin_needs_a_language(cli: Cli, fake: FakeMaster) -> None:
    refused = cli("run", "-", stdin=b"print(1)\n")
    assert refused.returncode == 2
    assert b"hint: sshgrid run --lang python -\n" in refused.stderr
    assert cli("run", "--lang", "python", "-", "x", stdin=b"print(1)\n").returncode == 0
    got = submitted(fake).program
    assert (got.entry, got.language, got.args, got.stdin) == ("stdin.py", "python", (b"x",), None)
    assert fake.payload(messages.PutBlob) == b"print(1)\n"


def test_a_program_from_stdin_with_an_interpreter_line_needs_no_language(cli: Cli, fake: FakeMaster) -> None:
    assert cli("run", "-", stdin=b"#!/bin/sh\necho hi\n").returncode == 0
    (file,) = submitted(fake).program.files
    assert (file.name, file.executable) == ("stdin", True)


def test_a_large_file_is_sent_only_if_the_master_lacks_it(cli: Cli, fake: FakeMaster) -> None:
    content = os.urandom(3 * 1024 * 1024 + 17)
    (cli.folder / "big.py").write_bytes(content)
    fake.reply(messages.MissingBlobs, messages.MissingBlobsReply(()))
    assert cli("run", "big.py").returncode == 0
    assert not fake.received(messages.PutBlob)
    del fake.scripts[messages.MissingBlobs]
    assert cli("run", "big.py").returncode == 0
    assert fake.payload(messages.PutBlob) == content
    assert [blob.last for blob in fake.received(messages.PutBlob) if isinstance(blob, messages.PutBlob)] == [
        False
    ] * 3 + [True]


BIG = bytes(9 << 20)


@pytest.mark.parametrize("argv", [["--with", "big"], ["--stdin", "big"]])
def test_a_large_file_is_offered_by_name_to_a_local_master(
    cli: Cli, fake: FakeMaster, program: str, argv: list[str]
) -> None:
    (cli.folder / "big").write_bytes(BIG)
    digest = sha256(b"whatever the master has read").hexdigest()
    fake.reply(messages.TakeFile, messages.TakeFileReply(digest))
    fake.reply(messages.MissingBlobs, messages.MissingBlobsReply(()))
    assert cli("run", *argv, program).returncode == 0
    path = cli.folder / "big"
    assert fake.received(messages.TakeFile) == [messages.TakeFile.of(str(path), path.stat())]
    assert digest in {file.sha256 for file in submitted(fake).program.uploads}
    assert fake.payload(messages.PutBlob) == b""


def test_a_large_file_that_the_master_does_not_read_is_sent(cli: Cli, fake: FakeMaster, program: str) -> None:
    (cli.folder / "big").write_bytes(BIG)
    assert cli("run", "--with", "big", program).returncode == 0
    assert len(fake.received(messages.TakeFile)) == 1
    assert len(fake.payload(messages.PutBlob)) >= len(BIG)
    assert submitted(fake).program.data[0].sha256 == sha256(BIG).hexdigest()


def test_a_large_file_whose_path_is_not_utf_8_is_sent(cli: Cli, fake: FakeMaster, program: str) -> None:
    path = cli.folder / os.fsdecode(b"caf\xe9")
    path.write_bytes(BIG)
    assert cli("run", "--stdin", str(path), program).returncode == 0
    assert len(fake.payload(messages.PutBlob)) >= len(BIG)


def test_large_files_are_not_read_when_another_file_is_missing(cli: Cli, fake: FakeMaster, program: str) -> None:
    (cli.folder / "big").write_bytes(BIG)
    assert cli("run", "--with", "big", "--with", "nowhere", program).returncode == 127
    assert not fake.received(messages.TakeFile)


def test_upload_progress_is_in_json_and_not_in_a_pipe(cli: Cli, fake: FakeMaster, program: str) -> None:
    half = messages.Progress(1, 3, "h2", "uploading", 1 << 29, 1 << 30)
    fake.reply(messages.Watch, half, messages.Progress(1, 3, "h2", "running"), messages.Ended(job_line()))
    for argv in ([], ["-q"], ["-v"]):
        assert b"uploading" not in cli(*argv, "run", program).stderr
    lines = [json.loads(line) for line in cli("run", "--json", program).stdout.splitlines()]
    assert (lines[1]["sent_bytes"], lines[1]["total_bytes"]) == (1 << 29, 1 << 30)
    assert "sent_bytes" not in lines[2]


def test_upload_progress_on_a_terminal_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(render, "write_err", written.append)
    screen = PlainScreen(written.append, render.TextStyle(terminal=True, columns=80), notes=True)
    screen.progress(messages.Progress(1, 3, "h2", "uploading", 1 << 29, 1 << 30))
    screen.progress(messages.Progress(1, 3, "h2", "running"))
    assert written == ["\r\x1b[Kuploading to h2 [##########..........]  50% 512M of 1G", "\r\x1b[K"]
    written.clear()
    clock = iter([0.0, 0.01, 0.5, 0.5])
    transfer = TransferBar(render.TextStyle(terminal=True, columns=80), shown=True, clock=lambda: next(clock))
    for sent in (1, 2, 3):
        transfer.update("sending big", sent << 20, 4 << 20)
    transfer.clear()
    assert [text.rpartition(" of ")[0][-2:] for text in written] == ["1M", "3M", ""]


def test_the_error_of_a_refused_upload_is_printed(cli: Cli, fake: FakeMaster) -> None:
    (cli.folder / "big.py").write_bytes(bytes(40 * 1024 * 1024))
    fake.reply(messages.PutBlob, messages.Failure("not-allowed", "too big", "make it smaller", 1), CLOSE)
    done = cli("run", "big.py")
    assert (done.returncode, done.stderr) == (1, b"error: too big\nhint: make it smaller\n")


# --- standard input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, 300 * 1024, 2_500_000])
def test_a_pipe_is_read_to_its_end(cli: Cli, fake: FakeMaster, program: str, size: int) -> None:
    content = os.urandom(size)
    assert cli("run", program, stdin=content).returncode == 0
    stdin = submitted(fake).program.stdin
    assert stdin is not None
    assert (stdin.size, stdin.sha256) == (size, sha256(content).hexdigest())
    assert fake.payload(messages.PutBlob).endswith(content)


def test_a_file_or_socket_as_stdin_is_sent(cli: Cli, fake: FakeMaster, program: str) -> None:
    (cli.folder / "in").write_bytes(b"from a file")
    assert cli("run", "--stdin", "in", program).returncode == 0
    ours, theirs = socket.socketpair()
    with ours, theirs:
        child = cli.start("run", program, stdin=theirs.fileno())
        ours.sendall(b"from a socket")
        ours.shutdown(socket.SHUT_WR)
        assert child.wait(10) == 0
    sent = fake.payload(messages.PutBlob)
    assert b"from a file" in sent
    assert b"from a socket" in sent


def test_dev_null_none_and_a_closed_stdin_send_no_input(cli: Cli, fake: FakeMaster, program: str) -> None:
    assert cli("run", program).returncode == 0
    assert cli("run", "--stdin", "none", program, stdin=b"unread").returncode == 0
    closed = subprocess.run(
        ["sh", "-c", 'exec "$0" -m sshgrid run "$1" <&-', sys.executable, program],
        cwd=cli.folder, env=cli.environ, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert closed.returncode == 0, closed.stderr
    requests = [request for request in fake.received(messages.Submit) if isinstance(request, messages.Submit)]
    assert [request.submission.program.stdin for request in requests] == [None] * 3


# --- Ctrl-C, closed pipes, lost masters ------------------------------------------------------------------------------


def test_ctrl_c_cancels_and_later_output_is_printed(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(messages.Watch, output("stdout", b"working\n"))
    fake.reply(
        messages.Cancel,
        messages.Done(1),
        output("stdout", b"cleaned up\n"),
        messages.Ended(job_line(state="CANCELLED")),
    )
    child = cli.start("run", program)
    read_until(child, b"working\n")
    interrupt(child)
    out, err = child.communicate(timeout=10)
    assert (child.returncode, out, err) == (130, b"cleaned up\n", b"")
    assert fake.received(messages.Cancel) == [messages.Cancel((JobId(42),), "INT")]


def test_a_second_ctrl_c_detaches_and_prints_the_id(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(messages.Watch, output("stdout", b"working\n"))
    fake.reply(messages.Cancel, messages.Done(1))
    child = cli.start("run", program)
    read_until(child, b"working\n")
    interrupt(child)
    fake.wait_for(messages.Cancel)
    interrupt(child)
    _, err = child.communicate(timeout=10)
    assert (child.returncode, err) == (130, b"job 42 continues: sshgrid attach 42\n")


def test_ctrl_c_cancels_while_the_output_is_not_read(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(messages.Watch, *[output("stdout", bytes(65536))] * 4)
    child = cli.start("run", program)
    read_until(child, b"\0")
    interrupt(child)
    fake.wait_for(messages.Cancel)


def test_ctrl_c_in_attach_leaves_the_job_alone(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(messages.Watch, output("stdout", b"working\n"))
    child = cli.start("attach", "7")
    read_until(child, b"working\n")
    interrupt(child)
    _, err = child.communicate(timeout=10)
    assert (child.returncode, err) == (130, b"job 7 continues: sshgrid attach 7\n")
    assert not fake.received(messages.Cancel)


@pytest.mark.parametrize("request_kind", [messages.Info, messages.Jobs])
def test_attach_looks_the_job_up_again_when_the_master_goes_away_before_it_answers(
    cli: Cli, fake: FakeMaster, request_kind: type[messages.Message]
) -> None:
    line = messages.JobsReply((job_line(7),))
    for kind in (messages.Info, messages.Jobs):
        fake.reply_in_turn(kind, *([[CLOSE]] if kind is request_kind else []), [line])
    fake.reply(messages.Watch, output("stdout", b"seven\n"), messages.Ended(job_line(7, exit_code=3, exit_status=3)))
    done = cli("attach", "last")
    assert (done.returncode, done.stdout, done.stderr) == (3, b"seven\n", b"")


def test_a_closed_pipe_ends_the_run_silently(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(messages.Watch, output("stdout", b"first\n"))
    child = cli.start("run", program)
    read_until(child, b"first\n")
    assert child.stdout is not None
    child.stdout.close()
    fake.send(output("stdout", b"second\n"))
    assert child.wait(10) == 141
    assert child.stderr is not None
    assert child.stderr.read() == b""
    fake.wait_for(messages.Cancel)
    assert fake.received(messages.Cancel) == [messages.Cancel((JobId(42),), "TERM")]


def test_a_client_that_is_killed_cancels_nothing(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(messages.Watch, output("stdout", b"working\n"))
    child = cli.start("run", program)
    read_until(child, b"working\n")
    child.kill()
    child.wait()
    assert not fake.received(messages.Cancel)


def test_F10_after_a_lost_master_nothing_is_printed_twice(cli: Cli, fake: FakeMaster, program: str) -> None:
    again = [output("stdout", b"one\ntwo\n"), output("stderr", b"e\n"), output("stdout", b"three\n")]
    fake.reply_in_turn(
        messages.Watch,
        [output("stdout", b"one\ntw"), output("stderr", b"e\n"), CLOSE],
        [*again, messages.Ended(job_line())],
    )
    done = cli("run", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"one\ntwo\nthree\n", b"e\n")


def test_F10_wait_continues_with_the_next_master(cli: Cli, fake: FakeMaster) -> None:
    fake.reply_in_turn(messages.Watch, [CLOSE], [CLOSE], [messages.Ended(job_line(exit_status=3))])
    done = cli("wait", "7")
    assert (done.returncode, done.stderr) == (3, b"")


def test_F10_logs_continue_with_the_next_master_after_the_printed_output(cli: Cli, fake: FakeMaster) -> None:
    def at(offset: int, piece: bytes) -> tuple[messages.Message, bytes]:
        return messages.Output("stdout", 1, len(piece), offset), piece

    fake.reply_in_turn(messages.Logs, [at(5, b"six\n"), CLOSE], [at(9, b"ten\n"), CLOSE], [messages.Ended(job_line())])
    done = cli("logs", "-f", "--tail", "1", "--stdout", "7")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"six\nten\n", b"")
    seen = [request.seen for request in fake.received(messages.Logs) if isinstance(request, messages.Logs)]
    assert seen == [(), (messages.Seen("stdout", 1, 9),), (messages.Seen("stdout", 1, 13),)]


def test_output_that_differs_after_a_lost_master_is_printed_again_and_reported(
    cli: Cli, fake: FakeMaster, program: str
) -> None:
    whole: list[Reply] = [output("stdout", b"other words\n", 2), messages.Ended(job_line())]
    fake.reply_in_turn(messages.Watch, [output("stdout", b"some"), CLOSE], whole, whole)
    done = cli("run", program)
    assert done.stdout == b"someother words\n"
    assert done.stderr == b"the output starts again: it differs from the output that was already printed\n"


def test_a_restart_is_reported_once(cli: Cli, fake: FakeMaster, program: str) -> None:
    first: list[Reply] = [output("stdout", b"aaaa"), messages.Restarted("stdout", 2), output("stdout", b"bb", 2)]
    rest: list[Reply] = [output("stdout", b"bb", 2), output("stdout", b"cc", 2), messages.Ended(job_line())]
    fake.reply_in_turn(messages.Watch, [*first, CLOSE], [*first[:2], *rest])
    done = cli("run", program)
    assert done.stdout == b"aaaabbcc"
    assert done.stderr.count(b"restarts") == 1


def test_a_job_is_submitted_once_when_the_master_exits_before_it_replies(
    cli: Cli, fake: FakeMaster, program: str
) -> None:
    fake.reply_in_turn(messages.Submit, [CLOSE], [messages.Accepted(JobId(42))])
    assert cli("run", program).returncode == 0
    keys = [request.key for request in fake.received(messages.Submit) if isinstance(request, messages.Submit)]
    assert len(keys) == 2
    assert len(set(keys)) == 1


# --- dry run, attach, logs, wait -------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_chosen_node_and_reasons_of_others(cli: Cli, fake: FakeMaster, program: str) -> None:
    reasons = (messages.NodeReason("h1", "NodeDown: no answer"),)
    fake.reply(messages.Explain, messages.ExplainReply("h2", (("h2", 0.25), ("h3", 0.5)), reasons))
    done = cli("run", "--dry-run", program)
    assert done.stdout.decode().splitlines() == [
        "NODE  CHOICE  SCORE  REASON",
        "h2    chosen   0.25",
        "h3             0.50",
        "h1                -  NodeDown: no answer",
    ]
    assert not fake.received(messages.Submit)


def test_logs_sends_its_options(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(
        messages.Logs, output("stdout", b"\xffout"), output("stderr", b"err"), messages.Ended(job_line(exit_status=3))
    )
    done = cli("logs", "--tail", "5", "--attempt", "2", "-f", "7")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\xffout", b"err")
    assert fake.received(messages.Logs) == [messages.Logs(JobId(7), 2, True, 5, ("compile", "stdout", "stderr"))]
    cli("logs", "--stdout", "7")
    assert fake.received(messages.Logs)[-1] == messages.Logs(JobId(7), 0, False, None, ("stdout",))


def test_wait_exits_with_the_status_of_one_job_and_0_or_1_for_several(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(messages.Watch, messages.Ended(job_line(exit_status=3)))
    assert cli("wait", "7").returncode == 3
    fake.reply(messages.Jobs, messages.JobsReply((job_line(1), job_line(2))))
    assert cli("wait", "1-2").returncode == 1
    fake.reply(messages.Watch, messages.Ended(job_line()))
    assert cli("wait", "all").returncode == 0
    assert messages.Watch(JobId(7), output=False) in fake.received(messages.Watch)


def test_wait_stops_after_its_timeout_with_124(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(messages.Watch)
    done = cli("wait", "--timeout", "50ms", "7")
    assert (done.returncode, done.stderr) == (124, b"error: job 7 has not ended after 50ms\nhint: sshgrid info 7\n")


# --- interactive -----------------------------------------------------------------------------------------------------


def test_interactive_on_a_pipe_streams_input_to_its_end(cli: Cli, fake: FakeMaster, program: str) -> None:
    def echo(message: messages.Message) -> list[object]:
        assert isinstance(message, messages.Input)
        return [output("stdout", b"got it\n")] if message.size else [messages.Ended(job_line())]

    fake.reply(messages.Watch)
    fake.scripts[messages.Input] = echo  # type: ignore[assignment]
    child = cli.start("run", "-I", program, stdin=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(b"line\n")
    child.stdin.flush()
    read_until(child, b"got it\n")
    child.stdin.close()
    assert child.wait(10) == 0
    assert fake.payload(messages.Input) == b"line\n"
    assert submitted(fake).interactive
    assert not submitted(fake).terminal


def test_interactive_restores_the_terminal_after_raw_mode(cli: Cli, fake: FakeMaster, program: str) -> None:
    import termios

    fake.reply(messages.Watch)
    fake.reply(messages.Input)
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    child = subprocess.Popen(
        [sys.executable, "-m", "sshgrid", "run", "-I", program],
        cwd=cli.folder,
        env=cli.environ,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    cli.children.append(child)
    fake.wait_for(messages.Resize)
    os.write(master, b"\x03")
    wait_until(lambda: b"\x03" in fake.payload(messages.Input), lambda: fake.requests)
    child.send_signal(signal.SIGWINCH)
    fake.wait_for(messages.Resize, 2)
    fake.send(messages.Ended(job_line(exit_status=5)))
    assert child.wait(10) == 5
    assert termios.tcgetattr(slave) == before
    assert submitted(fake).terminal
    os.close(master)
    os.close(slave)
