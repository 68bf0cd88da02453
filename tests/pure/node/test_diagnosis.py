"""The findings of a node: each problem has a hint, and missing facts give no finding."""

from __future__ import annotations

import pytest

from sshgrid.node.diagnosis import findings, read
from sshgrid.protocol.messages import Finding

HEALTHY = """\
clock 1700000000
system Linux 6.1
shell /bin/bash
maxsessions 10
maxstartups 10:30:100
killuserprocesses no
linger no
space 9000000 500000 /var/tmp/sshgrid-1
tmp ok /tmp
space 9000000 - /tmp
limit 4000 Max processes
limit unlimited Max file size
limit 1024 Max open files
pidns yes
path /usr/bin:/bin
loginpath /usr/bin
"""


def found(*changes: str, ahead: float = 0.0) -> dict[str, Finding]:
    """Return the findings of a healthy node whose facts are replaced by `changes`."""
    names = {line.split()[0] for line in changes}
    lines = [line for line in HEALTHY.splitlines() if line.split()[0] not in names]
    return {each.name: each for each in findings(read("\n".join([*lines, *changes]).encode()), ahead, 1.0)}


def test_healthy_node_has_no_problem_and_no_hint() -> None:
    assert [each for each in found().values() if not each.ok or each.hint] == []
    assert {"clock", "space", "logind", "PATH", "isolation", "sshd sessions"} <= found().keys()


@pytest.mark.parametrize(
    ("changes", "name", "detail", "hint"),
    [
        (["maxsessions 2"], "sshd sessions", "MaxSessions 2", "MaxSessions 10"),
        (["maxstartups 1:30:2"], "sshd logins", "MaxStartups 1:30:2", "MaxStartups 10"),
        (["killuserprocesses yes"], "logind", "killed when the connection ends", "enable-linger"),
        (["space 5000 - /var/tmp/x"], "space", "4.9M free in /var/tmp/x", "df /var/tmp/x"),
        (["space 9000000 3 /var/tmp/x"], "space", "3 files", "df /var/tmp/x"),
        (["tmp unfit /tmp"], "temporary files", "/tmp", "ls -ld /tmp"),
        (["limit 20 Max processes"], "limit of processes", "20", "ulimit -u"),
        (["limit 4096 Max file size"], "limit of file size", "4096", "ulimit -f"),
    ],
)
def test_problem_has_a_number_and_a_hint(changes: list[str], name: str, detail: str, hint: str) -> None:
    finding = found(*changes)[name]
    assert not finding.ok
    assert detail in finding.detail
    assert hint in finding.hint


@pytest.mark.parametrize(
    ("ahead", "ok", "words"),
    [(0.4, True, "same time as the master"), (90, False, "90 s ahead"), (-90, False, "90 s behind")],
)
def test_clock_that_is_far_off_is_a_problem(ahead: float, ok: bool, words: str) -> None:
    finding = found(ahead=ahead)["clock"]
    assert (finding.ok, words in finding.detail) == (ok, True)


def test_account_with_lingering_enabled_is_healthy() -> None:
    assert found("killuserprocesses yes", "linger yes")["logind"].ok


def test_folders_that_only_a_login_shell_searches_have_a_hint() -> None:
    finding = found("loginpath /opt/go/bin:/usr/bin::relative:/opt/jdk/bin")["PATH"]
    assert finding.ok
    assert "/opt/go/bin, /opt/jdk/bin" in finding.detail
    assert ".bashrc" in finding.hint


@pytest.mark.parametrize(
    ("facts", "hint"),
    [
        (["barrier unshare is not installed"], "util-linux"),
        (["barrier x", "sysctl 0 kernel/unprivileged_userns_clone"], "kernel.unprivileged_userns_clone=1"),
        (["barrier x", "sysctl 0 user/max_user_namespaces"], "user.max_user_namespaces"),
        (["barrier x", "sysctl 1 kernel/apparmor_restrict_unprivileged_userns"], "apparmor_restrict"),
        (["barrier mount /proc failed", "sysctl 100 user/max_user_namespaces"], "container"),
    ],
)
def test_weaker_isolation_has_a_reason_and_a_hint(facts: list[str], hint: str) -> None:
    lines = [line for line in HEALTHY.splitlines() if not line.startswith("pidns")]
    finding = {each.name: each for each in findings(read("\n".join([*lines, *facts]).encode()), 0, 1)}
    assert finding["isolation"].ok
    assert facts[0].removeprefix("barrier ") in finding["isolation"].detail
    assert hint in finding["isolation"].hint


def test_missing_facts_are_not_judged() -> None:
    assert all(each.ok for each in findings(read(b"\xff junk\n\n"), 0.0, 1.0))
