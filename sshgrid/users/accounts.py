"""The accounts of the SSH gateway: add, remove, disable, credentials and limits.

An account is in the store first, in memory second. A name is short and of lower-case letters, digits, `_` and `-`, so
that it cannot be read as a path, an option or a column.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import assert_never

import msgspec

from sshgrid.clock import SYSTEM_CLOCK, Clock
from sshgrid.errors import NoSuchUser, OverLimit, UsageError
from sshgrid.model import Account, Caps, Job, Phase, Role
from sshgrid.policy import user_limits
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

UPLOAD_SECONDS = 3600.0  # unclaimed uploads are counted for this long
MAX_KEYS = 64
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,31}")


class Accounts:
    """All accounts. `cancel` ends a job.

    Each function in `on_locked_out` is called with the name of an account that was removed or disabled.
    """

    def __init__(
        self, active_jobs: ActiveJobs, cancel: Callable[[Job, str], None], clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._store = active_jobs.store
        self._active_jobs = active_jobs
        self._cancel = cancel
        self._clock = clock
        self._accounts = {account.name: account for account in self._store.users.all()}
        self._uploads: dict[str, tuple[float, int]] = {}  # name -> (monotonic start, bytes that no job has claimed)
        self.passwords = Passwords()
        self.on_locked_out: list[Callable[[str], None]] = []

    def close(self) -> None:
        self.passwords.close()

    # --- look-up

    def find(self, name: str) -> Account | None:
        """The account of this name; None when there is no such account or it is disabled."""
        account = self._accounts.get(name)
        return None if account is None or account.disabled else account

    def caps(self, name: str) -> Caps:
        """The limits of an owner of jobs; no limits for one without an account, such as the owner of the master."""
        account = self._accounts.get(name)
        return account.caps if account else Caps()

    @property
    def any_password(self) -> bool:
        """Whether any account has a password."""
        return any(account.password for account in self._accounts.values())

    def _known(self, name: str) -> Account:
        if name not in self._accounts:
            raise NoSuchUser(f"no such user: {name[:80]}", "sshgrid user ls")
        return self._accounts[name]

    def _keep(self, account: Account) -> UsersReply:
        self._store.users.put(account)
        self._accounts[account.name] = account
        self._active_jobs.wake.set()  # a job may have waited for a higher limit
        return UsersReply((self._line(account),))

    def _line(self, account: Account) -> UserLine:
        return UserLine(
            account.name,
            account.role,
            account.disabled,
            bool(account.password),
            account.created,
            account.keys,
            account.caps,
            self._active_jobs.queued_of(account.name),
            self._active_jobs.slots_in_use().by_owner().get(account.name, 0),
        )

    # --- requests

    async def answer(self, request: UsersQuestion) -> UsersReply | Done:
        """Do what an authorized request says. Raises NoSuchUser, UsageError, OverLimit, Busy."""
        match request:
            case Users():
                return UsersReply(tuple(self._line(self._accounts[name]) for name in sorted(self._accounts)))
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
            raise UsageError(f"not a valid user name: {request.name[:80]!r}", "use up to 32 of a-z, 0-9, _ and -")
        if request.name in self._accounts:
            raise UsageError(f"user {request.name} already exists", "sshgrid user key add, sshgrid user limit")
        if request.role is Role.OWNER:
            raise UsageError("the role of a user is `user` or `admin`")
        keys = tuple(dict.fromkeys(credentials.public_key(line) for line in request.keys))
        caps = Caps() if request.role is Role.ADMIN else user_limits.DEFAULT_CAPS
        return self._keep(Account(request.name, request.role, self._clock.wall(), keys=keys, caps=caps))

    def _remove(self, account: Account) -> Done:
        self._store.users.remove(account.name)
        del self._accounts[account.name]
        self._lock_out(account.name)
        waiting = [job for job in self._active_jobs.in_phase(Phase.QUEUED) if job.owner == account.name]
        for job in waiting:
            self._cancel(job, "the removal of its user")
        return Done(len(waiting))

    def _disable(self, account: Account, disabled: bool) -> UsersReply:
        reply = self._keep(msgspec.structs.replace(account, disabled=disabled))
        if disabled:
            self._lock_out(account.name)
        return reply

    def _lock_out(self, name: str) -> None:
        for notify in self.on_locked_out:
            notify(name)

    async def _set_password(self, name: str, password: str) -> UsersReply:
        self._known(name)
        kept = await self.passwords.hash(password) if password else ""
        return self._keep(msgspec.structs.replace(self._known(name), password=kept))

    def _add_key(self, account: Account, line: str) -> UsersReply:
        key = credentials.public_key(line)
        others = tuple(each for each in account.keys if each.fingerprint != key.fingerprint)
        if len(others) >= MAX_KEYS:
            raise OverLimit(f"{account.name} has {len(others)} keys; the limit is {MAX_KEYS}")
        return self._keep(msgspec.structs.replace(account, keys=(*others, key)))

    def _remove_key(self, account: Account, fingerprint: str) -> UsersReply:
        wanted = "SHA256:" + fingerprint.removeprefix("SHA256:")
        found = [key for key in account.keys if key.fingerprint.startswith(wanted)]
        if len(found) != 1:
            what = "no such key" if not found else f"{len(found)} keys begin with this"
            raise UsageError(f"{what}: {fingerprint[:80]}", f"sshgrid user key ls {account.name}")
        return self._keep(msgspec.structs.replace(account, keys=tuple(key for key in account.keys if key not in found)))

    # --- uploads that no job has claimed

    def add_upload(self, name: str, size: int) -> None:
        """Count `size` uploaded bytes. Raises OverLimit when the unclaimed bytes of the last hour exceed the limit."""
        since, before = self._upload(name)
        user_limits.check_upload(before + size, self.caps(name))
        self._uploads[name] = (since, before + size)

    def claim_upload(self, name: str, size: int) -> None:
        """Stop counting `size` bytes: they belong to a job now."""
        since, before = self._upload(name)
        self._uploads[name] = (since, max(0, before - size))

    def _upload(self, name: str) -> tuple[float, int]:
        now = self._clock.monotonic()
        since, size = self._uploads.get(name, (now, 0))
        return (since, size) if now - since <= UPLOAD_SECONDS else (now, 0)


def _checked(caps: Caps) -> Caps:
    for field in Caps.__struct_fields__:
        value = getattr(caps, field)
        if value is not None and not 0 <= value < 1 << 62:
            raise UsageError(f"{value} is not a valid limit")
    return caps
