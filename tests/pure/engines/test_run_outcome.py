"""What the record of a run means: the fault of the program, of its toolchain or of the node."""

from __future__ import annotations

import pytest

from sshgrid.engines import run_outcome
from sshgrid.engines.run_outcome import Evidence
from sshgrid.model import (
    CompileFailed,
    Exited,
    HostLost,
    Limits,
    Outcome,
    OutOfMemory,
    OutputLimit,
    ProcessLimit,
    TimedOut,
    ToolchainBroken,
    Usage,
)
from sshgrid.ssh.parsers import RunRecord

LIMITS = Limits(wall_seconds=2.0, memory_bytes=100, output_bytes=200, processes=3)


def record(code: int, stage: str) -> RunRecord:
    return RunRecord(code, stage, 10.0, 12.5, 0.25, 4096)


def outcome(code: int, stage: str, why: str = "", text: bytes = b"") -> Outcome:
    return run_outcome.outcome(record(code, stage), why, LIMITS, "c", b"/usr/bin/tool", text)


@pytest.mark.parametrize(
    ("code", "why", "expected"),
    [
        (0, "", Exited(0)),
        (137, "", Exited(137)),
        (143, "signal", Exited(143)),
        (137, "wall", TimedOut(2.0)),
        (137, "memory", OutOfMemory(100)),
        (137, "output", OutputLimit(200)),
        (137, "processes", ProcessLimit(3)),
        (137, "lease", HostLost(run_outcome.LEASE_ENDED)),
        (0, "full", HostLost("its disk was full when the run ended: what it printed may not be whole")),
        (127, "toolchain", ToolchainBroken("/usr/bin/tool is no longer there")),
    ],
)
def test_the_reason_of_an_ended_program_decides_before_its_code(code: int, why: str, expected: Outcome) -> None:
    assert outcome(code, "run", why) == expected


@pytest.mark.parametrize(
    ("code", "why", "text", "expected"),
    [
        (1, "", b"x.c:1: error\n", CompileFailed(1)),
        (1, "", b"x.c: No space left on device", HostLost("no space left for the build")),
        (1, "", b"internal compiler error: in f", ToolchainBroken("the c compiler crashed (status 1)")),
        (139, "", b"", ToolchainBroken("the c compiler crashed (status 139)")),
        (126, "", b"", ToolchainBroken("the c compiler could not be started")),
        (127, "", b"", ToolchainBroken("the c compiler could not be started")),
        (143, "wall", b"", ToolchainBroken("the c compiler did not end within 600 s")),
        (137, "lease", b"", HostLost(run_outcome.LEASE_ENDED)),
    ],
)
def test_a_failed_build_is_the_fault_of_program_compiler_or_node(
    code: int, why: str, text: bytes, expected: Outcome
) -> None:
    assert outcome(code, "build", why, text) == expected


@pytest.mark.parametrize(("why", "what"), [("", "the build"), ("data", "the files of the run")])
def test_a_run_that_could_not_be_laid_out_lacks_space(why: str, what: str) -> None:
    assert outcome(74, "layout", why) == HostLost(f"no space left for {what}")


@pytest.mark.parametrize(("text", "shown"), [(b" sh: cannot\nopen it ", "sh: cannot open it"), (b"", "70")])
def test_a_program_that_was_not_started_is_the_node_s_fault(text: bytes, shown: str) -> None:
    assert outcome(70, "start", text=text) == HostLost(f"the program could not be started there: {shown}")


@pytest.mark.parametrize(
    ("stage", "why", "sizes", "expected"),
    [
        ("build", "", {"build.log": 9000}, Evidence("build.log", 9000)),
        ("build", "", {"build.log": 1 << 30}, Evidence("build.log", run_outcome.BUILD_LOG_BYTES)),
        ("build", "", {}, None),
        ("start", "", {}, Evidence("wrapper.log", run_outcome.WRAPPER_LOG_BYTES)),
        ("start", "toolchain", {}, None),
        ("start", "lease", {}, None),
        ("layout", "data", {"build.log": 9000}, None),
        ("run", "", {"build.log": 9000}, None),
    ],
)
def test_a_file_is_read_only_where_it_explains_a_failure(
    stage: str, why: str, sizes: dict[str, int], expected: Evidence | None
) -> None:
    assert run_outcome.evidence(record(1, stage), why, sizes) == expected


def test_a_build_exists_once_the_program_was_to_start() -> None:
    stages = {stage: run_outcome.has_build(record(0, stage)) for stage in ("layout", "build", "start", "run")}
    assert stages == {"layout": False, "build": False, "start": True, "run": True}


def test_usage_is_that_of_the_record() -> None:
    assert run_outcome.usage(record(0, "run")) == Usage(10.0, 12.5, 0.25, 4096)


def test_a_batch_without_a_record_has_lost_its_lease_or_vanished() -> None:
    assert run_outcome.lost_batch("lease") == run_outcome.LEASE_ENDED
    assert run_outcome.lost_batch("") == run_outcome.VANISHED
