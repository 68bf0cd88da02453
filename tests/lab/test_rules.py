"""The rules of tests/conftest.py, checked with a small test session."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
SKIPPED = """
    import pytest

    @pytest.mark.lab
    def test_of_the_lab():
        pytest.skip("no hosts here")

    def test_without_the_lab():
        pytest.skip("another reason")
"""


def outcomes(pytester: pytest.Pytester) -> dict[str, int]:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makeini("[pytest]\nmarkers = lab: real hosts\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(SKIPPED)
    result = pytester.runpytest_inprocess()
    return {name: count for name, count in result.parseoutcomes().items() if name in ("failed", "skipped", "passed")}


@pytest.mark.parametrize(("name", "value"), [("CI", "true"), ("SSHGRID_REQUIRE_LAB", "1")])
def test_a_skipped_lab_test_fails_where_the_lab_is_required(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert outcomes(pytester) == {"failed": 1, "skipped": 1}


def test_a_lab_test_is_skipped_where_the_lab_is_not_required(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("SSHGRID_REQUIRE_LAB", raising=False)
    assert outcomes(pytester) == {"skipped": 2}
