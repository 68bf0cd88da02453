"""The decision records in docs/adr: each has its sections, a status and a date, and stands in the index."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "adr"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))
SECTIONS = ["Context", "Decision", "Consequences", "Alternatives refused"]
STATUS = r"proposed|accepted|rejected|superseded by ADR (?P<successor>\d+)"

each_record = pytest.mark.parametrize("record", RECORDS, ids=lambda path: path.stem)


def number_of(record: Path) -> int:
    return int(record.name[:4])


def field(text: str, name: str) -> str:
    """The value of a line like `- Status: accepted` between the title and the first section."""
    head = text.partition("\n## ")[0]
    found = re.findall(rf"^- {name}: (.*)$", head, re.MULTILINE)
    assert len(found) == 1, f"expected one line '- {name}: ...' below the title"
    return str(found[0])


def title_of(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def sections_of(text: str) -> list[str]:
    return re.findall(r"^## (.*)$", text, re.MULTILINE)


def status_problem(text: str, numbers: set[int]) -> str:
    """An error message, or `""` if the status is a known one and its successor exists."""
    status = field(text, "Status")
    found = re.fullmatch(STATUS, status)
    if found is None:
        return f"unknown status '{status}'"
    if found["successor"] and int(found["successor"]) not in numbers:
        return f"no ADR {found['successor']}"
    return ""


def rows_of(index: str) -> dict[str, tuple[str, str, str]]:
    """The rows of the table in the index: file -> title, status, date."""
    rows = re.findall(r"^\| \[(.*)\]\((\S+)\) \| (.*) \| (.*) \|$", index, re.MULTILINE)
    return {name: (title, status, date) for title, name, status, date in rows}


def test_records_are_numbered_without_gaps() -> None:
    assert [number_of(record) for record in RECORDS] == list(range(1, len(RECORDS) + 1))
    assert len(RECORDS) >= 22


@each_record
def test_the_title_of_a_record_starts_with_its_number(record: Path) -> None:
    assert record.read_text(encoding="utf-8").startswith(f"# {number_of(record)}. ")


@each_record
def test_a_record_has_a_status_and_a_date(record: Path) -> None:
    text = record.read_text(encoding="utf-8")
    assert status_problem(text, {number_of(other) for other in RECORDS}) == ""
    assert datetime.date.fromisoformat(field(text, "Date")) >= datetime.date(2026, 11, 23)


@each_record
def test_a_record_has_the_four_sections(record: Path) -> None:
    assert sections_of(record.read_text(encoding="utf-8")) == SECTIONS


def test_the_index_names_each_record_with_its_status_and_date() -> None:
    index = (FOLDER / "index.md").read_text(encoding="utf-8")
    texts = {record.name: record.read_text(encoding="utf-8") for record in RECORDS}
    assert rows_of(index) == {
        name: (title_of(text), field(text, "Status"), field(text, "Date")) for name, text in texts.items()
    }
    assert re.findall(r"^(\d{4}-\S+)$", index, re.MULTILINE) == [record.stem for record in RECORDS]


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        ("accepted", ""),
        ("superseded by ADR 2", ""),
        ("superseded by ADR 3", "no ADR 3"),
        ("superseded", "unknown status 'superseded'"),
        ("done", "unknown status 'done'"),
    ],
)
def test_a_wrong_status_is_found(status: str, problem: str) -> None:
    assert status_problem(f"# 1. A\n\n- Status: {status}\n\n## Context\n", {1, 2}) == problem


@pytest.mark.parametrize("text", ["# 1. A\n\n## Context\n- Status: accepted\n", "# 1. A\n"])
def test_a_missing_status_is_found(text: str) -> None:
    with pytest.raises(AssertionError, match="expected one line '- Status"):
        field(text, "Status")
