"""Selectors: which nodes and jobs they select, and which selectors are errors."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.errors import NoSuchJob, NoSuchNode, UsageError
from sshgrid.model import JobId, Node, task_id
from sshgrid.notation.selectors import MAX_NAMES, did_you_mean, expand, fold, jobs, nodes

KNOWN = (
    Node("alpha", tags=frozenset({"fast", "lab"})),
    Node("beta", tags=frozenset({"lab"})),
    *(Node(f"node{number:02d}", tags=frozenset({"row"})) for number in range(1, 11)),
)
JOBS = tuple(JobId(number) for number in (1, 2, 3, 5, 8, 42))


def names(selector: str) -> str:
    return " ".join(node.name for node in nodes(selector, KNOWN))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("alpha", "alpha"),
        ("node[01-03]", "node01 node02 node03"),
        ("node[8-11]", "node8 node9 node10 node11"),
        ("node[08-11]", "node08 node09 node10 node11"),
        ("node[098-101]", "node098 node099 node100 node101"),
        ("node[01-100]", " ".join(f"node{number:02d}" for number in range(1, 101))),
        ("n[1,3,5-6]x", "n1x n3x n5x n6x"),
        ("r[1-2]n[0-1]", "r1n0 r1n1 r2n0 r2n1"),
        ("n[0-0]", "n0"),
    ],
)
def test_expand_gives_the_names_of_a_pattern(pattern: str, expected: str) -> None:
    assert expand(pattern) == tuple(expected.split())


@pytest.mark.parametrize(
    "pattern",
    ["n[1-", "n1]", "n[]", "n[1-2-3]", "n[a-b]", "n[3-1]", "n[[1-2]]", "n[-1]", "n[1,]", "n[٣]", "]n[", "n[1-2]]"],
)
def test_a_malformed_range_is_an_error_and_never_a_name(pattern: str) -> None:
    with pytest.raises(UsageError) as caught:
        expand(pattern)
    assert caught.value.hint


@pytest.mark.parametrize("pattern", ["n[0-10000]", "n[0-999999999]", "a[0-999]b[0-999]", "a[0-9999]b[0-9999]c[0-9999]"])
def test_a_range_with_too_many_names_is_an_error_before_it_is_expanded(pattern: str) -> None:
    with pytest.raises(UsageError, match=str(MAX_NAMES)):
        expand(pattern)


@given(st.integers(0, 5000), st.integers(0, 300))
def test_a_range_has_one_distinct_name_for_each_number(first: int, more: int) -> None:
    found = expand(f"n[{first}-{first + more}]")
    assert len(found) == len(set(found)) == more + 1
    assert found[-1] == f"n{first + more}"


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("beta,alpha", "alpha beta"),
        ("@lab", "alpha beta"),
        ("@lab,!alpha", "beta"),
        ("!@row", "alpha beta"),
        ("node[01-03]", "node01 node02 node03"),
        ("node[01,03],beta", "beta node01 node03"),
        ("node[09-12]", "node09 node10"),
        ("@row,!node[02-10]", "node01"),
        (" alpha , beta ", "alpha beta"),
        ("alpha,alpha", "alpha"),
    ],
)
def test_a_selector_selects_nodes_in_the_order_of_the_inventory(selector: str, expected: str) -> None:
    assert names(selector) == expected


def test_the_empty_selector_selects_all_nodes() -> None:
    assert nodes("", KNOWN) == KNOWN
    assert nodes("  ", ()) == ()


@pytest.mark.parametrize(
    ("selector", "words"),
    [
        ("alpah", "did you mean 'alpha'"),
        ("alpha,gone", "no node 'gone'"),
        ("@fsat", "did you mean 'fast'"),
        ("!gone", "no node 'gone'"),
        ("alpha,!alpha", "selects no node"),
        ("node[11-12]", "no node 'node[11-12]'"),
    ],
)
def test_a_part_that_selects_no_node_is_an_error(selector: str, words: str) -> None:
    with pytest.raises(NoSuchNode) as caught:
        names(selector)
    assert words in caught.value.message


@pytest.mark.parametrize("selector", ["alpha,", ",", "@", "!", "!!alpha", "node[1-", "!@"])
def test_a_malformed_node_selector_is_a_usage_error(selector: str) -> None:
    with pytest.raises(UsageError) as caught:
        names(selector)
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("42", [42]),
        ("1-3", [1, 2, 3]),
        ("3-8", [3, 5, 8]),
        ("1,3,5-8", [1, 3, 5, 8]),
        ("5,1,5", [5, 1]),
        ("last", [42]),
        ("last,1", [42, 1]),
        ("all", [1, 2, 3, 5, 8, 42]),
        ("", [1, 2, 3, 5, 8, 42]),
        ("1-999999999999999999", [1, 2, 3, 5, 8, 42]),
        ("42.17", [task_id(JobId(42), 17)]),
        ("42.17-18,3", [task_id(JobId(42), 17), task_id(JobId(42), 18), 3]),
        ("42.17-42.18", [task_id(JobId(42), 17), task_id(JobId(42), 18)]),
    ],
)
def test_a_selector_selects_jobs_in_the_order_of_its_parts(selector: str, expected: list[int]) -> None:
    assert list(jobs(selector, JOBS)) == expected


@pytest.mark.parametrize("selector", ["4", "6-7", "1,4", "100-200", "4.1"])
def test_a_part_that_selects_no_job_is_an_error(selector: str) -> None:
    with pytest.raises(NoSuchJob):
        jobs(selector, JOBS)


def test_without_jobs_last_is_an_error_and_all_is_empty() -> None:
    assert jobs("all", ()) == ()
    with pytest.raises(NoSuchJob):
        jobs("last", ())


@pytest.mark.parametrize(
    "selector", ["x", "1-", "-1", "8-3", "1,,2", "42.0", "42.", "42.9-3", "42.1-20000", "1 2", "٣", "0x10"]
)
def test_a_malformed_job_selector_is_a_usage_error(selector: str) -> None:
    with pytest.raises(UsageError) as caught:
        jobs(selector, JOBS)
    assert (caught.value.exit_status, caught.value.code) == (2, "usage")
    assert caught.value.hint


@given(st.text(max_size=30))
def test_any_text_is_a_selector_or_a_usage_error(text: str) -> None:
    for select in (lambda: nodes(text, KNOWN), lambda: jobs(text, JOBS), lambda: expand(text)):
        with suppress(UsageError):
            assert isinstance(select(), tuple)


def test_only_a_similar_word_is_suggested() -> None:
    assert did_you_mean("hosts", ["host", "port"]) == "; did you mean 'host'?"
    assert did_you_mean("zzz", ["host", "port"]) == ""


# --- fold -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ("alpha", "alpha"),
        ("beta n1 alpha n", "alpha,beta,n,n1"),
        ("node07 node02 node01 node03", "node[01-03,07]"),
        ("node7", "node7"),
        ("node9 node10 node11", "node[9-11]"),
        ("node09 node10 node100", "node100,node[09-10]"),
        ("n1 n01", "n1,n01"),
        ("r1n1 r1n2 r2n1", "r1n[1-2],r2n1"),
        ("web1.lab web2.lab web2", "web2,web[1-2].lab"),
        ("1 2 3", "[1-3]"),
        ("x1234567890 x1234567891", "x1[234567890-234567891]"),
    ],
)
def test_names_are_folded_as_in_clustershell(found: str, expected: str) -> None:
    assert fold(found.split()) == expected


@given(st.sets(st.from_regex(r"[a-c]{0,1}[0-9]{0,4}[.x]?[0-9]{0,3}[a-c]?", fullmatch=True).filter(bool), min_size=1))
def test_a_folded_pattern_expands_to_the_same_names(found: set[str]) -> None:
    parts = re.split(r",(?![^\[]*\])", fold(found))
    again = [name for part in parts for name in expand(part)]
    assert sorted(again) == sorted(found)
