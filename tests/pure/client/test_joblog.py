"""The lines of a joblog and the rows of results.csv, also when the file was cut by a kill."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sshgrid.client.sweep import joblog, results
from sshgrid.client.sweep.screens import tagged
from sshgrid.errors import UsageError
from sshgrid.model import JobId
from sshgrid.protocol.sweep_messages import SweepProgress, TaskLine
from sshgrid.terminal.bar import text, transfer_text

NAMES = ("x", "node")


def task(number: int = 1, status: int | None = 0, signal: int | None = None, state: str = "") -> TaskLine:
    return TaskLine(
        number, state or ("FAILED" if status else "COMPLETED"), "h2", 1, 1_700_000_000.25, 2.5, status, signal, ""
    )


# --- joblog -----------------------------------------------------------------------------------------------------------


def test_a_line_is_what_gnu_parallel_writes() -> None:
    assert joblog.line(task(7), b"a.py 1") == b"7\th2\t1700000000.250\t     2.500\t0\t0\t0\t0\ta.py 1\n"


@pytest.mark.parametrize(
    ("status", "signal", "written"),
    [(3, None, b"3\t0"), (137, 9, b"0\t9"), (124, None, b"124\t0"), (None, None, b"125\t0")],
)
def test_a_signal_replaces_the_exit_value(status: int | None, signal: int | None, written: bytes) -> None:
    assert joblog.line(task(1, status, signal), b"c").split(b"\t", 6)[6] == written + b"\tc\n"


@given(st.binary(), st.integers(1, 10**6))
def test_every_command_is_read_back_unchanged(command: bytes, number: int) -> None:
    content = joblog.HEADER + joblog.line(task(number), command)
    entries = joblog.parse("L", content)
    assert list(entries) == [number]
    joblog.check_commands("L", entries, lambda _: command, number)


def test_the_last_line_of_a_task_counts() -> None:
    lines = [joblog.line(task(1, 3), b"c"), joblog.line(task(2), b"c"), joblog.line(task(1), b"c")]
    entries = joblog.parse("L", joblog.HEADER + b"".join(lines))
    assert {number: entry.failed for number, entry in entries.items()} == {1: False, 2: False}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (b"import os\n", "L is not a joblog"),
        (joblog.HEADER + b"1\th2\t1.0\n", "L:2:"),
        (joblog.HEADER + joblog.line(task(), b"c") + b"x\n", "L:3:"),
        (joblog.HEADER + b"1\th\t1\t1\t0\t0\tzero\t0\tc\n", "L:2:"),
    ],
)
def test_a_file_that_is_not_a_joblog_is_refused_with_its_line(content: bytes, place: str) -> None:
    with pytest.raises(UsageError, match=place):
        joblog.parse("L", content)


@pytest.mark.parametrize("now", [b"a.py 2", b""])
def test_a_log_of_other_commands_is_refused(now: bytes) -> None:
    entries = joblog.parse("L", joblog.HEADER + joblog.line(task(2), b"a.py 1"))
    with pytest.raises(UsageError, match=r"task 2 is `a\.py 1`"):
        joblog.check_commands("L", entries, lambda _: now, 2 if now else 1)


# --- results.csv ------------------------------------------------------------------------------------------------------


def test_a_row_has_all_columns_and_a_clashing_parameter_is_renamed() -> None:
    assert results.encoded([results.header(NAMES), results.row(task(3, 137, 9), (b"a,b", b"\xff"))]) == (
        b"task,x,param_node,exit_code,signal,seconds,cpu_seconds,peak_memory_bytes,node,attempt\n"
        b'3,"a,b",\xff,137,9,2.500,,,h2,1\n'
    )


@given(st.lists(st.tuples(st.binary(), st.binary()), max_size=5), st.integers(0, 400))
def test_complete_rows_survive_wherever_the_file_is_cut(values: list[tuple[bytes, bytes]], cut: int) -> None:
    rows = [results.row(task(number), value) for number, value in enumerate(values, 1)]
    content = results.encoded([results.header(NAMES), *rows])
    whole = results.whole_rows(content[:cut])
    assert content.startswith(whole)
    found = results.parse("R", whole, NAMES)
    assert [tuple(each) for each in found] == rows[: len(found)]
    assert len(content[:cut]) - len(whole) < max(
        len(results.encoded([each])) for each in [results.header(NAMES), *rows]
    )


@pytest.mark.parametrize("content", [b"a,b\n", b"task\n"])
def test_other_columns_are_refused(content: bytes) -> None:
    with pytest.raises(UsageError, match="does not have the columns"):
        results.parse("R", content, NAMES)


@pytest.mark.parametrize("row", [b"1,2\n", b"x,1,1,0,,1,,,h,1\n", b"1,1,1,zero,,1,,,h,1\n"])
def test_a_foreign_row_is_refused(row: bytes) -> None:
    with pytest.raises(UsageError, match="row 2"):
        results.parse("R", results.encoded([results.header(NAMES)]) + row, NAMES)


# --- shown ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1)))
def test_each_line_gets_the_tag_however_the_bytes_are_split(pieces: list[bytes]) -> None:
    lines = b"".join(pieces).split(b"\n")
    last = lines.pop()
    expected = b"".join(b"1 q\t" + line + b"\n" for line in lines) + (b"1 q\t" + last if last else b"")
    assert b"".join(tagged(pieces, b"1 q\t")) == expected


def test_progress_text_has_all_parts() -> None:
    slow = TaskLine(17, "RUNNING", "h2", 1, 1.0, 42.0, None, None, "")
    progress = SweepProgress(3, 200, 50, 2, 8, 142, 0, 2.5, 60.0, slow)  # type: ignore[arg-type]
    assert text(progress, bar=True) == (
        "[#####...............]  25% 50 of 200 done, 2 failed, 8 running, 2.5/s, 1m left, slowest 3.17 on h2 for 42s"
    )


def test_progress_text_counts_backups() -> None:
    progress = SweepProgress(JobId(3), 9, 7, 0, 2, 0, speculative=1)
    assert text(progress) == "7 of 9 done, 2 running (1 with a second attempt), 0.0/s"


def test_progress_text_at_the_end_has_no_rate() -> None:
    assert text(SweepProgress(3, 9, 7, 1, 0, 0, 2, 2.5, 0.0)) == "7 of 9 done, 1 failed, 2 not started"  # type: ignore[arg-type]


def test_upload_progress_shows_bytes_and_percent() -> None:
    assert transfer_text("uploading to h1", 256 << 20, 1 << 30) == (
        "uploading to h1 [#####...............]  25% 256M of 1G"
    )
