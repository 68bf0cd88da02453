"""Requests and replies about the accounts of the SSH gateway: their part of sshgrid.protocol.messages.

Pure nouns. Refuses to show a password: the one request that carries one hides it from its repr.
"""

from __future__ import annotations

from typing import TypeAlias

from sshgrid.model import Caps, Role, Struct, UserKey


class Users(Struct, frozen=True, tag="users"):
    """List users. Answered by `UsersReply`."""


class AddUser(Struct, frozen=True, tag="add-user"):
    """Let somebody in, with these keys (lines as in authorized_keys). Answered by `UsersReply` with the new one."""

    name: str
    role: Role = Role.USER
    keys: tuple[str, ...] = ()


class RemoveUser(Struct, frozen=True, tag="remove-user"):
    """Let nobody of this name in any more: sessions and waiting jobs end. `Done` counts the jobs."""

    name: str


class DisableUser(Struct, frozen=True, tag="disable-user"):
    """Lock a user out, whose sessions end, or let one in again."""

    name: str
    disabled: bool = True


class SetPassword(Struct, frozen=True, tag="set-password"):
    """A password to log in with; "" = none, keys alone."""

    name: str
    password: str

    def __repr__(self) -> str:
        return f"SetPassword({self.name!r}, ...)"


class AddKey(Struct, frozen=True, tag="add-key"):
    """One more public key, as in authorized_keys."""

    name: str
    line: str


class RemoveKey(Struct, frozen=True, tag="remove-key"):
    """Take a key away: its fingerprint, or a beginning of it that fits no other one."""

    name: str
    fingerprint: str


class SetCaps(Struct, frozen=True, tag="set-caps"):
    """From now on a user may have so much."""

    name: str
    caps: Caps


UsersQuestion: TypeAlias = Users | AddUser | RemoveUser | DisableUser | SetPassword | AddKey | RemoveKey | SetCaps


class UserLine(Struct, frozen=True):
    """A user as `user ls` shows it."""

    name: str
    role: Role
    disabled: bool
    password: bool  # whether there is one
    created: float
    keys: tuple[UserKey, ...]
    caps: Caps
    queued: int
    running: int


class UsersReply(Struct, frozen=True, tag="users-reply"):
    """Users, by name."""

    users: tuple[UserLine, ...]
