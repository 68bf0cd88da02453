"""What can go wrong, by who is at fault.

    SshgridError
      UsageError          the request is wrong: never retried
        InventoryError      file:line:column, all of a file's errors at once
        UnknownLanguage     no such file type, or no toolchain for it anywhere: exit 127
        FileMissing         what was to be run or read is not there: exit 127
        NoSuchNode
        NoSuchJob           also the answer for a job of somebody else
        NoSuchUser
        NotAllowed
        OverLimit           more than this user may have: exit 125
      HostError           a machine, or the road to it; settled as HostLost
        Unreachable         no TCP connection, no SSH banner, login timed out
        LoginRefused        the key was not taken
        HostKeyUnknown      never seen: `sshgrid node check NAME --accept-new`
        HostKeyChanged      not the key we know: a human must look
        Dropped             the connection ended while in use
        NodeUnfit           it answers, but cannot work: disk full, no shell, workdir not ours ...
      NoNodeLeft          nothing to run on: exit 125
      MasterGone          client side: the master's door closed; the job lives on
      StoreError          the queue cannot be trusted: the master stops

Every error carries a `code` (stable, for --json), a message that names the thing and the place, a `hint` with the
command that mends it (or ""), and the exit status of the command line.
"""

from __future__ import annotations


class SshgridError(Exception):
    """Base: `str(error)` is the sentence after ``error: ``; `hint` is the sentence after ``hint: ``."""

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
    """Also for a job of somebody else: in the same words, so that nobody learns that it is there."""
    return NoSuchJob(f"no such job: {job}", "sshgrid ps --all")


class NoSuchNode(UsageError):
    code = "no-such-node"
    exit_status = 1


class NoSuchUser(UsageError):
    code = "no-such-user"
    exit_status = 1


class OverLimit(UsageError):
    """More than this user may have; the message names the number and the limit."""

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
    """`fingerprint` is for people to compare, `line` what known_hosts would have to hold."""

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
    """The run's folder was claimed against it; a start that is still on its way meets that folder."""


class NoNodeLeft(SshgridError):
    code = "no-node"
    exit_status = 125


class MasterGone(SshgridError):
    code = "master-gone"
    exit_status = 125


class StoreError(SshgridError):
    code = "store"
    exit_status = 125
