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

    `on_rollback` is called when a transaction was undone: what was remembered of it is no longer true.
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
                    self._check_still_there()
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

    def _check_still_there(self) -> None:
        # SQLite would continue to write to a file that was deleted, and every accepted job would be lost.
        try:
            if self.path.lstat().st_ino == self._inode:
                return
        except OSError:
            pass
        raise StoreError(f"{self.path}: was removed or replaced while in use", "stop the master, restore the file")

    def run(self, name: str, values: Values) -> sqlite3.Cursor:
        """Run one statement; inside `change` or `snapshot`."""
        return self.connection.execute(database.SQL[name], values)

    def run_many(self, name: str, values: Iterable[Values]) -> None:
        """Run one statement for each of `values`; inside `change`."""
        self.connection.executemany(database.SQL[name], values)

    def rows(self, name: str, values: Values) -> list[Any]:
        """All rows of one query. Raises StoreError."""
        with database.translate_errors(self.path):
            return self.run(name, values).fetchall()

    def value(self, name: str, values: Values) -> Any:
        """The first column of the first row. Raises StoreError when there is no row."""
        rows = self.rows(name, values)
        if not rows:
            raise StoreError(f"{self.path}: damaged: no {values.get('name', name)} in it", database.RESTORE_HINT)
        return rows[0][0]

    def decode(self, decoder: msgspec.json.Decoder[T], text: str, where: str) -> T:
        """The value of a JSON column. Raises StoreError that names `where` the damage is."""
        try:
            return decoder.decode(text)
        except msgspec.MsgspecError as error:
            raise StoreError(f"{self.path}: damaged: {where}: {error}", database.RESTORE_HINT) from error
