"""docs/faults.md and docs/promises.md: every fault has a row, and every named test and file exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FAULTS = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
PROMISES = (ROOT / "docs" / "promises.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| ([FA][0-9]+) \| (.*) \|$", re.MULTILINE)
TEST = re.compile(r"^(?:async )?def (test_((?:[FA][0-9]+_)*)\w+)\(", re.MULTILINE)
NUMBERS = [*(f"F{number}" for number in range(1, 43)), *(f"A{number}" for number in range(1, 43))]


def rows() -> dict[str, list[str]]:
    """The cells of the row of each number."""
    return {number: cells.split(" | ") for number, cells in ROW.findall(FAULTS)}


def all_tests() -> dict[str, set[str]]:
    """The name of each test, with the numbers in it."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for name, numbers in TEST.findall(path.read_text(encoding="utf-8")):
            found[name] = set(numbers.split("_")) - {""}
    return found


def test_every_number_has_one_row_with_four_cells() -> None:
    assert [number for number, _ in ROW.findall(FAULTS)] == NUMBERS
    assert {number: len(cells) for number, cells in rows().items() if len(cells) != 3} == {}


def test_every_named_test_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", FAULTS + PROMISES))
    assert len(named) > 100
    assert named - all_tests().keys() == set()


def test_every_named_file_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", FAULTS + PROMISES))
    assert len(named) > 20
    assert {path for path in named if not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_row_names_a_test_with_its_number_or_the_reason_for_none(number: str) -> None:
    of_this_number = {name for name, numbers in all_tests().items() if number in numbers}
    cells = rows()[number]
    if of_this_number:
        assert of_this_number & set(re.findall(r"`(test_\w+)`", cells[-1]))
    else:
        assert re.match(r"no test: .{20}|as F[0-9]+: `test_", cells[-1])
