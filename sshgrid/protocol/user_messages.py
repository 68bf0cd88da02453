"""The messages about the accounts of the SSH gateway: part of sshgrid.protocol.messages.

`repr` of the one message that carries a password hides it. A request with an unknown name is answered with `Failure`.
"""

from __future__ import annotations

from typing import TypeAlias

from sshgrid.model import Caps, Role, Struct, UserKey


class Users(Struct, frozen=True, tag="users"):
    """List the accounts. Reply: `UsersReply`."""


class AddUser(Struct, frozen=True, tag="add-user"):
    """Add an account with these public keys (lines as in authorized_keys). Reply: `UsersReply` with the new account."""

    name: str
    role: Role = Role.USER
    keys: tuple[str, ...] = ()


class RemoveUser(Struct, frozen=True, tag="remove-user"):
    """Remove an account, close its connections, and cancel its waiting jobs. Reply: `Done` with their number."""

    name: str


class DisableUser(Struct, frozen=True, tag="disable-user"):
    """Disable an account and close its connections, or enable it again. Reply: `UsersReply` with the account."""

    name: str
    disabled: bool = True


class SetPassword(Struct, frozen=True, tag="set-password"):
    """Set the password of an account; "": only keys. Reply: `UsersReply` with the account."""

    name: str
    password: str

    def __repr__(self) -> str:
        return f"SetPassword({self.name!r}, ...)"


class AddKey(Struct, frozen=True, tag="add-key"):
    """Add a public key (a line as in authorized_keys) to an account. Reply: `UsersReply` with the account."""

    name: str
    line: str


class RemoveKey(Struct, frozen=True, tag="remove-key"):
    """Remove the public key whose fingerprint is, or begins with, `fingerprint`. Reply: `UsersReply` with the
    account."""

    name: str
    fingerprint: str


class SetCaps(Struct, frozen=True, tag="set-caps"):
    """Set the limits of an account. Reply: `UsersReply` with the account."""

    name: str
    caps: Caps


UsersQuestion: TypeAlias = Users | AddUser | RemoveUser | DisableUser | SetPassword | AddKey | RemoveKey | SetCaps


class UserLine(Struct, frozen=True):
    """An account as `user ls` shows it."""

    name: str
    role: Role
    disabled: bool
    password: bool  # whether the account has one
    created: float
    keys: tuple[UserKey, ...]
    caps: Caps
    queued: int  # jobs that wait
    running: int  # jobs that run


class UsersReply(Struct, frozen=True, tag="users-reply"):
    """Reply to the messages about accounts: accounts by name."""

    users: tuple[UserLine, ...]
