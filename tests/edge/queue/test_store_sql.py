"""The statements of schema.sql: each one fits the schema, is used, and finds its rows with an index."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sshgrid.queue import database
from sshgrid.queue.store import Store

VALUES = dict.fromkeys(re.findall(r":(\w+)", "".join(database.SQL.values())))
READS_ALL = ("users", "user_keys", "blobs_of")  # they read all rows of a table that is small, or all files of a user
QUERIES = [name for name in database.SQL if not name.startswith("schema_")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "queue.db"
    Store.open(path).close()
    return path


def ask(path: Path, sql: str, values: dict[str, Any]) -> list[Any]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(sql, values).fetchall()


def plan(path: Path, name: str) -> list[str]:
    return [row[3] for row in ask(path, f"EXPLAIN QUERY PLAN {database.SQL[name]}", VALUES)]


@pytest.mark.parametrize("name", QUERIES)
def test_every_statement_fits_the_schema_and_is_used(path: Path, name: str) -> None:
    plan(path, name)
    source = "".join(path.read_text() for path in Path(database.__file__).parent.glob("*.py"))
    assert f'"{name}"' in source


@pytest.mark.parametrize("name", sorted(set(QUERIES) - {"jobs_all", "ids", "tally", "blobs", *READS_ALL}))
def test_every_step_of_a_statement_is_a_search_by_index(path: Path, name: str) -> None:
    steps = [step for step in plan(path, name) if step.startswith(("SCAN", "SEARCH"))]
    scans = [step for step in steps if step.startswith("SCAN") and "json_each" not in step and "(subquery" not in step]
    assert scans == []


@pytest.mark.parametrize("name", ["jobs_queued", "jobs_running", "jobs_active"])
def test_queries_of_active_jobs_use_the_index_without_finished_jobs(path: Path, name: str) -> None:
    assert any("USING INDEX job_active" in step for step in plan(path, name))
    assert name != "jobs_queued" or not any("ORDER BY" in step for step in plan(path, name)[:1])
    ((definition,),) = ask(path, "SELECT sql FROM sqlite_master WHERE name = 'job_active'", {})
    assert "WHERE phase <> 'done'" in definition
