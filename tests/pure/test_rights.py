"""Who may ask what: one line for each request, for an owner, an admin, a user, and a user whose job it is not."""

from __future__ import annotations

from typing import get_args

import pytest

from sshgrid import rights, wire, wire_sweeps, wire_users
from sshgrid.model import Caps, JobId, Person, Program, Role, Submission
from sshgrid.rights import Allowed, Hidden, Refused, may
from sshgrid.wire import Request

OWNER = Person("root", Role.OWNER)
ADMIN = Person("ada", Role.ADMIN)
ANN = Person("ann", Role.USER)
JOB = JobId(1)
ASKED = Submission(Program("", "a.sh", ()), "a.sh")

# What a user may ask of everything, of the user's own job alone, what admins may, and what only the owner may.
ANYBODY: list[Request] = [
    wire.MissingBlobs(()),
    wire.PutBlob("0" * 64, 0, True),
    wire.Submit(ASKED, "k"),
    wire.Explain(ASKED),
    wire.Jobs(),
    wire.Nodes(),
    wire.Toolchains(),
    wire.Status(),
    wire.Clients(),
]
OF_THE_JOB: list[Request] = [
    wire.Watch(JOB),
    wire.Logs(JOB),
    wire.Info(JOB),
    wire.Input(0),
    wire.Resize(80, 24),
    wire.Cancel((JOB,)),
    wire.Hold((JOB,)),
    wire.Remove((JOB,)),
    wire_sweeps.WatchSweep(JOB),
    wire_sweeps.ProgressOf(JOB),
    wire_sweeps.Tasks(JOB),
    wire_sweeps.Retry((JOB,)),
]
ADMINS: list[Request] = [
    wire.CheckNodes(""),
    wire.Diagnose("h1"),
    wire.Execute("h1", (b"true",)),
    wire.Reload(),
    wire.Stop(),
    wire_users.Users(),
    wire_users.AddUser("bob"),
    wire_users.RemoveUser("bob"),
    wire_users.DisableUser("bob"),
    wire_users.SetPassword("bob", "secret word"),
    wire_users.AddKey("bob", "ssh-ed25519 AAAA"),
    wire_users.RemoveKey("bob", "SHA256:x"),
    wire_users.SetCaps("bob", Caps()),
]
OWNERS: list[Request] = [wire.Backup("/tmp/x"), wire.TakeFile("/etc/shadow", 1, 2, 3, 4, 5)]


def named(request: Request) -> str:
    return type(request).__name__


def test_every_request_is_in_the_table_once() -> None:
    listed = [named(request) for request in (*ANYBODY, *OF_THE_JOB, *ADMINS, *OWNERS)]
    assert sorted(listed) == sorted(kind.__name__ for kind in get_args(Request))


@pytest.mark.parametrize("request_", ANYBODY, ids=named)
def test_what_everybody_may_ask(request_: Request) -> None:
    assert [may(person, request_) for person in (OWNER, ADMIN, ANN)] == [Allowed()] * 3


@pytest.mark.parametrize("request_", OF_THE_JOB, ids=named)
def test_A31_a_job_of_somebody_else_is_not_there(request_: Request) -> None:
    assert may(ANN, request_, "ann") == Allowed()
    assert may(ANN, request_, "bob") == Hidden()
    assert may(ANN, request_, None) == Hidden()
    assert [may(person, request_, "bob") for person in (OWNER, ADMIN)] == [Allowed()] * 2


@pytest.mark.parametrize("request_", ADMINS, ids=named)
def test_what_only_admins_may_ask(request_: Request) -> None:
    assert isinstance(may(ANN, request_), Refused)
    assert [may(person, request_) for person in (OWNER, ADMIN)] == [Allowed()] * 2


@pytest.mark.parametrize("request_", OWNERS, ids=named)
def test_what_writes_where_the_master_may_is_for_its_owner(request_: Request) -> None:
    assert may(OWNER, request_) == Allowed()
    assert all(isinstance(may(person, request_), Refused) for person in (ADMIN, ANN))


def test_lists_hold_a_users_own_jobs_and_everybodys_for_admins() -> None:
    assert [rights.seen_by(person) for person in (OWNER, ADMIN, ANN)] == ["", "", "ann"]


def test_the_jobs_that_a_request_names() -> None:
    named_jobs = {named(request): rights.concerned(request) for request in (*ANYBODY, *OF_THE_JOB, *ADMINS, *OWNERS)}
    naming = {kind for kind, jobs in named_jobs.items() if jobs == (JOB,)}
    assert naming == set(map(named, OF_THE_JOB)) - {"Input", "Resize"}
    assert all(jobs in ((), (JOB,)) for jobs in named_jobs.values())
