"""The SQLite file of the queue: create, open, check, migrate and copy it, and translate the errors of SQLite.

A file is refused when it is damaged, locked, not a queue, readable by other users, written by a newer sshgrid, or on a
network file system. All SQL of the project is in schema.sql, which is read here.
"""

from __future__ import annotations

import os
import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sshgrid.errors import StoreError, UsageError
from sshgrid.spool import disk
from sshgrid.version import VERSION as SSHGRID

APPLICATION_ID = 0x53475244  # "SGRD", in the header of the file
# Section n of schema.sql migrates version n - 1 to version n. Only append to this list.
MIGRATIONS = ("schema_1", "schema_2", "schema_3", "schema_4", "schema_5")
VERSION = len(MIGRATIONS)
BUSY_SECONDS = 10.0
RESTORE_HINT = "move the file away, then restore a backup or start with an empty queue"


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    without_comments = [re.sub(r"^--.*\n", "", part, flags=re.MULTILINE).strip() for part in parts[2::2]]
    return dict(zip(parts[1::2], without_comments, strict=True))


SQL = _sections(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))

_TRANSACTION = ("BEGIN IMMEDIATE", ("ROLLBACK",), "COMMIT")
_SAVEPOINT = ("SAVEPOINT inner", ("ROLLBACK TO inner", "RELEASE inner"), "RELEASE inner")


