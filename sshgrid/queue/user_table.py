"""The accounts of users, in the file of the queue."""

from __future__ import annotations

from typing import Any

from sshgrid.model import Account, Role, UserKey
from sshgrid.queue.queue_file import QueueFile
from sshgrid.queue.records import CAPS, encode


class UserTable:
    """Reads and writes accounts. Every change is one transaction, durable on return."""

    def __init__(self, file: QueueFile) -> None:
        self._file = file

    def all(self) -> list[Account]:
        """All accounts, by name."""
        keys: dict[str, list[UserKey]] = {}
        with self._file.snapshot():
            rows = self._file.run("users", {}).fetchall()
            for key in self._file.run("user_keys", {}):
                keys.setdefault(key["user"], []).append(UserKey(key["fingerprint"], key["line"]))
        return [self._account(row, tuple(keys.get(row["name"], ()))) for row in rows]

    def put(self, user: Account) -> None:
        """Add an account, or replace the one of that name."""
        values = {
            "name": user.name,
            "role": user.role.value,
            "disabled": int(user.disabled),
            "password": user.password or None,
            "created": user.created,
            "caps": encode(user.caps),
        }
        with self._file.transaction():
            self._file.run("put_user", values)
            self._file.run("remove_keys", {"name": user.name})
            for key in user.keys:
                self._file.run("add_key", {"name": user.name, "fingerprint": key.fingerprint, "line": key.line})

    def remove(self, name: str) -> None:
        """Remove an account with its keys; no error when it does not exist."""
        with self._file.transaction():
            self._file.run("remove_user", {"name": name})

    def _account(self, row: Any, keys: tuple[UserKey, ...]) -> Account:
        where = f"user {row['name']}"
        caps = self._file.decode(CAPS, row["caps"], where)
        password = row["password"] or ""
        return Account(row["name"], Role(row["role"]), row["created"], bool(row["disabled"]), password, keys, caps)
