"""The commands with one request each: tables, JSON, errors; and what the client imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sshgrid.model import JobId, NodeState
from sshgrid.protocol import messages
from sshgrid.protocol.sweep_messages import Retry
from sshgrid.version import VERSION
from tests.service.conftest import ROOT, Cli
from tests.service.fake_master import FakeMaster, job_line, node_line

JOB_KEYS = {
    "id",
    "user",
    "program",
    "state",
    "phase",
    "node",
    "attempt",
    "submitted",
    "started",
    "seconds",
    "exit_code",
    "signal",
    "reason",
}
NODE_KEYS = {"name", "state", "reason", "cpu", "load", "memory_free", "running", "slots", "toolchains", "last_seen"}
ATTEMPT_KEYS = {
    "number",
    "node",
    "outcome",
    "started",
    "ended",
    "uploaded_bytes",
    "compiled",
    "cpu_seconds",
    "peak_memory",
}
ATTEMPT = messages.AttemptLine(1, "h1", "lost: no answer", 1_700_000_001.0, 1_700_000_011.0, 2048, True, 0.5, 1 << 20)


def printed(cli: Cli, *argv: str, status: int = 0) -> Any:
    done = cli(*argv)
    assert done.returncode == status, done.stderr
    assert done.stderr == b""
    return json.loads(done.stdout)


# --- ps, info, nodes -------------------------------------------------------------------------------------------------


def test_ps_is_a_table_without_borders(cli: Cli, fake: FakeMaster) -> None:
    killed = job_line(9, state="FAILED", exit_code=None, signal=9, reason="killed", program="a.py", name="nightly")
    fake.reply(messages.Jobs, messages.JobsReply((job_line(), killed)))
    assert cli("ps", "-a").stdout.decode().splitlines() == [
        "ID  USER  STATE      NODE  TIME  TRY  EXIT  PROGRAM           REASON",
        "42  ann   COMPLETED  h2    2.5s  1/3  0:0   Primes.java 1000",
        " 9  ann   FAILED     h2    2.5s  1/3  0:9   nightly: a.py     killed",
    ]
    assert fake.received(messages.Jobs) == [messages.Jobs()]


def test_ps_shows_only_active_jobs_by_default(cli: Cli, fake: FakeMaster) -> None:
    assert b"ID" not in cli("ps", "--no-header").stdout
    cli("ps", "--user", "bob", "--state", "failed,timeout", "--since", "2h")
    assert fake.received(messages.Jobs) == [
        messages.Jobs(active_only=True),
        messages.Jobs("", "bob", ("FAILED", "TIMEOUT"), 7200.0),
    ]


def test_ps_json_has_the_promised_keys(cli: Cli, fake: FakeMaster) -> None:
    value = printed(cli, "ps", "--json")
    assert value["schema"] == 1
    (job,) = value["jobs"]
    assert set(job) >= JOB_KEYS
    assert (job["submitted"], job["seconds"]) == ("2023-11-14T22:13:20.250Z", 2.5)


def test_info_json_has_attempts_and_for_a_waiting_job_why(cli: Cli, fake: FakeMaster) -> None:
    reasons = (messages.NodeReason("h1", "LoadTooHigh: 93% > 80%"),)
    fake.reply(messages.Info, messages.JobsReply((job_line(7, state="PENDING", attempts=(ATTEMPT,), why=reasons),)))
    value = printed(cli, "--json", "info", "7")
    assert set(value) >= JOB_KEYS
    assert set(value["attempts"][0]) >= ATTEMPT_KEYS
    assert value["attempts"][0]["ended"] == "2023-11-14T22:13:31.000Z"
    assert value["why"] == [{"schema": 1, "node": "h1", "reason": "LoadTooHigh: 93% > 80%"}]
    text = cli("info", "7").stdout.decode()
    assert "h1    lost: no answer  10s" in text
    assert "h1    LoadTooHigh: 93% > 80%" in text


def test_info_shows_both_attempts_of_a_task_with_a_speculative_one(cli: Cli, fake: FakeMaster) -> None:
    second = msgspec.structs.replace(ATTEMPT, number=2, node="h2", outcome="exited 0", speculative=True)
    first = msgspec.structs.replace(ATTEMPT, outcome="superseded by attempt 2")
    fake.reply(messages.Info, messages.JobsReply((job_line(7, attempts=(first, second)),)))
    assert [each["speculative"] for each in printed(cli, "--json", "info", "7")["attempts"]] == [False, True]
    text = cli("info", "7").stdout.decode()
    assert "1                h1    superseded by attempt 2" in text
    assert "2 (speculative)  h2    exited 0" in text


def test_info_takes_last(cli: Cli, fake: FakeMaster) -> None:
    assert printed(cli, "info", "last", "--json")["id"] == 42
    assert fake.received(messages.Jobs) == [messages.Jobs("last")]


def test_nodes_can_be_sorted_and_show_their_next_try(cli: Cli, fake: FakeMaster) -> None:
    down = node_line(
        "h1", state=NodeState.DOWN, reason="no route", cpu=None, load=None, memory_free=None, next_try_seconds=30.0
    )
    fake.reply(messages.Nodes, messages.NodesReply((down, node_line("h2", cpu=0.1), node_line("h3", cpu=0.9))))
    lines = cli("nodes", "--sort", "cpu").stdout.decode().splitlines()
    assert lines[0].split() == ["NAME", "STATE", "CPU", "LOAD", "MEMORY", "RUNNING", "REASON", "TOOLCHAINS"]
    assert [line.split()[0] for line in lines[1:]] == ["h3", "h2", "h1"]
    assert "no route, next try in 30s" in lines[3]
    value = printed(cli, "nodes", "--json")
    assert all(set(node) >= NODE_KEYS for node in value["nodes"])


def test_toolchains_are_grouped_by_version(cli: Cli, fake: FakeMaster) -> None:
    assert cli("toolchains", "--on", "h2").stdout.decode().splitlines()[1] == "java      *.java  17.0.15: h2"
    assert fake.received(messages.Toolchains) == [messages.Toolchains("h2")]
    assert printed(cli, "toolchains", "--json")["toolchains"][0]["nodes"][0]["version"] == "17.0.15"


# --- kill, rm, hold, release -----------------------------------------------------------------------------------------


def test_commands_that_change_jobs_send_their_request(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(messages.Jobs, messages.JobsReply((job_line(3), job_line(4))))
    for argv in (("kill", "3-4", "--signal", "sigusr1"), ("kill", "7", "--signal", "9"), ("rm", "7")):
        done = cli(*argv)
        assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert printed(cli, "hold", "7", "--json") == {"schema": 1, "count": 1, "jobs": [7]}
    assert cli("release", "7").returncode == 0
    seven = (JobId(7),)
    assert fake.received(messages.Cancel) == [
        messages.Cancel((JobId(3), JobId(4)), "USR1"),
        messages.Cancel(seven, "KILL"),
    ]
    assert fake.received(messages.Remove) == [messages.Remove(seven)]
    assert fake.received(messages.Hold) == [messages.Hold(seven), messages.Hold(seven, release=True)]


def test_kill_of_an_ended_job_exits_with_1(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(messages.Cancel, messages.Done(0))
    done = cli("kill", "7")
    assert (done.returncode, done.stderr) == (1, b"error: job 7 has already ended\nhint: sshgrid info 7\n")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("kill", "all"), "all jobs have ended"),
        (("hold", "3-4"), "3-4: no job waits"),
        (("release", "all"), "no job is held"),
        (("retry", "--failed", "all"), "no job has failed"),
    ],
)
def test_a_command_that_changes_none_of_several_jobs_exits_with_1(
    cli: Cli, fake: FakeMaster, argv: tuple[str, ...], message: str
) -> None:
    fake.reply(messages.Jobs, messages.JobsReply((job_line(3), job_line(4))))
    for request in (messages.Cancel, messages.Hold, Retry):
        fake.reply(request, messages.Done(0))
    done = cli(*argv)
    assert (done.returncode, done.stderr.decode()) == (1, f"error: {message}\nhint: sshgrid ps -a\n")


# --- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_of_the_master_is_printed_with_its_hint_or_as_json(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(messages.Info, messages.Failure("no-such-job", "no such job: 7", "sshgrid ps -a", 1))
    done = cli("info", "7")
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr == b"error: no such job: 7\nhint: sshgrid ps -a\n"
    error = {"code": "no-such-job", "message": "no such job: 7", "hint": "sshgrid ps -a"}
    assert printed(cli, "info", "7", "--json", status=1) == {"schema": 1, "error": error}
    assert b"Traceback" in cli("-vv", "info", "7").stderr


@pytest.mark.parametrize(
    ("argv", "begin"),
    [
        (("rnu", "x.py"), "error: no such command: rnu\nhint: sshgrid run\n"),
        (("ps", "--bogus"), "error: no such option"),
        (("run", "--time-limit", "soon", "x.py"), "error: --time-limit: 'soon' is not a duration\nhint: "),
        (("run", "--memory", "lots", "x.py"), "error: --memory: 'lots' is not a size\nhint: "),
        (("run", "--env", "1=2", "x.py"), "error: --env: not a variable name: '1'\nhint: "),
        (("run", "--flags", "'", "x.py"), "error: --flags: No closing quotation\nhint: "),
        (("run", "-I", "-d", "x.py"), "error: -I uses this terminal as standard input"),
        (("ps", "--state", "TIRED"), "error: --state: no such state: TIRED\nhint: "),
        (("kill", "7", "--signal", "HUPP"), "error: --signal: no such signal: HUPP\nhint: "),
    ],
)
def test_wrong_usage_exits_with_2_and_prints_a_hint(
    cli: Cli, fake: FakeMaster, argv: tuple[str, ...], begin: str
) -> None:
    (cli.folder / "x.py").write_text("")
    done = cli(*argv)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().startswith(begin)
    assert not fake.received(messages.Submit)


def test_wrong_usage_is_json_with_json(cli: Cli) -> None:
    value = printed(cli, "ps", "--bogus", "--json", status=2)
    assert value["error"]["code"] == "usage"


def test_a_closed_stdout_is_an_error(cli: Cli) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m sshgrid version >&-', sys.executable],
        cwd=cli.folder, env=cli.environ, capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.startswith(b"error: standard output is closed")) == (125, True)


def test_a_closed_pipe_exits_silently_with_141(cli: Cli, fake: FakeMaster) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "sshgrid", "ps", "-a"],
        cwd=cli.folder, env=cli.environ, stdout=write, stderr=subprocess.PIPE, timeout=30, check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_A34_a_jobs_name_cannot_repaint_the_terminal(cli: Cli, fake: FakeMaster) -> None:
    from sshgrid.terminal.render import TextStyle, table

    name = "x\x1b]52;c;aGk=\x07\r\x9b"
    assert "\x1b" not in table(("NAME",), [(name,)], TextStyle(terminal=True))
    assert "\\x1b]52" in table(("NAME",), [(name,)], TextStyle(terminal=True))
    assert name in table(("NAME",), [(name,)], TextStyle())


@pytest.mark.parametrize(
    ("argv", "environ", "coloured"),
    [
        (("ps", "-a"), {}, False),
        (("--color", "always", "ps", "-a"), {}, True),
        (("ps", "-a", "--color", "always"), {"NO_COLOR": "1"}, True),
    ],
)
def test_colour_is_off_for_a_pipe_unless_requested(
    cli: Cli, fake: FakeMaster, argv: tuple[str, ...], environ: dict[str, str], coloured: bool
) -> None:
    cli.environ |= environ
    assert (b"\x1b[32mCOMPLETED\x1b[0m" in cli(*argv).stdout) == coloured


def test_a_header_with_the_name_of_a_state_has_no_color(cli: Cli, fake: FakeMaster) -> None:
    assert b"RUNNING  REASON" in cli("--color", "always", "nodes").stdout.splitlines()[0]


# --- master, doctor, version, completion -----------------------------------------------------------------------------


def test_master_status_prints_its_fields_and_exits_with_1_without_a_master(cli: Cli) -> None:
    done = cli("master", "status")
    assert (done.returncode, done.stderr) == (
        1,
        b"error: no master is running for this inventory\nhint: sshgrid master start\n",
    )
    with FakeMaster(cli.places):
        value = printed(cli, "master", "status", "--json")
    assert {"schema", "pid", "version", "socket", "state_dir", "inventory", "uptime", "nodes", "jobs"} <= set(value)


def test_master_stop_waits_until_the_master_has_exited(cli: Cli, fake: FakeMaster) -> None:
    assert cli("master", "stop", "--drain").returncode == 0
    assert fake.received(messages.Stop) == [messages.Stop(drain=True)]
    assert not Path(cli.places.socket).exists()
    assert cli("master", "stop").stderr == b"no master is running\n"


def test_master_start_reports_a_running_master(cli: Cli, fake: FakeMaster) -> None:
    assert cli("master", "start").stdout == b"master runs, pid 4242\n"


def test_doctor_prints_settings_with_sources_and_checks_each_node(cli: Cli, fake: FakeMaster) -> None:
    down = node_line("h2", state=NodeState.DOWN, reason="no route to host")
    fake.reply(messages.Nodes, messages.NodesReply((node_line("h1"), down)))
    value = printed(cli, "doctor", "--json", status=1)
    assert (len(fake.received(messages.Diagnose)), fake.received(messages.CheckNodes)) == (1, []), "dials once"
    sources = {each["name"]: each["source"] for each in value["values"]}
    assert (sources["inventory"], sources["state_dir"]) == ("config", "SSHGRID_HOME")
    assert [(each["name"], each["ok"]) for each in value["checks"]] == [
        ("inventory", True),
        ("state_dir", True),
        ("disk", True),
        ("master", True),
        ("node h1", True),
        ("node h2", False),
    ]
    disk = next(check for check in value["checks"] if check["name"] == "disk")
    assert disk["ok"]
    assert disk["detail"].endswith(" free")
    assert "FAILED  no route to host" in cli("doctor").stdout.decode()


def test_doctor_names_the_node_that_does_not_exist(cli: Cli, fake: FakeMaster) -> None:
    fake.reply(messages.Diagnose, messages.Failure("no-such-node", "no node 'alpha'", "sshgrid nodes", 1))
    checks = printed(cli, "doctor", "alpha", "--json", status=1)["checks"]
    assert checks[-1] == {"name": "node alpha", "ok": False, "detail": "no node 'alpha'", "hint": "sshgrid nodes"}


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    project = tomllib.loads((Path(ROOT) / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
    assert cli("version").stdout == cli("--version").stdout == f"sshgrid {VERSION}\n".encode()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(cli: Cli, shell: str) -> None:
    assert b"_SSHGRID_COMPLETE" in cli("completion", shell).stdout


def test_completion_of_node_names_starts_no_master(cli: Cli) -> None:
    cli.environ |= {"_SSHGRID_COMPLETE": "bash_complete", "COMP_WORDS": "sshgrid run --on h1,h", "COMP_CWORD": "3"}
    assert cli().stdout == b"\n"
    assert not Path(cli.places.socket).exists()
    with FakeMaster(cli.places):
        assert cli().stdout.split() == [b"plain,h1,h2"]


# --- what is imported ------------------------------------------------------------------------------------------------

HEAVY = {"asyncio", "asyncssh", "pydantic", "yaml", "rich", "prompt_toolkit", "sqlite3", "pathlib"}


@pytest.mark.parametrize(
    "argv", [["--help"], ["run", "x.py"], ["run", "-d", "x.py"], ["ps"], ["nodes"], ["info", "1"], ["logs", "1"]]
)
def test_the_client_imports_no_large_module(cli: Cli, fake: FakeMaster, argv: list[str]) -> None:
    (cli.folder / "x.py").write_text("")
    # -S: without the imports of .pth files.
    path = os.pathsep.join([ROOT, *(each for each in sys.path if each.endswith("site-packages"))])
    code = (
        "import os, sys; leave = os._exit; "
        "os._exit = lambda status: (print(*sorted(sys.modules), file=sys.stderr, flush=True), leave(status)); "
        f"sys.argv[1:] = {argv!r}; from sshgrid.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=cli.folder, env={**cli.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=30,
        check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    loaded = set(done.stderr.split())
    assert "sshgrid.cli" in loaded
    assert loaded & HEAVY == set()