def open_file(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """Open the queue at `path`: create it when it is missing, check it, and migrate it to this version."""
    disk.private_directory(path.parent)
    disk.refuse_network(path.parent)
    if not os.path.lexists(path):
        _create(path)
    for name in (path, *(found for found in _sidecar_files(path) if os.path.lexists(found))):
        disk.check_private_file(name)
    with translate_errors(path):
        connection = connect(path, busy_seconds)
        try:
            _check_identity(connection, path)
            _enable_wal(connection, path)
            _check_integrity(connection, path)
            _migrate(connection)
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction, or a savepoint in the open one: all changes of the block are kept, or none."""
    # IMMEDIATE takes the write lock before the first read, so a busy file leads to waiting, not to an error (F42).
    begin, undo, end = _SAVEPOINT if connection.in_transaction else _TRANSACTION
    connection.execute(begin)
    try:
        yield
        connection.execute(end)
    except BaseException:
        if connection.in_transaction:  # SQLite rolls back by itself when the disk is full
            for statement in undo:
                connection.execute(statement)
        raise


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All reads of the block see the same state, also when another process writes."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        if connection.in_transaction:
            connection.execute("COMMIT")


def backup(connection: sqlite3.Connection, path: Path) -> None:
    """Write a complete, checked, durable copy to `path`. Raises UsageError when `path` exists."""
    with _temporary_file(path) as temporary:
        copy = connect(temporary, BUSY_SECONDS)
        try:
            connection.backup(copy)
            _check_integrity(copy, temporary)
        finally:
            copy.close()
        try:
            disk.publish(temporary, path)
        except FileExistsError as error:
            raise UsageError(f"{path}: already exists", "choose another name for the backup") from error


_ERROR_TEXTS: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_BUSY: (
        "locked by another process",
        "only one master may use it: sshgrid master status, or `fuser -v` on the file",
    ),
    sqlite3.SQLITE_CORRUPT: ("damaged", RESTORE_HINT),
    sqlite3.SQLITE_NOTADB: ("not a queue of sshgrid", RESTORE_HINT),
    sqlite3.SQLITE_FULL: (
        "no space left on its disk",
        "free some space (see `df -h -i`); `sshgrid rm` removes finished jobs and their output",
    ),
    sqlite3.SQLITE_READONLY: ("cannot be written", "check owner and mode of the file and its directory"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "check owner and mode of the file and its directory, and free space"),
    sqlite3.SQLITE_IOERR: ("the disk reports an error", "look at `dmesg` and `df -h -i`"),
}
_ERROR_TEXTS[sqlite3.SQLITE_LOCKED] = _ERROR_TEXTS[sqlite3.SQLITE_BUSY]


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Raise errors of SQLite as StoreError. A ProgrammingError is a bug of sshgrid and stays as it is."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        text, hint = _ERROR_TEXTS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, ("cannot be used", ""))
        raise StoreError(f"{path}: {text} ({error})", hint) from error


def connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """Connect with the settings that make a commit durable."""
    # isolation_level=None: the sqlite3 module must not open transactions by itself.
    connection = sqlite3.connect(path, timeout=busy_seconds, isolation_level=None, cached_statements=100)
    connection.row_factory = sqlite3.Row
    try:
        for setting in ("synchronous = FULL", "fullfsync = ON", "foreign_keys = ON", "trusted_schema = OFF"):
            connection.execute(f"PRAGMA {setting}")
    except BaseException:
        connection.close()
        raise
    return connection


def _pragma(connection: sqlite3.Connection, name: str) -> Any:
    return connection.execute(f"PRAGMA {name}").fetchone()[0]


def _create(path: Path) -> None:
    """Create an empty queue. It gets its name only when it is complete, also when two processes create it at once."""
    log = path.with_name(path.name + "-wal")
    if log.exists():  # SQLite would apply the old log to the new file
        raise StoreError(f"{path}: does not exist, but its write-ahead log {log.name} does", RESTORE_HINT)
    with _temporary_file(path) as temporary:
        connection = connect(temporary, BUSY_SECONDS)
        try:
            _enable_wal(connection, path)
            _migrate(connection)
            connection.execute(SQL["set_meta"], {"name": "grid", "value": secrets.token_hex(4)})
        finally:
            connection.close()
        with suppress(FileExistsError):  # another process has created it meanwhile
            disk.publish(temporary, path)


def _enable_wal(connection: sqlite3.Connection, path: Path) -> None:
    if _pragma(connection, "journal_mode = WAL") != "wal":
        raise StoreError(
            f"{path}: this file system does not support a write-ahead log", "choose a local disk: --state-dir DIR"
        )


def _sidecar_files(path: Path) -> list[Path]:
    return [path.with_name(path.name + ending) for ending in ("-wal", "-shm", "-journal")]


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """A file beside `path` that `publish` may rename to it; removed at the end of the block."""
    with disk.blame_disk(path):
        descriptor, temporary = disk.create_temporary(path.parent, f".{path.name}.")
        os.close(descriptor)
        try:
            with translate_errors(path):
                yield temporary
        finally:
            for name in (temporary, *_sidecar_files(temporary)):
                name.unlink(missing_ok=True)


def _check_identity(connection: sqlite3.Connection, path: Path) -> None:
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreError(f"{path}: not a queue of sshgrid", RESTORE_HINT)
    version = _pragma(connection, "user_version")
    if version > VERSION:
        raise StoreError(
            f"{path}: written by a newer sshgrid (queue version {version}; this sshgrid supports up to {VERSION})",
            f"install sshgrid {_required_version(connection)}",
        )


def _required_version(connection: sqlite3.Connection) -> str:
    try:
        return f"{connection.execute(SQL['get_meta'], {'name': 'needs'}).fetchone()[0]} or newer"
    except (sqlite3.DatabaseError, TypeError):  # a later version may store it elsewhere
        return f"newer than {SSHGRID}"


def _check_integrity(connection: sqlite3.Connection, path: Path) -> None:
    problems = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    if problems != ["ok"]:
        raise StoreError(f"{path}: damaged: {'; '.join(problems)}", RESTORE_HINT)


def _migrate(connection: sqlite3.Connection) -> None:
    """Migrate an older file to this version, in one transaction."""
    if _pragma(connection, "user_version") >= VERSION:
        return
    with transaction(connection):
        for name in MIGRATIONS[_pragma(connection, "user_version") :]:  # read again, now under the write lock
            for statement in statements(SQL[name]):
                connection.execute(statement)
        connection.execute(SQL["set_meta"], {"name": "needs", "value": SSHGRID})
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")


def statements(script: str) -> Iterator[str]:
    """The statements of a section, one by one, because executescript() would commit between them."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending) and pending.strip():
            yield pending
            pending = ""
