"""The errors of sshgrid, by which side is at fault.

    SshgridError
      UsageError          the request is wrong: never retried
        InventoryError      file:line:column, all of a file's errors at once
        UnknownLanguage     unknown file type, or no node has a toolchain for it: exit 127
        FileMissing         a file to run or to read does not exist: exit 127
        NoSuchNode
        NoSuchJob           also the answer for a job of another user
        NoSuchUser
        NotAllowed
        OverLimit           above a limit of this user: exit 125
      HostError           a machine or the connection to it; settled as HostLost
        Unreachable         no TCP connection, no SSH banner, login timed out
        LoginRefused        no key was accepted
        HostKeyUnknown      not in known_hosts: `sshgrid node check NAME --accept-new`
        HostKeyChanged      not the key in known_hosts: a user must decide
        Dropped             the connection ended while in use
        NodeUnfit           it answers, but cannot run anything: disk full, no shell, foreign workdir ...
      NoNodeLeft          no node can run the job: exit 125
      MasterGone          client side: the connection to the master ended; the job continues
      StoreError          the queue cannot be trusted: the master stops

Every error has a `code` (stable, for --json), a message that says what is wrong and where, a `hint` with the command
that solves it (or ""), and the exit status of the command line.
"""

from __future__ import annotations


class SshgridError(Exception):
    """Base class. `str(error)` is printed after ``error: ``, `hint` after ``hint: ``."""

    code = "error"
    exit_status = 125

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(SshgridError):
    code = "usage"
    exit_status = 2


class InventoryError(UsageError):
    """`message` holds every error of the file, one block each: file:line:column, the line, a caret."""

    code = "inventory"
    exit_status = 125


class FileMissing(UsageError):
    code = "no-such-file"
    exit_status = 127


class UnknownLanguage(UsageError):
    code = "unknown-language"
    exit_status = 127


class NoSuchJob(UsageError):
    code = "no-such-job"
    exit_status = 1


def no_such_job(job: str) -> NoSuchJob:
    """The error for a missing job, and for a job of another user: the same, so that it does not reveal the job."""
    return NoSuchJob(f"no such job: {job}", "sshgrid ps -a")


class NoSuchNode(UsageError):
    code = "no-such-node"
    exit_status = 1


class NoSuchUser(UsageError):
    code = "no-such-user"
    exit_status = 1


class OverLimit(UsageError):
    """A request above a limit of this user; the message names the number and the limit."""

    code = "over-limit"
    exit_status = 125


class NotAllowed(UsageError):
    code = "not-allowed"
    exit_status = 1


class HostError(SshgridError):
    """`node` names the machine; `reason` is short enough for a table cell."""

    code = "host"
    exit_status = 125

    def __init__(self, node: str, reason: str, hint: str = "") -> None:
        super().__init__(f"{node}: {reason}" if node else reason, hint)
        self.node = node
        self.reason = reason


class Unreachable(HostError):
    code = "unreachable"


class LoginRefused(HostError):
    code = "login-refused"


class HostKeyUnknown(HostError):
    """`fingerprint` is for the user to compare; `line` is the line that known_hosts would need."""

    code = "host-key-unknown"
    fingerprint = ""
    line = ""


class HostKeyChanged(HostError):
    code = "host-key-changed"


class Dropped(HostError):
    code = "dropped"


class NodeUnfit(HostError):
    code = "node-unfit"


class NeverBegan(NodeUnfit):
    """The run never began, and never can: its folder is taken, and a start that arrives late finds it."""


class NoNodeLeft(SshgridError):
    code = "no-node"
    exit_status = 125


class MasterGone(SshgridError):
    code = "master-gone"
    exit_status = 125


class StoreError(SshgridError):
    code = "store"
    exit_status = 125
