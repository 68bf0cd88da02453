"""One SQLite file that can be trusted: made, checked, brought to this version, copied, and its errors said in words.

Refuses what is damaged, locked, not ours, readable by others, from a newer sshgrid, or on a network file system. All
SQL of the project is in schema.sql and is read here.
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
# Section n of schema.sql leads from version n - 1 to version n; only ever append.
MIGRATIONS = ("schema_1", "schema_2", "schema_3", "schema_4", "schema_5")
VERSION = len(MIGRATIONS)
BUSY_SECONDS = 10.0
RESTORE_HINT = "move it away and restore a backup, or start with an empty queue"


def _sections(text: str) -> dict[str, str]:
    parts = re.split(r"^-- name: (\w+)$", text, flags=re.MULTILINE)
    without_comments = [re.sub(r"^--.*\n", "", part, flags=re.MULTILINE).strip() for part in parts[2::2]]
    return dict(zip(parts[1::2], without_comments, strict=True))


SQL = _sections(Path(__file__).with_name("schema.sql").read_text(encoding="utf-8"))

_TRANSACTION = ("BEGIN IMMEDIATE", ("ROLLBACK",), "COMMIT")
_SAVEPOINT = ("SAVEPOINT inner", ("ROLLBACK TO inner", "RELEASE inner"), "RELEASE inner")


def open_file(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """The queue at `path`, made when it is missing, checked and of this version."""
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
    """One transaction, or a part of the one that is open already: kept whole or undone whole."""
    # IMMEDIATE takes the write lock before anything is read, so a busy file makes us wait instead of fail (F42).
    begin, undo, end = _SAVEPOINT if connection.in_transaction else _TRANSACTION
    connection.execute(begin)
    try:
        yield
        connection.execute(end)
    except BaseException:
        if connection.in_transaction:  # SQLite may have rolled back on its own (disk full)
            for statement in undo:
                connection.execute(statement)
        raise


@contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All reads of the block see the same moment, whatever other processes write."""
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
    """A whole, checked, durable copy at `path`, which must not exist (UsageError)."""
    with _temporary_file(path) as aside:
        copy = connect(aside, BUSY_SECONDS)
        try:
            connection.backup(copy)
            _check_integrity(copy, aside)
        finally:
            copy.close()
        try:
            disk.publish(aside, path)
        except FileExistsError as error:
            raise UsageError(f"{path}: exists already", "choose another name for the backup") from error


_ERROR_TEXTS: dict[int, tuple[str, str]] = {
    sqlite3.SQLITE_BUSY: (
        "locked by another process for too long",
        "only one master may use it: sshgrid master status, or `fuser -v` on the file",
    ),
    sqlite3.SQLITE_CORRUPT: ("damaged", RESTORE_HINT),
    sqlite3.SQLITE_NOTADB: ("not a queue of sshgrid", RESTORE_HINT),
    sqlite3.SQLITE_FULL: (
        "no space left on its disk",
        "free some space (see `df -h -i`); `sshgrid rm` forgets finished jobs and their output",
    ),
    sqlite3.SQLITE_READONLY: ("cannot be written", "check owner and mode of the file and its directory"),
    sqlite3.SQLITE_CANTOPEN: ("cannot be opened", "check owner and mode of the file and its directory, and free space"),
    sqlite3.SQLITE_IOERR: ("the disk reports an error", "look at `dmesg` and `df -h -i`"),
}
_ERROR_TEXTS[sqlite3.SQLITE_LOCKED] = _ERROR_TEXTS[sqlite3.SQLITE_BUSY]


@contextmanager
def translate_errors(path: Path) -> Iterator[None]:
    """Turn an error of SQLite into a StoreError; what is our own mistake (ProgrammingError) stays what it is."""
    try:
        yield
    except sqlite3.ProgrammingError:
        raise
    except sqlite3.DatabaseError as error:
        words, hint = _ERROR_TEXTS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, ("cannot be used", ""))
        raise StoreError(f"{path}: {words} ({error})", hint) from error


def connect(path: Path, busy_seconds: float) -> sqlite3.Connection:
    """A connection with the settings that make a commit durable. Raises StoreError as `open` does."""
    # isolation_level=None: no statement opens a transaction behind our back.
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
    """A new empty queue appears under its name complete or not at all, also when two processes make it at once."""
    log = path.with_name(path.name + "-wal")
    if log.exists():  # SQLite would play the old log into the new file
        raise StoreError(f"{path}: is missing, but its log {log.name} is there", RESTORE_HINT)
    with _temporary_file(path) as aside:
        connection = connect(aside, BUSY_SECONDS)
        try:
            _enable_wal(connection, path)
            _migrate(connection)
            connection.execute(SQL["set_meta"], {"name": "grid", "value": secrets.token_hex(4)})
        finally:
            connection.close()
        with suppress(FileExistsError):  # another process was quicker: its queue is as good as ours
            disk.publish(aside, path)


def _enable_wal(connection: sqlite3.Connection, path: Path) -> None:
    if _pragma(connection, "journal_mode = WAL") != "wal":
        raise StoreError(f"{path}: this place has no write-ahead log", "choose a local disk: --state-dir DIR")


def _sidecar_files(path: Path) -> list[Path]:
    return [path.with_name(path.name + ending) for ending in ("-wal", "-shm", "-journal")]


@contextmanager
def _temporary_file(path: Path) -> Iterator[Path]:
    """A file beside `path` that becomes it by `publish`, or is gone after the block."""
    with disk.blame_disk(path):
        descriptor, aside = disk.create_aside(path.parent, f".{path.name}.")
        os.close(descriptor)
        try:
            with translate_errors(path):
                yield aside
        finally:
            for name in (aside, *_sidecar_files(aside)):
                name.unlink(missing_ok=True)


def _check_identity(connection: sqlite3.Connection, path: Path) -> None:
    if _pragma(connection, "application_id") != APPLICATION_ID:
        raise StoreError(f"{path}: not a queue of sshgrid", RESTORE_HINT)
    version = _pragma(connection, "user_version")
    if version > VERSION:
        raise StoreError(
            f"{path}: written by a newer sshgrid (queue version {version}, this one knows up to {VERSION})",
            f"install sshgrid {_required_version(connection)}",
        )


def _required_version(connection: sqlite3.Connection) -> str:
    try:
        return f"{connection.execute(SQL['get_meta'], {'name': 'needs'}).fetchone()[0]} or newer"
    except (sqlite3.DatabaseError, TypeError):  # a future version may have moved it
        return f"newer than {SSHGRID}"


def _check_integrity(connection: sqlite3.Connection, path: Path) -> None:
    problems = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    if problems != ["ok"]:
        raise StoreError(f"{path}: damaged: {'; '.join(problems)}", RESTORE_HINT)


def _migrate(connection: sqlite3.Connection) -> None:
    """Bring an older file to this version: all steps or none."""
    if _pragma(connection, "user_version") >= VERSION:
        return
    with transaction(connection):
        for name in MIGRATIONS[_pragma(connection, "user_version") :]:  # read again: now nobody else can be at it
            for statement in statements(SQL[name]):
                connection.execute(statement)
        connection.execute(SQL["set_meta"], {"name": "needs", "value": SSHGRID})
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")


def statements(script: str) -> Iterator[str]:
    """The single statements of a section: executescript() would commit between them."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending) and pending.strip():
            yield pending
            pending = ""
