"""The SQLite file of the queue: one connection, its transactions, and its errors as StoreError."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from sshgrid.errors import StoreError
from sshgrid.queue import database
from sshgrid.queue.records import Values

T = TypeVar("T")


class QueueFile:
    """Runs the named statements of schema.sql. Used only from the thread that opened it.

    `on_rollback` is called after a transaction was undone, so that caches can drop what they read in it.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self.connection = connection
        self.path = path
        self.on_rollback: Callable[[], None] = lambda: None
        self._inode = path.stat().st_ino

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """One transaction, or a part of the open one: durable when the block ends, undone when it raises."""
        try:
            with database.translate_errors(self.path):
                if not self.connection.in_transaction:
                    self._check_unchanged_path()
                with database.transaction(self.connection):
                    yield
        except BaseException:
            self.on_rollback()
            raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """All reads of the block see the same state of the file."""
        with database.translate_errors(self.path), database.snapshot(self.connection):
            yield

    def _check_unchanged_path(self) -> None:
        # SQLite writes to a deleted file without an error, and every job accepted since then would be lost.
        try:
            if self.path.lstat().st_ino == self._inode:
                return
        except OSError:
            pass
        raise StoreError(f"{self.path}: was removed or replaced while in use", "stop the master and restore the file")

    def run(self, name: str, values: Values) -> sqlite3.Cursor:
        """Run one statement; call it inside `transaction` or `snapshot`."""
        return self.connection.execute(database.SQL[name], values)

    def run_many(self, name: str, values: Iterable[Values]) -> None:
        """Run one statement for each of `values`; call it inside `transaction`."""
        self.connection.executemany(database.SQL[name], values)

    def rows(self, name: str, values: Values) -> list[Any]:
        """All rows of one query. Raises StoreError."""
        with database.translate_errors(self.path):
            return self.run(name, values).fetchall()

    def value(self, name: str, values: Values) -> Any:
        """The first column of the first row. Raises StoreError when there is no row."""
        rows = self.rows(name, values)
        if not rows:
            raise StoreError(f"{self.path}: damaged: {values.get('name', name)} is missing", database.RESTORE_HINT)
        return rows[0][0]

    def decode(self, decoder: msgspec.json.Decoder[T], text: str, where: str) -> T:
        """The value of a JSON column. Raises StoreError, which names `where`, when it cannot be decoded."""
        try:
            return decoder.decode(text)
        except msgspec.MsgspecError as error:
            raise StoreError(f"{self.path}: damaged: {where}: {error}", database.RESTORE_HINT) from error
