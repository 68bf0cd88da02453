"""Which user may send which request: `authorize` decides it from the user, the request and the owner of its job.

A user has access to the user's own jobs, an admin also to all other jobs and to the accounts, and the owner of the
master's process to everything. A job of another user is answered like a job that does not exist.
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
    """The request is carried out. A list holds only the jobs of `visible_owner`."""


class Hidden(Struct, frozen=True):
    """The request names a job of another user: it is answered with NoSuchJob."""


class Denied(Struct, frozen=True):
    """The request is answered with NotAllowed."""

    reason: str


Decision: TypeAlias = Allowed | Hidden | Denied


def authorize(user: User, request: Request, owner: str | None = None) -> Decision:
    """Decide about a request of this user. `owner` owns the job that the request names; None = it names no job."""
    match request:
        case MissingBlobs() | PutBlob() | Submit() | Explain():
            return Allowed()
        case Jobs() | Nodes() | Toolchains() | Status() | Clients():
            return Allowed()
        case Watch() | Logs() | Info() | Input() | Resize() | Cancel() | Hold() | Remove():
            return Allowed() if sees_all_jobs(user) or owner == user.name else Hidden()
        case WatchSweep() | ProgressOf() | Tasks() | Retry():
            return Allowed() if sees_all_jobs(user) or owner == user.name else Hidden()
        case CheckNodes() | Diagnose() | Execute() | Reload() | Stop():
            return _admin_only(user)
        case Users() | AddUser() | RemoveUser() | DisableUser() | SetPassword() | AddKey() | RemoveKey() | SetCaps():
            return _admin_only(user)
        case Backup() | TakeFile():  # they write and read files with the rights of the master's process
            return Allowed() if user.role is Role.OWNER else Denied("only the owner of the master may do that")
        case _:
            assert_never(request)


def _admin_only(user: User) -> Decision:
    return Allowed() if sees_all_jobs(user) else Denied("only an admin may do that")


def sees_all_jobs(user: User) -> bool:
    """Whether this user has access to the jobs of all users."""
    return user.role in (Role.OWNER, Role.ADMIN)


def visible_owner(user: User) -> str:
    """The only owner whose jobs this user sees; "" = all owners."""
    return "" if sees_all_jobs(user) else user.name


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
