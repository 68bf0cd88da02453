"""Wrong input: one error that names the thing and the place, the documented exit code, and no job."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.lab.hosts import Lab
from tests.whole.grid import CommandResult, Grid

pytestmark = pytest.mark.lab


def assert_refused(done: CommandResult, code: int, *words: str) -> None:
    """Check the exit code, an empty stdout, and one error that contains these words."""
    assert (done.code, done.out) == (code, b""), done
    assert done.err.startswith("error: "), done
    assert done.err.count("error:") == 1, done
    assert "Traceback" not in done.err
    for word in words:
        assert word in done.err, done


def job_ids(grid: Grid) -> list[int]:
    return [job["id"] for job in grid("--json", "ps", "-a").json["jobs"]]


@pytest.fixture(scope="module", autouse=True)
def no_job_is_created(module_grid: Grid) -> Iterator[None]:
    yield
    assert job_ids(module_grid) == []


def test_an_unknown_extension_exits_with_127(grid: Grid) -> None:
    grid.write("prog.xyz", "what is this\n")
    assert_refused(grid("run", "prog.xyz"), 127, "prog.xyz", "hint: ")


def test_a_missing_file_exits_with_127_and_a_similar_name_is_suggested(grid: Grid) -> None:
    grid.write("primes.py", "print(2)")
    assert_refused(grid("run", "prime.py"), 127, "no such file: prime.py", "primes.py")


def test_a_path_below_a_file_exits_with_2(grid: Grid) -> None:
    grid.write("file", "")
    assert_refused(grid("run", "file/below.py"), 2, "file/below.py")


def test_a_folder_without_a_makefile_exits_with_2(grid: Grid) -> None:
    grid.write("folder/main.c", "int main(void) { return 0; }")
    assert_refused(grid("run", "folder"), 2, "folder is a folder without a Makefile", "hint: ")


def test_A10_a_symbolic_link_in_a_folder_is_refused_and_named(grid: Grid) -> None:
    grid.write("folder/Makefile", "all:\n")
    (grid.folder / "folder" / "away").symlink_to("/etc/passwd")
    assert_refused(grid("run", "folder"), 2, "folder/away")


@pytest.mark.parametrize(
    "words",
    [
        ["run", "--no-such-option", "x.py"],
        ["run"],
        ["--no-such-option"],
        ["rum", "x.py"],
        ["run", "--time-limit", "soon", "x.py"],
        ["run", "--memory", "much", "x.py"],
        ["run", "--retries", "-1", "x.py"],
        ["run", "--env", "1A=2", "x.py"],
        ["run", "--on-host-loss", "pray", "x.py"],
        ["run", "--flags", "'", "x.c"],
        ["run", "--on", "h[1-", "x.py"],
        ["run", "--lang", "java>=", "x.py"],
        ["logs"],
        ["ps", "--state", "SLEEPING"],
        ["kill", "1-", "--signal", "NOTHING"],
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_with_2(grid: Grid, words: list[str]) -> None:
    grid.write("x.py", "print(1)")
    grid.write("x.c", "int main(void) { return 0; }")
    assert_refused(grid(*words), 2)


def test_an_unknown_node_exits_with_125(grid: Grid) -> None:
    grid.write("x.py", "print(1)")
    assert_refused(grid("run", "--on", "h9", "x.py"), 125, "h9")
    assert_refused(grid("run", "--on", "@missing", "x.py"), 125, "missing")


def test_a_version_that_no_node_has_exits_with_127(grid: Grid) -> None:
    grid.write("X.java", "class X { public static void main(String[] a) {} }")
    grid.wait_for_toolchain("java")
    assert_refused(grid("run", "--lang", "java>=99", "X.java"), 127, "java>=99")


def test_an_unknown_language_exits_with_127(grid: Grid) -> None:
    grid.write("x.py", "print(1)")
    assert_refused(grid("run", "--lang", "brainfog", "x.py"), 127, "brainfog")


def test_an_unknown_job_exits_with_1(grid: Grid) -> None:
    for verb in ("info", "logs", "attach", "wait", "kill", "rm", "hold", "release"):
        assert_refused(grid(verb, "9999"), 1, "no such job", "9999")


def test_a_selector_without_a_matching_job_exits_with_1(grid: Grid) -> None:
    for verb in ("wait", "kill", "rm", "hold", "release"):
        assert_refused(grid(verb, "9000-9009"), 1, "no such jobs", "9000-9009")
        assert_refused(grid(verb, "9999,9998"), 1, "no such job", "9999")


def test_last_in_an_empty_queue_exits_with_1(new_grid: Callable[[], Grid]) -> None:
    grid = new_grid()
    for verb in ("info", "logs", "attach", "wait", "kill", "rm", "hold", "release"):
        assert_refused(grid(verb, "last"), 1, "there is no job yet", "sshgrid run")


def test_A11_an_argument_of_130_kB_arrives(grid: Grid) -> None:
    grid.write("length.py", "import sys; print(len(sys.argv[1]))")
    assert grid("run", "length.py", "x" * 130_000).out == b"130000\n"
    assert grid("rm", "last").code == 0


def test_A11_arguments_over_the_limit_of_the_system_exit_with_2(grid: Grid) -> None:
    grid.write("length.py", "import sys; print(len(sys.argv[1]))")
    many = ["x" * 130_000] * 16
    assert_refused(grid("run", "length.py", *many), 2, "2,080,000 bytes")


def test_A9_a_name_that_is_not_utf8_is_refused(grid: Grid) -> None:
    with open(bytes(grid.folder) + b"/\xff.py", "wb") as file:  # noqa: PTH123 - no str
        file.write(b"print(1)")
    assert_refused(grid("run", b"\xff.py"), 2, "not UTF-8")


def test_an_error_is_json_with_the_option_json(grid: Grid) -> None:
    done = grid("--json", "run", "nowhere.py")
    assert done.code == 127
    assert done.json["schema"] == 1
    assert done.json["error"].keys() == {"code", "message", "hint"}
    assert done.json["error"]["code"] == "no-such-file"
    assert done.err == ""


def test_without_a_reachable_node_run_exits_with_125_and_gives_a_reason_for_each(grid: Grid, hosts: Lab) -> None:
    grid.write("x.py", "print(1)")
    assert grid("run", "x.py").out == b"1\n"
    assert grid("rm", "last").code == 0
    for host in hosts:
        host.stop_server()
        host.reset_sessions()
    done = grid("run", "x.py")
    assert_refused(done, 125, "h1", "h2", "h3", "h4")
    assert grid("rm", "last").code == 0
