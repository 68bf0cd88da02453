"""`sweep`, `progress` and `retry` against a scripted master: requests, output, records and --resume."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from sshgrid.model import Halt, JobId, Submission, Sweep
from sshgrid.protocol import messages
from sshgrid.protocol.sweep_messages import (
    ProgressOf,
    Retry,
    SweepProgress,
    TaskEnded,
    TaskLine,
    TaskOutput,
    WatchSweep,
)
from sshgrid.sweeps import inputs, parameters
from tests.service.cli.test_run import read_until
from tests.service.conftest import Cli, interrupt, wait_until
from tests.service.fake_master import CLOSE, FakeMaster, Reply, job_line

ENDED = messages.Ended(job_line(state="COMPLETED", reason=""))


def task(number: int, out: bytes = b"", err: bytes = b"", status: int = 0, **changes: object) -> list[Reply]:
    """The messages about one task."""
    outputs: list[Reply] = [
        (TaskOutput(number, stream, len(piece)), piece) for stream, piece in (("stdout", out), ("stderr", err)) if piece
    ]
    values: dict[str, object] = {
        "number": number, "state": "FAILED" if status else "COMPLETED", "node": "h2", "attempt": 1,
        "started": 1_700_000_000.0, "seconds": 0.5, "exit_status": status, "signal": None, "reason": "",
    }  # fmt: skip
    return [*outputs, TaskEnded(TaskLine(**{**values, **changes}))]  # type: ignore[arg-type]


def progress(ended: int = 1, failed: int = 0, running: int = 2) -> SweepProgress:
    return SweepProgress(JobId(42), 3, ended, failed, running, 0)


def submitted(fake: FakeMaster) -> list[Submission]:
    return [request.submission for request in fake.received(messages.Submit) if isinstance(request, messages.Submit)]


def keys(fake: FakeMaster) -> list[str]:
    return [request.key for request in fake.received(messages.Submit) if isinstance(request, messages.Submit)]


def plan_of(fake: FakeMaster) -> Sweep:
    plan = submitted(fake)[-1].sweep
    assert plan is not None
    return plan


def haves(fake: FakeMaster) -> list[str]:
    return [request.have for request in fake.received(WatchSweep) if isinstance(request, WatchSweep)]


def known(fake: FakeMaster, **changes: object) -> None:
    """The master has the sweep."""
    fields: dict[str, object] = {"program": "hello.py", "state": "RUNNING", "exit_status": None, "sweep": progress()}
    fake.reply(messages.Info, messages.JobsReply((job_line(42, **{**fields, **changes}),)))


def rows(folder: Path) -> list[list[str]]:
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


# --- requests ---------------------------------------------------------------------------------------------------------


def test_a_sweep_is_submitted_with_its_table_and_template(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, ENDED)
    argv = ["-p", "x=1..3", "-p", "y=a,b", "-j", "5", "--halt", "soon,fail=10%", "--timeout", "90s", "--retries", "4"]
    assert cli("sweep", *argv, program, "--n={x}", "{y}").returncode == 0
    got = submitted(fake)[0]
    plan = plan_of(fake)
    table = parameters.Table(
        (parameters.Axis(("x",), ((b"1",), (b"2",), (b"3",))), parameters.Axis(("y",), ((b"a",), (b"b",))))
    )
    assert plan.table.sha256 == sha256(parameters.encode(table)).hexdigest()
    assert (plan.tasks, plan.chosen, plan.at_once, plan.halt) == (6, "", 5, Halt("soon", "fail", None, 10.0))
    assert got.program.args == (b"--n={x}", b"{y}")
    assert (got.program.limits.wall_seconds, got.retries, got.program.stdin) == (90.0, 4, None)
    assert parameters.encode(table) in [payload for _, payload in fake.requests]


@pytest.mark.parametrize(
    ("argv", "commands"),
    [
        (["-p", "x=1..3", "hello.py"], ["hello.py 1", "hello.py 2", "hello.py 3"]),
        (["hello.py", "-p", "x=1..2"], ["hello.py 1", "hello.py 2"]),
        (["hello.py", "-n", "5", "--size={x}", "-p", "x=1..2"], ["hello.py -n 5 --size=1", "hello.py -n 5 --size=2"]),
        (["hello.py", "--", "-v", "-p", ":::", "a b", "c"], ["hello.py -v -p 'a b'", "hello.py -v -p c"]),
        (["hello.py", ":::", "-v", "--", "-j"], ["hello.py -v", "hello.py --", "hello.py -j"]),
        (["-p", "x=1,2", "hello.py", "{2}-{x}", ":::", "a", "b"],
         ["hello.py a-1", "hello.py b-1", "hello.py a-2", "hello.py b-2"]),
        (["--zip", "-p", "x=1,2", "hello.py", ":::", "a", "b"], ["hello.py 1 a", "hello.py 2 b"]),
        (["--each-line", "lines", "hello.py", "{#}:{/.}"], ["hello.py 1:b", "hello.py 2:c"]),
        (["--csv", "table.csv", "hello.py", "{y}", "{x}"], ["hello.py 2 1", "hello.py 'q r' 3"]),
        (["-p", "x=@lines", "hello.py"], ["hello.py a/b.txt", "hello.py c"]),
    ],
)  # fmt: skip
def test_a_dry_run_prints_each_command_without_a_master(
    cli: Cli, program: str, argv: list[str], commands: list[str]
) -> None:
    (cli.folder / "lines").write_text("a/b.txt\nc\n")
    (cli.folder / "table.csv").write_text("x,y\n1,2\n3,q r\n")
    done = cli("sweep", "--dry-run", *argv)
    assert (done.returncode, done.stdout.decode().splitlines(), done.stderr) == (0, commands, b"")


def test_backup_is_off_by_default(cli: Cli, fake: FakeMaster, program: str) -> None:
    for argv in ([], ["--backup"]):
        fake.reply(WatchSweep, ENDED)
        assert cli("sweep", *argv, "-p", "x=1..3", program).returncode == 0
    assert [each.sweep.backup for each in submitted(fake) if each.sweep] == [False, True]


def with_inputs(cli: Cli, *names: str) -> None:
    (cli.folder / "in").mkdir()
    for name in names:
        (cli.folder / "in" / name).write_text(f"input {name}")


def inputs_of(fake: FakeMaster) -> inputs.Inputs:
    """The task inputs that were sent, with their contents."""
    sent = {
        sha256(payload).hexdigest(): payload
        for message, payload in fake.requests
        if isinstance(message, messages.PutBlob)
    }
    named = plan_of(fake).inputs
    assert named is not None
    found = inputs.decode(sent[named.sha256])
    assert set(found.sha256()) <= sent.keys()
    return found


def test_task_inputs_are_sent_once_each(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, ENDED)
    with_inputs(cli, "a", "b")
    assert cli("sweep", "--stdin", "in/{x}", "-p", "x=a,b", "-p", "y=1..3", program, "{y}").returncode == 0
    found = inputs_of(fake)
    digests = [file.sha256 for number in range(1, 7) if (file := found.of(number))]
    assert digests == [sha256(f"input {name}".encode()).hexdigest() for name in "aaabbb"]
    sent = [message.sha256 for message in fake.received(messages.PutBlob) if isinstance(message, messages.PutBlob)]
    assert len(sent) == len(set(sent)) == 5  # the program, two inputs, both lists
    assert submitted(fake)[0].program.stdin is None


def test_a_dry_run_offers_no_large_file(cli: Cli, fake: FakeMaster, program: str) -> None:
    (cli.folder / "big").write_bytes(bytes(9 << 20))
    assert cli("sweep", "--dry-run", "--with", "big", "-p", "x=1", program).returncode == 0
    assert not fake.requests


def test_a_dry_run_shows_what_each_task_reads(cli: Cli, program: str) -> None:
    with_inputs(cli, "a b", "c")
    argv = ("--dry-run", "--stdin", "in/{1}", "hello.py", "{#}", ":::", "a b", "c")
    assert cli("sweep", *argv).stdout.decode().splitlines() == ["hello.py 1 < 'in/a b'", "hello.py 2 < in/c"]
    lines = [json.loads(line) for line in cli("--json", "sweep", *argv).stdout.splitlines()]
    assert [line["stdin"] for line in lines] == ["in/a b", "in/c"]


def test_all_unusable_inputs_are_reported_together_before_anything_runs(
    cli: Cli, fake: FakeMaster, program: str
) -> None:
    with_inputs(cli, "1", "3")
    (cli.folder / "in" / "2").mkdir()
    done = cli("sweep", "--stdin", "in/{x}", "-p", "x=1..9", "-p", "y=1,2", program, "{y}")
    assert done.returncode == 2
    argv = "task {}: in/{}: No such file or directory (--stdin)"
    lines = done.stderr.decode().splitlines()
    assert lines[0] == "error: task 3: in/2: is not a file (--stdin)"
    assert lines[1:6] == [*(argv.format(2 * x - 1, x) for x in range(4, 8)), "and 2 more"]
    assert fake.requests == []


def test_a_resumed_sweep_needs_only_the_inputs_of_missing_tasks(cli: Cli, fake: FakeMaster, program: str) -> None:
    with_inputs(cli, "1", "2", "3")
    argv = ("--results", "R", "--stdin", "in/{x}", "-p", "x=1..3", "hello.py")
    fake.reply(WatchSweep, *task(1, b"a\n"), *task(2, state="CANCELLED", status=143), ENDED)
    cli("sweep", *argv)
    known(fake, state="CANCELLED", exit_status=143)
    (cli.folder / "in" / "1").unlink()
    (cli.folder / "in" / "2").write_text("another")
    fake.reply(WatchSweep, *task(2, b"b\n"), *task(3, b"c\n"), ENDED)
    assert cli("sweep", "--resume", *argv).returncode == 0
    found = inputs_of(fake)
    assert (plan_of(fake).chosen, found.of(1)) == ("2-3", None)
    assert [file.size for number in (2, 3) if (file := found.of(number))] == [len("another"), len("input 3")]
    other = cli("sweep", "--resume", *argv[:2], "--stdin", "./in/{x}", *argv[4:])
    assert b"belongs to another sweep" in other.stderr


def test_values_can_come_from_a_pipe(cli: Cli, program: str) -> None:
    done = cli("sweep", "--dry-run", "--each-line", "-", program, stdin=b"a\nb\n")
    assert done.stdout == b"hello.py a\nhello.py b\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["hello.py"], "a sweep needs a parameter"),
        (["--stdin", "{y}", "-p", "x=1..3", "hello.py"], "--stdin: unknown placeholder {y}"),
        (["-p", "x=1..3", "hello.py", "{y}"], "unknown placeholder {y}"),
        (["-p", "x=1..3", "-p", "z=1", "hello.py", "{x}"], "'z'"),
        (["-p", "x=", "hello.py"], "-p: the parameter 'x' has no values"),
        (["-p", "x=1..3", "-p", "x=1", "hello.py"], "given 2 times"),
        (["--zip", "-p", "x=1..3", "-p", "y=1,2", "hello.py"], "same number of values"),
        (["--csv", "ragged.csv", "hello.py"], "ragged.csv:3"),
        (["--csv", "empty", "hello.py"], "empty:1"),
        (["--each-line", "empty", "hello.py"], "--each-line empty: 1: the file has no lines"),
        (["-p", "x=@missing", "hello.py"], "no such file of values: missing"),
        (["--csv", ".", "hello.py"], "Is a directory"),
        (["-j", "0", "-p", "x=1", "hello.py"], "'-j'"),
        (["--halt", "later", "-p", "x=1", "hello.py"], "--halt: 'later'"),
        (["--halt", "now,fail=1", "--max-fails", "1", "-p", "x=1", "hello.py"], "--max-fails"),
        (["--resume", "-p", "x=1", "hello.py"], "--resume needs a record"),
        (["-d", "--joblog", "L", "-p", "x=1", "hello.py"], "-d does not wait"),
        (["-d", "--results", "R", "-p", "x=1", "hello.py"], "-d does not wait"),
        (["-d", "--dry-run", "-p", "x=1", "hello.py"], "--dry-run runs nothing"),
        (["--backup", "--on-host-loss", "fence", "-p", "x=1", "hello.py"], "--on-host-loss fence forbids that"),
        (["--backup", "--on-host-loss", "wait", "-p", "x=1", "hello.py"], "--on-host-loss wait forbids that"),
        (["--stdin", "-", "--each-line", "-", "hello.py"], "standard input is already read by --stdin"),
        (["--joblog", "hello.py", "-p", "x=1", "hello.py"], "hello.py is not a joblog"),
        (["--joblog", "no/folder", "-p", "x=1", "hello.py"], "no/folder: No such file"),
        (["--results", "hello.py/x", "-p", "x=1", "hello.py"], "hello.py/x: Not a directory"),
        (["-p", "x=1", "missing.py"], "no such file: missing.py"),
    ],
)  # fmt: skip
def test_wrong_usage_is_reported_before_anything_runs(
    cli: Cli, fake: FakeMaster, program: str, argv: list[str], message: str
) -> None:
    (cli.folder / "ragged.csv").write_text("x,y\n1,2\n3\n")
    (cli.folder / "empty").write_bytes(b"")
    done = cli("sweep", *argv)
    assert done.returncode == (127 if "no such file" in message else 2)
    assert message in done.stderr.decode()
    assert fake.received(messages.Submit) == []
    assert (cli.folder / program).read_text() == "print('hello')\n"


def test_detach_prints_only_the_id(cli: Cli, fake: FakeMaster, program: str) -> None:
    done = cli("sweep", "-d", "-p", "x=1..3", program)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"42\n", b"")
    assert not fake.received(WatchSweep)


# --- what is shown ----------------------------------------------------------------------------------------------------


def test_the_output_of_a_task_is_printed_in_one_piece_at_its_end(cli: Cli, fake: FakeMaster, program: str) -> None:
    second = task(2, b"c\nd", b"oh\n")
    fake.reply(WatchSweep, *task(1, b"a\n")[:-1], *second, task(1)[-1], (TaskOutput(3, "stdout", 4), b"half"), ENDED)
    done = cli("sweep", program, ":::", "p", "q", "r")
    assert (done.stdout, done.stderr, done.returncode) == (b"c\nda\n", b"oh\n", 0)


def test_tag_prefixes_each_line_with_the_values(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1, b"a\nb\n", b"e\n"), *task(2, b"c"), ENDED)
    done = cli("sweep", "--tag", "-p", "x=1,2", program, ":::", "q")
    assert (done.stdout, done.stderr) == (b"1 q\ta\n1 q\tb\n2 q\tc", b"1 q\te\n")


def test_keep_order_is_sent_to_the_master(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, ENDED)
    assert cli("sweep", "--keep-order", "-p", "x=1,2", program).returncode == 0
    assert fake.received(WatchSweep) == [WatchSweep(JobId(42), keep_order=True)]


@pytest.mark.parametrize("status", [0, 3, 101, 125, 126])
def test_the_exit_status_is_that_of_the_sweep(cli: Cli, fake: FakeMaster, program: str, status: int) -> None:
    fake.reply(WatchSweep, messages.Ended(job_line(state="FAILED" if status else "COMPLETED", exit_status=status)))
    assert cli("sweep", "-p", "x=1..3", program).returncode == status


def test_a_task_that_hit_a_limit_is_reported(cli: Cli, fake: FakeMaster, program: str) -> None:
    late = task(2, status=124, state="TIMEOUT", reason="time limit of 1s")
    fake.reply(WatchSweep, *late, messages.Ended(job_line(state="FAILED", exit_status=1, reason="1 of 2 tasks failed")))
    assert cli("sweep", "-p", "x=1,2", program).stderr == b"error: task 42.2: time limit of 1s\n"


def test_progress_without_a_terminal_needs_an_option(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, progress(), ENDED)
    assert cli("sweep", "-p", "x=1..3", program).stderr == b""
    assert cli("sweep", "--bar", "-p", "x=1..3", program).stderr.startswith(b"[######....")
    assert cli("sweep", "--eta", "-p", "x=1..3", program).stderr == b"1 of 3 done, 2 running, 0.0/s\n"
    assert cli("-q", "sweep", "--eta", "-p", "x=1..3", program).stderr == b""


def test_json_prints_a_line_for_each_event_and_the_sweep_last(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, progress(), *task(1, b"hi\n", b"\xff"), messages.Ended(job_line(sweep=progress(ended=3))))
    lines = [json.loads(line) for line in cli("sweep", "--json", "-p", "x=1..3", program).stdout.splitlines()]
    assert [line.get("event") for line in lines] == ["accepted", "progress", "output", "output", "task", None]
    assert all(line["schema"] == 1 for line in lines)
    assert (lines[2]["task"], lines[2]["text"], lines[3]["base64"]) == (1, "hi\n", "/w==")
    assert (lines[4]["id"], lines[4]["parameters"], lines[4]["exit_status"]) == ("42.1", {"x": "1"}, 0)
    assert (lines[-1]["id"], lines[-1]["sweep"]["ended"]) == (42, 3)


def test_attach_prints_the_tasks_of_a_sweep(cli: Cli, fake: FakeMaster) -> None:
    known(fake)
    fake.reply(WatchSweep, *task(1, b"a\n"), messages.Ended(job_line(exit_status=1, state="FAILED")))
    done = cli("attach", "42")
    assert (done.returncode, done.stdout) == (1, b"a\n")


def test_progress_prints_one_line(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(ProgressOf, progress(ended=2, failed=1, running=1))
    assert cli("progress", "42").stdout == b"sweep 42: 2 of 3 done, 1 failed, 1 running, 0.0/s\n"
    assert json.loads(cli("--json", "progress", "42").stdout)["failed"] == 1


def test_retry_sends_its_options_and_fails_when_nothing_changed(cli: Cli, fake: FakeMaster) -> None:
    fake.reply_in_turn(Retry, [messages.Done(2)], [messages.Done(0)])
    assert cli("retry", "42", "--failed").returncode == 0
    assert cli("retry", "7").returncode == 1
    assert fake.received(Retry) == [Retry((JobId(42),), True), Retry((JobId(7),), False)]


# --- Ctrl-C and lost masters ------------------------------------------------------------------------------------------


def test_ctrl_c_cancels_the_sweep_and_a_second_one_detaches(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1, b"a\n"))
    child = cli.start("sweep", "-p", "x=1..3", program)
    read_until(child, b"a\n")
    interrupt(child)
    wait_until(lambda: fake.received(messages.Cancel) == [messages.Cancel((JobId(42),), "INT")], lambda: fake.requests)
    interrupt(child)
    assert child.wait(10) == 130
    assert b"sweep 42 continues" in child.communicate()[1]


def test_after_a_lost_master_each_task_is_printed_once(cli: Cli, fake: FakeMaster, program: str) -> None:
    half: Reply = (TaskOutput(3, "stdout", 2), b"c\n")
    fake.reply_in_turn(WatchSweep, [*task(2, b"b\n"), half, CLOSE], [*task(3, b"c\n"), *task(1, b"a\n"), ENDED])
    done = cli("sweep", "--results", "R", "--joblog", "L", "-p", "x=1..3", program)
    assert (done.returncode, done.stdout) == (0, b"b\nc\na\n")
    assert haves(fake) == ["", "2"]
    assert [row[0] for row in rows(cli.folder / "R")] == ["2", "3", "1"]
    assert (cli.folder / "R" / "x=3" / "stdout").read_bytes() == b"c\n"


def test_a_closed_pipe_ends_the_sweep(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1, b"a\n" * 100_000), *task(2, b"b\n" * 100_000))
    child = cli.start("sweep", "-p", "x=1..3", program)
    read_until(child, b"a\n")
    assert child.stdout is not None
    child.stdout.close()
    assert child.wait(10) == 141
    assert set(fake.received(messages.Cancel)) == {messages.Cancel((JobId(42),), "TERM")}


# --- records and --resume ---------------------------------------------------------------------------------------------

RECORDED = ("sweep", "--results", "R", "--joblog", "L", "-p", "x=1..3", "hello.py")


def test_every_task_is_recorded_and_printed(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1, b"a\n"), *task(2, b"", b"e\n", 3), *task(3, signal=9, status=137), ENDED)
    assert cli(*RECORDED).stdout == b"a\n"
    assert [row[:4] for row in rows(cli.folder / "R")] == [
        ["1", "1", "0", ""], ["2", "2", "3", ""], ["3", "3", "137", "9"],
    ]  # fmt: skip
    lines = (cli.folder / "L").read_text().splitlines()[1:]
    assert [line.split("\t")[0::2] for line in lines] == [
        ["1", "1700000000.000", "0", "0", "hello.py 1"],
        ["2", "1700000000.000", "0", "3", "hello.py 2"],
        ["3", "1700000000.000", "0", "0", "hello.py 3"],
    ]


def test_cancelled_and_uncompiled_tasks_are_not_recorded(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1, state="CANCELLED", status=143), *task(2, state="COMPILE_ERROR", status=126), ENDED)
    cli(*RECORDED)
    assert rows(cli.folder / "R") == []
    assert len((cli.folder / "L").read_text().splitlines()) == 1


def test_resume_after_a_killed_client_continues_the_same_sweep(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(2, b"b\n"))
    child = cli.start(*RECORDED)
    read_until(child, b"b\n")
    child.kill()
    child.wait()
    known(fake)
    fake.reply(
        WatchSweep,
        *task(1, b"a\n"),
        *task(3, b"c\n", status=1),
        messages.Ended(job_line(state="FAILED", exit_status=1)),
    )
    done = cli(*RECORDED[:1], "--resume", *RECORDED[1:])
    assert (done.returncode, done.stdout) == (1, b"a\nc\n")
    assert haves(fake) == ["", "2"]
    assert len(set(keys(fake))) == 1
    assert [row[0] for row in rows(cli.folder / "R")] == ["2", "1", "3"]
    assert [line.split("\t")[0] for line in (cli.folder / "L").read_text().splitlines()] == ["Seq", "2", "1", "3"]


@pytest.mark.parametrize("records", [("--results", "R"), ("--joblog", "L"), ("--results", "R", "--joblog", "L")])
def test_resume_of_a_removed_sweep_submits_the_missing_tasks(
    cli: Cli, fake: FakeMaster, program: str, records: tuple[str, ...]
) -> None:
    fake.reply(WatchSweep, *task(2, b"b\n", status=3))
    child = cli.start("sweep", *records, "-p", "x=1..4", program)
    read_until(child, b"b\n")
    child.kill()
    child.wait()
    fake.reply(messages.Info, messages.Failure("no-such-job", "no such job: 42", "", 1))
    fake.reply(WatchSweep, *task(1), *task(3), *task(4), ENDED)
    assert cli("sweep", "--resume", *records, "-p", "x=1..4", program).returncode == 0
    assert plan_of(fake).chosen == "1,3-4"
    assert len(set(keys(fake))) == 2
    assert haves(fake)[-1] == "2"


def test_resume_of_a_cancelled_sweep_submits_a_new_one(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1), messages.Ended(job_line(state="CANCELLED", exit_status=130)))
    cli(*RECORDED)
    known(fake, state="CANCELLED", exit_status=130)
    fake.reply(WatchSweep, *task(2), *task(3), ENDED)
    assert cli(*RECORDED[:1], "--resume", *RECORDED[1:]).returncode == 0
    assert plan_of(fake).chosen == "2-3"


def test_resume_of_a_halted_sweep_submits_the_tasks_that_did_not_start(
    cli: Cli, fake: FakeMaster, program: str
) -> None:
    halted = messages.Ended(job_line(state="FAILED", exit_status=1))
    fake.reply(WatchSweep, *task(1, status=1), halted)
    assert cli(*RECORDED).returncode == 1
    known(fake, state="FAILED", exit_status=1)
    fake.reply_in_turn(WatchSweep, [halted], [*task(2), *task(3), ENDED])
    assert cli(*RECORDED[:1], "--resume", *RECORDED[1:]).returncode == 0
    assert plan_of(fake).chosen == "2-3"
    assert [row[0] for row in rows(cli.folder / "R")] == ["1", "2", "3"]


def test_a_client_killed_before_it_got_the_id_submits_under_the_same_key(
    cli: Cli, fake: FakeMaster, program: str
) -> None:
    fake.reply(messages.Submit)  # no answer
    child = cli.start(*RECORDED)
    wait_until(lambda: len(fake.received(messages.Submit)) == 1, lambda: fake.requests)
    child.kill()
    child.wait()
    del fake.scripts[messages.Submit]
    fake.reply(WatchSweep, *task(1), *task(2), *task(3), ENDED)
    assert cli(*RECORDED[:1], "--resume", *RECORDED[1:]).returncode == 0
    assert len(keys(fake)) == 2
    assert len(set(keys(fake))) == 1


def test_resume_failed_runs_failed_tasks_again(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1), *task(2, status=3), *task(3), ENDED)
    cli(*RECORDED)
    known(fake, state="FAILED", exit_status=1)
    fake.reply(WatchSweep, *task(2), ENDED)
    assert cli(*RECORDED[:1], "--resume-failed", *RECORDED[1:]).returncode == 0
    assert plan_of(fake).chosen == "2"
    assert sorted(row[0] + row[2] for row in rows(cli.folder / "R")) == ["10", "20", "30"]
    assert [line.split("\t")[0] for line in (cli.folder / "L").read_text().splitlines()] == ["Seq", "1", "2", "3", "2"]


def test_resume_with_every_task_recorded_sends_nothing(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1), *task(2), *task(3), ENDED)
    argv = ("sweep", "--joblog", "L", "-p", "x=1..3", program)
    cli(*argv)
    assert not (cli.folder / "L.sweep.json").exists()
    before = len(fake.requests)
    assert cli(argv[0], "--resume", *argv[1:]).returncode == 0
    assert len(fake.requests) == before


def test_resume_without_records_submits_the_sweep(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1), ENDED)
    assert cli("sweep", "--resume", "--results", "R", "-p", "x=1", program).returncode == 0
    assert plan_of(fake).chosen == ""


def test_a_dry_run_with_resume_prints_the_rest_and_changes_nothing(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1), *task(2, status=3), ENDED)
    cli(*RECORDED)
    before = {path: path.read_bytes() for path in cli.folder.rglob("*") if path.is_file() and "home" not in path.parts}
    assert cli("sweep", "--dry-run", "--resume", *RECORDED[1:]).stdout == b"hello.py 3\n"
    assert cli("sweep", "--dry-run", *RECORDED[1:]).stdout.count(b"\n") == 3
    assert {path: path.read_bytes() for path in before} == before


def test_records_of_another_sweep_are_refused(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1), ENDED)
    cli(*RECORDED)
    other = ["-p", "x=2..4", program]
    for argv, message in (
        (["--results", "R", "-p", "x=1..3", program], "R already has results"),
        (["--results", "R", "--resume", *other], "belongs to another sweep"),
        (["--joblog", "L", "--resume", *other], "belongs to another sweep: its task 1 is `hello.py 1`"),
    ):
        done = cli("sweep", *argv)
        assert (done.returncode, message in done.stderr.decode()) == (2, True), done.stderr
    assert len(fake.received(messages.Submit)) == 1


def test_a_full_disk_is_reported_and_resume_fetches_the_rest(cli: Cli, fake: FakeMaster, program: str) -> None:
    big = b"x" * 100_000
    fake.reply(WatchSweep, *task(1, b"small\n"), *task(2, big), *task(3), ENDED)
    done = subprocess.run(
        [sys.executable, "-m", "sshgrid", *RECORDED], cwd=cli.folder, env=cli.environ, capture_output=True, timeout=30,
        check=False, stdin=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )  # fmt: skip
    assert done.returncode == 125
    assert b"the sweep continues" in done.stderr
    assert b"--resume" in done.stderr
    assert fake.received(messages.Cancel) == []
    known(fake)
    fake.reply(WatchSweep, *task(2, big), *task(3), ENDED)
    assert cli(*RECORDED[:1], "--resume", *RECORDED[1:]).returncode == 0
    assert haves(fake)[-1] == "1"
    assert [row[0] for row in rows(cli.folder / "R")] == ["1", "2", "3"]
    assert (cli.folder / "R" / "x=2" / "stdout").read_bytes() == big


def test_equal_rows_get_different_folders(cli: Cli, fake: FakeMaster, program: str) -> None:
    fake.reply(WatchSweep, *task(1, b"1"), *task(2, b"2"), ENDED)
    cli("sweep", "--results", "R", program, ":::", "a", "A")
    assert sorted(path.read_bytes() for path in (cli.folder / "R").glob("*/stdout")) == [b"1", b"2"]


def test_resume_completes_each_task_once_wherever_the_client_was_killed(
    cli: Cli, fake: FakeMaster, program: str
) -> None:
    """The client is killed at its n-th write to a record, for many n."""
    everything = [message for number in range(1, 9) for message in task(number, b"%d\n" % number)]
    for tracer in range(1, 40, 2):
        fake.requests.clear()
        fake.scripts.pop(messages.Info, None)
        fake.reply(WatchSweep, *everything, ENDED)
        name = f"R{tracer}"
        argv = ["--results", name, "--joblog", f"{name}.log", "-p", "x=1..8", program]
        child = subprocess.run(
            [sys.executable, "-c", KILLED_AT, str(tracer), "sweep", *argv],
            cwd=cli.folder, env=cli.environ, capture_output=True, timeout=30, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert child.returncode == -signal.SIGKILL, child
        known(fake)

        def rest(request: object) -> list[Reply]:
            assert isinstance(request, WatchSweep)
            have = {n for span in parameters.parse_ranges(request.have, 8) for n in span} if request.have else set()
            return [
                message for number in range(1, 9) if number not in have for message in task(number, b"%d\n" % number)
            ] + [ENDED]

        fake.scripts[WatchSweep] = rest
        assert cli("sweep", "--resume", *argv).returncode == 0
        assert sorted(int(row[0]) for row in rows(cli.folder / name)) == list(range(1, 9))
        logged = [line.split("\t")[0] for line in (cli.folder / f"{name}.log").read_text().splitlines()[1:]]
        assert sorted(map(int, logged)) == list(range(1, 9))
        for number in range(1, 9):
            assert (cli.folder / name / f"x={number}" / "stdout").read_bytes() == b"%d\n" % number
        assert not [path for path in (cli.folder / name).iterdir() if path.name.startswith(".")]


# The command line, which kills itself at its n-th change of a record.
KILLED_AT = """
import os, signal, sys
left = int(sys.argv.pop(1))
def counted(what):
    def instead(*args, **more):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return what(*args, **more)
    return instead
for name in ("replace", "mkdir", "ftruncate"):
    setattr(os, name, counted(getattr(os, name)))
write = os.write
os.write = lambda descriptor, piece: (counted_write if descriptor > 2 else write)(descriptor, piece)
counted_write = counted(write)
from sshgrid.cli import main
sys.argv[0] = "sshgrid"
main()
"""


def test_the_progress_bar_does_not_split_output_lines(cli: Cli, fake: FakeMaster, program: str) -> None:
    """stderr is a terminal and stdout a pipe: the bar goes only to stderr."""
    fake.reply(WatchSweep, progress(), *task(1, b"a\n"), progress(ended=2), *task(2, b"b"), progress(ended=3), ENDED)
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "sshgrid", "sweep", "-p", "x=1..3", program],
        cwd=cli.folder, env=cli.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs,
    )  # fmt: skip
    out, _ = child.communicate(timeout=30)
    os.close(theirs)
    shown = os.read(ours, 65536)
    os.close(ours)
    assert out == b"a\nb"
    assert b"1 of 3 done" in shown
    assert shown.endswith(b"\r\x1b[K")
