"""The joblog and the results folder of a sweep as files: after a kill, on a full disk, with a second writer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sshgrid.client.sweep import joblog
from sshgrid.client.sweep.joblog import HEADER, Joblog
from sshgrid.client.sweep.record_files import Unwritable
from sshgrid.client.sweep.results import ResultOutput, Results, temporary_output
from sshgrid.client.sweep.resume import SCHEMA, ResumeState
from sshgrid.errors import UsageError
from sshgrid.model import JobId
from sshgrid.protocol.sweep_messages import TaskLine

KEPT = ResumeState(SCHEMA, "/home/ann/inventory.yaml", "key", "digest", 3, "", JobId(42))


def task(number: int, status: int = 0) -> TaskLine:
    return TaskLine(number, "FAILED" if status else "COMPLETED", "h2", 1, 1.0, 2.5, status, None, "")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "a" / "results"


@pytest.fixture
def results(folder: Path) -> Iterator[Results]:
    with Results(str(folder), ("x",), numbered=False) as results:
        results.begin()
        yield results


def written(output: ResultOutput, out: bytes, err: bytes = b"") -> ResultOutput:
    output.write("stdout", out)
    output.write("stderr", err)
    return output


def put(results: Results, ended: TaskLine, value: bytes, out: bytes = b"", err: bytes = b"") -> None:
    """Record a task with this output."""
    output = written(results.output(ended.number), out, err)
    try:
        results.add(ended, [value], output)
    finally:
        output.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- results ----------------------------------------------------------------------------------------------------------


def test_a_task_leaves_three_files_and_a_row(folder: Path, results: Results) -> None:
    put(results, task(1, 3), b"a/b", b"out\xff", b"err")
    found = contents(folder)
    assert (found["x=a%2Fb/stdout"], found["x=a%2Fb/stderr"], found["x=a%2Fb/rc"]) == (b"out\xff", b"err", b"3\n")
    assert found["results.csv"].splitlines()[1:] == [b"1,a/b,3,,2.500,,,h2,1"]
    assert len(found) == 4


def test_output_of_an_unfinished_task_is_removed_at_the_next_start(folder: Path) -> None:
    with Results(str(folder), ("x",), numbered=False) as first:
        first.begin()
        half = written(first.output(1), b"half")
        half.close()
        parts = [path.name for path in folder.iterdir() if path.name.startswith(".part")]
    assert len(parts) == 2
    (folder / parts[0]).write_bytes(b"half")  # as after a kill
    with Results(str(folder), ("x",), numbered=False) as second:
        second.begin()
        assert [path.name for path in folder.iterdir()] == ["results.csv"]


def test_files_without_their_row_are_written_again(folder: Path) -> None:
    (folder / "x=a").mkdir(parents=True)
    for name in ("stdout", "stderr", "rc"):
        (folder / "x=a" / name).write_bytes(b"of a client that was killed before the row")
    with Results(str(folder), ("x",), numbered=False) as results:
        results.begin()
        assert results.failed == {}
        put(results, task(1), b"a", b"new")
    found = contents(folder)
    assert (found["x=a/stdout"], found["x=a/stderr"], found["x=a/rc"]) == (b"new", b"", b"0\n")


def test_an_incomplete_last_row_is_ignored(folder: Path) -> None:
    with Results(str(folder), ("x",), numbered=False) as results:
        results.begin()
        for number, value in ((1, b"a"), (2, b'"\n"')):
            put(results, task(number), value)
    whole = (folder / "results.csv").read_bytes()
    (folder / "results.csv").write_bytes(whole[:-12])
    with Results(str(folder), ("x",), numbered=False) as results:
        results.begin()
        assert results.failed == {1: False}
        put(results, task(2), b'"\n"')
    assert (folder / "results.csv").read_bytes() == whole


def test_resume_failed_removes_the_rows_of_failed_tasks(folder: Path) -> None:
    with Results(str(folder), ("x",), numbered=False) as results:
        results.begin()
        for number, status in ((1, 0), (2, 5), (3, 0)):
            put(results, task(number, status), b"%d" % number)
    with Results(str(folder), ("x",), numbered=False) as results:
        results.begin(without_failed=True)
        assert results.failed == {1: False, 3: False}
        put(results, task(2), b"2")
    rows = (folder / "results.csv").read_text().splitlines()[1:]
    assert [row[:4] for row in rows] == ["1,1,", "3,3,", "2,2,"] or [row.split(",")[0] for row in rows] == [
        "1",
        "3",
        "2",
    ]


def test_a_results_folder_in_use_is_refused(folder: Path, results: Results) -> None:
    with pytest.raises(UsageError, match="another sshgrid is writing"):
        Results(str(folder), ("x",), numbered=False)


def test_a_results_path_that_is_not_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="--results"):
        Results(str(tmp_path / "file" / "x"), ("x",), numbered=False)


def test_a_link_as_a_tasks_folder_is_not_followed(folder: Path, results: Results, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "x=a").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unwritable):
        put(results, task(1), b"a")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert results.failed == {}


# --- what is kept of the sweep ----------------------------------------------------------------------------------------


def test_the_resume_state_is_read_back_and_refused_for_another_sweep(folder: Path, results: Results) -> None:
    assert results.resume_file.load_for("digest") is None
    results.resume_file.save(KEPT)
    assert results.resume_file.load_for("digest") == KEPT
    with pytest.raises(UsageError, match="belongs to another sweep"):
        results.resume_file.load_for("another digest")


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"schema": 1}', b"\xff", b'{"schema":2,"grid":"","key":"","digest":"","tasks":1}']
)
def test_an_invalid_resume_file_is_refused(folder: Path, results: Results, content: bytes) -> None:
    (folder / "sweep.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"sweep\.json"):
        results.resume_file.load()


# --- joblog -----------------------------------------------------------------------------------------------------------


def test_a_joblog_grows_by_complete_lines_and_can_be_resumed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = Joblog(str(path), resume=False)
    log.add(task(1), b"a.py 1")
    log.close()
    with path.open("ab") as file:
        file.write(b"2\th2\t1.0")  # cut by a kill
    log = Joblog(str(path), resume=True)
    assert list(log.entries) == [1]
    log.add(task(2), b"a.py 2")
    log.close()
    assert path.read_bytes() == HEADER + joblog.line(task(1), b"a.py 1") + joblog.line(task(2), b"a.py 2")


def test_without_resume_a_joblog_is_emptied(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(HEADER + joblog.line(task(1), b"c"))
    Joblog(str(tmp_path / "log"), resume=False).close()
    assert (tmp_path / "log").read_bytes() == HEADER


def test_a_file_that_is_not_a_joblog_stays_unchanged(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_bytes(b"print(1)\n")
    with pytest.raises(UsageError, match="not a joblog"):
        Joblog(str(tmp_path / "a.py"), resume=False)
    assert (tmp_path / "a.py").read_bytes() == b"print(1)\n"


def test_a_joblog_in_use_is_refused(tmp_path: Path) -> None:
    log = Joblog(str(tmp_path / "log"), resume=False)
    with pytest.raises(UsageError, match="another sshgrid is writing"):
        Joblog(str(tmp_path / "log"), resume=True)
    log.close()


def test_a_full_disk_raises_unwritable() -> None:
    with pytest.raises(Unwritable, match=r"/dev/full: No space left on device") as raised:
        Joblog("/dev/full", resume=False)
    assert "--resume" in raised.value.hint


def test_a_line_that_does_not_fit_is_removed(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        os._exit(_write_until_full(str(tmp_path / "log")))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    lines = (tmp_path / "log").read_bytes()
    assert lines.endswith(b"\n")
    assert 0 < len(joblog.parse("log", lines)) < 1000


def _write_until_full(path: str) -> int:
    """Exits with 0 if Unwritable was raised; a separate process, as the limit applies to a whole process."""
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    try:
        log = Joblog(path, resume=False)
        for number in range(1, 1000):
            log.add(task(number), b"a.py 1")
    except Unwritable:
        return 0
    return 1


def test_temporary_output_returns_the_same_bytes() -> None:
    output = written(temporary_output(), b"a" * 3_000_000, b"b")
    assert b"".join(output.pieces("stdout")) == b"a" * 3_000_000
    assert b"".join(output.pieces("stderr")) == b"b"
    output.close()
