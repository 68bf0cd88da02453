"""Who may ask what: every decision about it is `may`, a function of the person, the request and a job's owner.

A user sees and touches the user's own jobs only; an admin all jobs, and the other users; who owns the master's process
everything. Refuses to say of somebody else's job that it is there: it is answered as a job that never was.
"""

from __future__ import annotations

from typing import TypeAlias, assert_never

from sshgrid.model import JobId, Role, Struct, User
from sshgrid.protocol.messages import (
    Backup,
    Cancel,
    CheckNodes,
    Clients,
    Diagnose,
    Execute,
    Explain,
    Hold,
    Info,
    Input,
    Jobs,
    Logs,
    MissingBlobs,
    Nodes,
    PutBlob,
    Reload,
    Remove,
    Request,
    Resize,
    Status,
    Stop,
    Submit,
    TakeFile,
    Toolchains,
    Watch,
)
from sshgrid.protocol.sweep_messages import ProgressOf, Retry, Tasks, WatchSweep
from sshgrid.protocol.user_messages import (
    AddKey,
    AddUser,
    DisableUser,
    RemoveKey,
    RemoveUser,
    SetCaps,
    SetPassword,
    Users,
)


class Allowed(Struct, frozen=True):
    """It may be done; what lists show is narrowed by `seen_by`."""


class Hidden(Struct, frozen=True):
    """It concerns a job of somebody else, which for this person is not there."""


class Denied(Struct, frozen=True):
    """It may not be done, and that may be said."""

    why: str


Decision: TypeAlias = Allowed | Hidden | Denied


def authorize(person: User, request: Request, owner: str | None = None) -> Decision:
    """May this person ask this? `owner`: of the job that it concerns, None when it concerns none."""
    match request:
        case MissingBlobs() | PutBlob() | Submit() | Explain():
            return Allowed()
        case Jobs() | Nodes() | Toolchains() | Status() | Clients():
            return Allowed()
        case Watch() | Logs() | Info() | Input() | Resize() | Cancel() | Hold() | Remove():
            return Allowed() if sees_all_jobs(person) or owner == person.name else Hidden()
        case WatchSweep() | ProgressOf() | Tasks() | Retry():
            return Allowed() if sees_all_jobs(person) or owner == person.name else Hidden()
        case CheckNodes() | Diagnose() | Execute() | Reload() | Stop():
            return _admins(person)
        case Users() | AddUser() | RemoveUser() | DisableUser() | SetPassword() | AddKey() | RemoveKey() | SetCaps():
            return _admins(person)
        case Backup() | TakeFile():  # it writes, or reads, wherever the master's process may
            return Allowed() if person.role is Role.OWNER else Denied("only who owns the master may do that")
        case _:
            assert_never(request)


def _admins(person: User) -> Decision:
    return Allowed() if sees_all_jobs(person) else Denied("only an admin may do that")


def sees_all_jobs(person: User) -> bool:
    """Whether this person's lists hold everybody's jobs."""
    return person.role in (Role.OWNER, Role.ADMIN)


def visible_owner(person: User) -> str:
    """Whose jobs this person's lists hold; "" = everybody's."""
    return "" if sees_all_jobs(person) else person.name


def requested_jobs(request: Request) -> tuple[JobId, ...]:
    """The jobs that a request names."""
    match request:
        case (
            Watch(job=job) | Logs(job=job) | Info(job=job) | WatchSweep(job=job) | ProgressOf(job=job) | Tasks(job=job)
        ):
            return (job,)
        case Cancel(jobs=jobs) | Hold(jobs=jobs) | Remove(jobs=jobs) | Retry(jobs=jobs):
            return jobs
        case _:
            return ()
