"""Who may come through the door, kept in the store and known in memory; and what is asked about them.

The store is written first. Refuses names that could be taken for something else (a path, an option, a column).
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import assert_never

import msgspec

from sshgrid.errors import NoSuchUser, OverLimit, UsageError
from sshgrid.model import Account, Caps, Job, Phase, Role
from sshgrid.policy import quota
from sshgrid.protocol.messages import Done
from sshgrid.protocol.user_messages import (
    AddKey,
    AddUser,
    DisableUser,
    RemoveKey,
    RemoveUser,
    SetCaps,
    SetPassword,
    UserLine,
    Users,
    UsersQuestion,
    UsersReply,
)
from sshgrid.queue.active_jobs import ActiveJobs
from sshgrid.users import credentials
from sshgrid.users.credentials import Passwords

audit = logging.getLogger("sshgrid.audit")

HOUR = 3600.0
MAX_KEYS = 64
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


class People:
    """All users. `leavers` are told the name of whoever may not be here any more; `cancel` ends a job."""

    def __init__(self, active_jobs: ActiveJobs, cancel: Callable[[Job, str], None]) -> None:
        self._store = active_jobs.store
        self._active_jobs = active_jobs
        self._cancel = cancel
        self._users = {user.name: user for user in self._store.users.all()}
        self._uploads: dict[str, tuple[float, int]] = {}  # name -> (since when, bytes that belong to no job yet)
        self.passwords = Passwords()
        self.leavers: list[Callable[[str], None]] = []

    def close(self) -> None:
        self.passwords.close()

    # --- who is who

    def find(self, name: str) -> Account | None:
        """Somebody who may come in; None for whoever may not."""
        user = self._users.get(name)
        return None if user is None or user.disabled else user

    def caps(self, name: str) -> Caps:
        """What this owner of jobs may have; no limits for who is no user, as who owns the master."""
        user = self._users.get(name)
        return user.caps if user else Caps()

    @property
    def any_password(self) -> bool:
        return any(user.password for user in self._users.values())

    def _known(self, name: str) -> Account:
        if name not in self._users:
            raise NoSuchUser(f"no such user: {name[:80]}", "sshgrid user ls")
        return self._users[name]

    def _keep(self, user: Account) -> UsersReply:
        self._store.users.put(user)
        self._users[user.name] = user
        self._active_jobs.wake.set()  # a cap may have been what a job waited for
        return UsersReply((self._line(user),))

    def _line(self, user: Account) -> UserLine:
        return UserLine(
            user.name,
            user.role,
            user.disabled,
            bool(user.password),
            user.created,
            user.keys,
            user.caps,
            self._active_jobs.count(user.name, Phase.QUEUED),
            self._active_jobs.count(user.name, Phase.RUNNING),
        )

    # --- questions

    async def answer(self, request: UsersQuestion) -> UsersReply | Done:
        """Whoever asks may ask it. Raises NoSuchUser, UsageError."""
        match request:
            case Users():
                return UsersReply(tuple(self._line(self._users[name]) for name in sorted(self._users)))
            case AddUser():
                return self._add(request)
            case RemoveUser(name):
                return self._remove(self._known(name))
            case DisableUser(name, disabled):
                return self._disable(self._known(name), disabled)
            case SetPassword(name, password):
                return await self._set_password(name, password)
            case AddKey(name, line):
                return self._add_key(self._known(name), line)
            case RemoveKey(name, fingerprint):
                return self._remove_key(self._known(name), fingerprint)
            case SetCaps(name, caps):
                return self._keep(msgspec.structs.replace(self._known(name), caps=_checked(caps)))
            case _:
                assert_never(request)

    def _add(self, request: AddUser) -> UsersReply:
        if not _NAME.fullmatch(request.name):
            raise UsageError(f"not a user's name: {request.name[:80]!r}", "small letters, digits, _ and -: up to 32")
        if request.name in self._users:
            raise UsageError(f"there is a user {request.name} already", "sshgrid user key add, sshgrid user limit")
        if request.role is Role.OWNER:
            raise UsageError("a user is an admin or a user")
        keys = tuple(dict.fromkeys(credentials.public_key(line) for line in request.keys))
        caps = Caps() if request.role is Role.ADMIN else quota.DEFAULT
        return self._keep(Account(request.name, request.role, time.time(), keys=keys, caps=caps))

    def _remove(self, user: Account) -> Done:
        self._store.users.remove(user.name)
        del self._users[user.name]
        self._leave(user.name)
        waiting = [job for job in self._active_jobs.in_phase(Phase.QUEUED) if job.owner == user.name]
        for job in waiting:
            self._cancel(job, "the removal of its user")
        return Done(len(waiting))

    def _disable(self, user: Account, disabled: bool) -> UsersReply:
        reply = self._keep(msgspec.structs.replace(user, disabled=disabled))
        if disabled:
            self._leave(user.name)
        return reply

    def _leave(self, name: str) -> None:
        for told in self.leavers:
            told(name)

    async def _set_password(self, name: str, password: str) -> UsersReply:
        self._known(name)
        kept = await self.passwords.hash(password) if password else ""
        return self._keep(msgspec.structs.replace(self._known(name), password=kept))

    def _add_key(self, user: Account, line: str) -> UsersReply:
        key = credentials.public_key(line)
        others = tuple(each for each in user.keys if each.fingerprint != key.fingerprint)
        if len(others) >= MAX_KEYS:
            raise OverLimit(f"{user.name} has {len(others)} keys, and no more than {MAX_KEYS} are kept")
        return self._keep(msgspec.structs.replace(user, keys=(*others, key)))

    def _remove_key(self, user: Account, fingerprint: str) -> UsersReply:
        wanted = "SHA256:" + fingerprint.removeprefix("SHA256:")
        found = [key for key in user.keys if key.fingerprint.startswith(wanted)]
        if len(found) != 1:
            what = "no such key" if not found else f"{len(found)} keys begin so"
            raise UsageError(f"{what}: {fingerprint[:80]}", f"sshgrid user key ls {user.name}")
        return self._keep(msgspec.structs.replace(user, keys=tuple(key for key in user.keys if key not in found)))

    # --- uploads that belong to no job yet

    def took(self, name: str, size: int) -> None:
        """Bytes of an upload. OverLimit when there are too many within an hour of which no job came."""
        since, before = self._uploads.get(name, (time.monotonic(), 0))
        if time.monotonic() - since > HOUR:
            since, before = time.monotonic(), 0
        quota.check_upload(before + size, self.caps(name))
        self._uploads[name] = (since, before + size)

    def used(self, name: str, size: int) -> None:
        """So many of them belong to a job now."""
        since, before = self._uploads.get(name, (time.monotonic(), 0))
        self._uploads[name] = (since, max(0, before - size))


def _checked(caps: Caps) -> Caps:
    for field in Caps.__struct_fields__:
        value = getattr(caps, field)
        if value is not None and not 0 <= value < 1 << 62:
            raise UsageError(f"a limit of {value} cannot be kept")
    return caps
