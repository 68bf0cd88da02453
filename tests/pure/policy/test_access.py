"""Access: every request is listed once, and checked for the owner, an admin, a user, and a user without the job."""

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
SUBMISSION = Submission(Program("", "a.sh", ()), "a.sh")

# Requests that every user may send; only the job's owner; only admins; only the owner of the master.
ALL_USERS: list[Request] = [
    messages.MissingBlobs(()),
    messages.PutBlob("0" * 64, 0, True),
    messages.Submit(SUBMISSION, "k"),
    messages.Explain(SUBMISSION),
    messages.Jobs(),
    messages.Nodes(),
    messages.Toolchains(),
    messages.Status(),
    messages.Clients(),
]
JOB_OWNER: list[Request] = [
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
ADMIN_ONLY: list[Request] = [
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
OWNER_ONLY: list[Request] = [messages.Backup("/tmp/x"), messages.TakeFile("/etc/shadow", 1, 2, 3, 4, 5)]


def named(request: Request) -> str:
    return type(request).__name__


def test_every_request_is_in_the_table_once() -> None:
    listed = [named(request) for request in (*ALL_USERS, *JOB_OWNER, *ADMIN_ONLY, *OWNER_ONLY)]
    assert sorted(listed) == sorted(kind.__name__ for kind in get_args(Request))


@pytest.mark.parametrize("request_", ALL_USERS, ids=named)
def test_a_request_without_a_job_is_allowed_for_every_user(request_: Request) -> None:
    assert [authorize(user, request_) for user in (OWNER, ADMIN, ANN)] == [Allowed()] * 3


@pytest.mark.parametrize("request_", JOB_OWNER, ids=named)
def test_A31_a_request_for_a_job_of_another_user_is_hidden(request_: Request) -> None:
    assert authorize(ANN, request_, "ann") == Allowed()
    assert authorize(ANN, request_, "bob") == Hidden()
    assert authorize(ANN, request_, None) == Hidden()
    assert [authorize(user, request_, "bob") for user in (OWNER, ADMIN)] == [Allowed()] * 2


@pytest.mark.parametrize("request_", ADMIN_ONLY, ids=named)
def test_a_request_that_changes_the_grid_is_denied_for_a_user(request_: Request) -> None:
    assert isinstance(authorize(ANN, request_), Denied)
    assert [authorize(user, request_) for user in (OWNER, ADMIN)] == [Allowed()] * 2


@pytest.mark.parametrize("request_", OWNER_ONLY, ids=named)
def test_a_request_that_uses_files_of_the_master_is_allowed_only_for_its_owner(request_: Request) -> None:
    assert authorize(OWNER, request_) == Allowed()
    assert all(isinstance(authorize(user, request_), Denied) for user in (ADMIN, ANN))


def test_lists_hold_the_users_own_jobs_or_all_jobs_for_an_admin() -> None:
    assert [access.visible_owner(user) for user in (OWNER, ADMIN, ANN)] == ["", "", "ann"]


def test_requested_jobs_are_the_jobs_that_a_request_names() -> None:
    named_jobs = {
        named(request): access.requested_jobs(request) for request in (*ALL_USERS, *JOB_OWNER, *ADMIN_ONLY, *OWNER_ONLY)
    }
    naming = {kind for kind, jobs in named_jobs.items() if jobs == (JOB,)}
    assert naming == set(map(named, JOB_OWNER)) - {"Input", "Resize"}
    assert all(jobs in ((), (JOB,)) for jobs in named_jobs.values())
