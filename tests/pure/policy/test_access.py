"""Who may ask what: one line for each request, for an owner, an admin, a user, and a user whose job it is not."""

from __future__ import annotations

from typing import get_args

import pytest

from sshgrid.model import Caps, JobId, Program, Role, Submission, User
from sshgrid.policy import access
from sshgrid.policy.access import Allowed, Denied, Hidden, authorize
from sshgrid.protocol import messages, sweep_messages, user_messages
from sshgrid.protocol.messages import Request

OWNER = User("root", Role.OWNER)
ADMIN = User("ada", Role.ADMIN)
ANN = User("ann", Role.USER)
JOB = JobId(1)
ASKED = Submission(Program("", "a.sh", ()), "a.sh")

# What a user may ask of everything, of the user's own job alone, what admins may, and what only the owner may.
ANYBODY: list[Request] = [
    messages.MissingBlobs(()),
    messages.PutBlob("0" * 64, 0, True),
    messages.Submit(ASKED, "k"),
    messages.Explain(ASKED),
    messages.Jobs(),
    messages.Nodes(),
    messages.Toolchains(),
    messages.Status(),
    messages.Clients(),
]
OF_THE_JOB: list[Request] = [
    messages.Watch(JOB),
    messages.Logs(JOB),
    messages.Info(JOB),
    messages.Input(0),
    messages.Resize(80, 24),
    messages.Cancel((JOB,)),
    messages.Hold((JOB,)),
    messages.Remove((JOB,)),
    sweep_messages.WatchSweep(JOB),
    sweep_messages.ProgressOf(JOB),
    sweep_messages.Tasks(JOB),
    sweep_messages.Retry((JOB,)),
]
ADMINS: list[Request] = [
    messages.CheckNodes(""),
    messages.Diagnose("h1"),
    messages.Execute("h1", (b"true",)),
    messages.Reload(),
    messages.Stop(),
    user_messages.Users(),
    user_messages.AddUser("bob"),
    user_messages.RemoveUser("bob"),
    user_messages.DisableUser("bob"),
    user_messages.SetPassword("bob", "secret word"),
    user_messages.AddKey("bob", "ssh-ed25519 AAAA"),
    user_messages.RemoveKey("bob", "SHA256:x"),
    user_messages.SetCaps("bob", Caps()),
]
OWNERS: list[Request] = [messages.Backup("/tmp/x"), messages.TakeFile("/etc/shadow", 1, 2, 3, 4, 5)]


def named(request: Request) -> str:
    return type(request).__name__


def test_every_request_is_in_the_table_once() -> None:
    listed = [named(request) for request in (*ANYBODY, *OF_THE_JOB, *ADMINS, *OWNERS)]
    assert sorted(listed) == sorted(kind.__name__ for kind in get_args(Request))


@pytest.mark.parametrize("request_", ANYBODY, ids=named)
def test_what_everybody_may_ask(request_: Request) -> None:
    assert [authorize(person, request_) for person in (OWNER, ADMIN, ANN)] == [Allowed()] * 3


@pytest.mark.parametrize("request_", OF_THE_JOB, ids=named)
def test_A31_a_job_of_somebody_else_is_not_there(request_: Request) -> None:
    assert authorize(ANN, request_, "ann") == Allowed()
    assert authorize(ANN, request_, "bob") == Hidden()
    assert authorize(ANN, request_, None) == Hidden()
    assert [authorize(person, request_, "bob") for person in (OWNER, ADMIN)] == [Allowed()] * 2


@pytest.mark.parametrize("request_", ADMINS, ids=named)
def test_what_only_admins_may_ask(request_: Request) -> None:
    assert isinstance(authorize(ANN, request_), Denied)
    assert [authorize(person, request_) for person in (OWNER, ADMIN)] == [Allowed()] * 2


@pytest.mark.parametrize("request_", OWNERS, ids=named)
def test_what_writes_where_the_master_may_is_for_its_owner(request_: Request) -> None:
    assert authorize(OWNER, request_) == Allowed()
    assert all(isinstance(authorize(person, request_), Denied) for person in (ADMIN, ANN))


def test_lists_hold_a_users_own_jobs_and_everybodys_for_admins() -> None:
    assert [access.visible_owner(person) for person in (OWNER, ADMIN, ANN)] == ["", "", "ann"]


def test_the_jobs_that_a_request_names() -> None:
    named_jobs = {
        named(request): access.requested_jobs(request) for request in (*ANYBODY, *OF_THE_JOB, *ADMINS, *OWNERS)
    }
    naming = {kind for kind, jobs in named_jobs.items() if jobs == (JOB,)}
    assert naming == set(map(named, OF_THE_JOB)) - {"Input", "Resize"}
    assert all(jobs in ((), (JOB,)) for jobs in named_jobs.values())
