"""The checker of the chaos run finds each kind of error: clean evidence is altered in one place at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import check, plan
from tests.chaos.check import (
    CODES,
    KINDS,
    LOST,
    OUTPUT,
    OVERLAP,
    PROCESSES,
    RUNS,
    TWICE,
    Evidence,
    Observation,
    ProgramRun,
)
from tests.chaos.program import SLOT_BYTES, Job, create_ledger, read_ledger

J1 = Job("j1", 1.0, 12, 40, 0, leaves_child=False)
J2 = Job("j2", 2.0, 3, 0, 7, leaves_child=True)


def attempt(number: int, node: str, outcome: str) -> dict[str, Any]:
    minute = f"2026-01-01T00:{number:02d}"
    return {
        "number": number,
        "node": node,
        "outcome": outcome,
        "started": f"{minute}:00.000Z",
        "ended": f"{minute}:30.000Z",
    }


def job(number: int, name: str, code: int, *attempts: dict[str, Any]) -> dict[str, Any]:
    state = "FAILED" if code else "COMPLETED"
    return {"id": number, "name": name, "state": state, "exit_code": code, "reason": "", "attempts": list(attempts)}


def clean() -> Evidence:
    """Two jobs. The second one lost its first host, and ran on another one under a fence; a client was killed once."""
    lost, taken = attempt(1, "h1", "host-lost: no answer for 10 s"), attempt(2, "h2", "exited 7")
    return Evidence(
        seed=1,
        expected={"j1": J1, "j2": J2},
        fenced=frozenset({"j2"}),
        queue=[job(1, "j1", 0, attempt(1, "h1", "exited 0")), job(2, "j2", 7, lost, taken)],
        logs={1: (J1.stdout, J1.stderr), 2: (J2.stdout, J2.stderr)},
        observations=[
            Observation("j1", "run", None, 0, J1.stdout),
            Observation("j2", "submit", None, 0, b"2\n"),
            Observation("j2", "attach", 2, None, J2.stdout[:10]),
            Observation("j2", "attach", 2, 7, J2.stdout),
            Observation("j2", "wait", 2, 7),
            Observation("j2", "logs", 2, 0, J2.stdout),
        ],
        program_runs=[
            ProgramRun("h1", "j1", 1, 1, 10.0, 11.0, 11.0, 0),
            ProgramRun("h1", "j2", 2, 1, 10.0, 12.0),
            ProgramRun("h2", "j2", 2, 2, 13.0, 15.0, 15.0, 7),
        ],
        processes={"h1": [], "h2": []},
        runs={"h1": [], "h2": []},
    )


def with_queue(change: Callable[[list[Any]], object]) -> Evidence:
    evidence = clean()
    change(evidence.queue)  # type: ignore[arg-type]
    return evidence


def with_program_runs(*program_runs: ProgramRun, without: int | None = None) -> Evidence:
    evidence = clean()
    kept = [run for number, run in enumerate(evidence.program_runs) if number != without]
    return replace(evidence, program_runs=[*kept, *program_runs])


def seen(*observations: Observation) -> Evidence:
    evidence = clean()
    return replace(evidence, observations=[*evidence.observations, *observations])


def kept(number: int, stdout: bytes, stderr: bytes) -> Evidence:
    evidence = clean()
    return replace(evidence, logs={**evidence.logs, number: (stdout, stderr)})


def json_lines(*texts: str) -> bytes:
    events = [{"event": "output", "stream": "stdout", "text": text} for text in texts]
    return b"".join(json.dumps(event).encode() + b"\n" for event in [{"event": "accepted", "id": 1}, *events])


def set_attempts(*outcomes: str) -> Callable[[list[Any]], object]:
    attempts = [attempt(number, "h1", outcome) for number, outcome in enumerate(outcomes, 1)]
    return lambda queue: queue[0].update(attempts=attempts)


half = J1.stdout[: len(J1.stdout) // 2]
ALTERED: dict[str, tuple[str, Evidence]] = {
    "an accepted job is not in the queue": (LOST, with_queue(lambda queue: queue.pop(0))),
    "a job that only a client saw": (LOST, seen(Observation("j1.2", "submit", 9, None, b"9\n"))),
    "a job still runs": (LOST, with_queue(lambda queue: queue[0].update(state="RUNNING", exit_code=None))),
    "a job is queued": (LOST, with_queue(lambda queue: queue[1].update(state="PENDING", exit_code=None, attempts=[]))),
    "the retries were used up": (LOST, with_queue(lambda queue: queue[1].update(state="NODE_FAIL", exit_code=None))),
    "a job is in the queue twice": (TWICE, with_queue(lambda queue: queue.append({**queue[0], "attempts": []}))),
    "two results were stored": (TWICE, with_queue(set_attempts("exited 0", "exited 0"))),
    "a further attempt after a result": (TWICE, with_queue(set_attempts("exited 0", "host-lost: reset"))),
    "an attempt began twice": (TWICE, with_program_runs(ProgramRun("h2", "j1", 1, 1, 20.0, 21.0))),
    "another code in the queue": (CODES, with_queue(lambda queue: queue[0].update(exit_code=1, state="FAILED"))),
    "a client got another code": (CODES, seen(Observation("j2", "wait", 2, 0))),
    "a client got an error of sshgrid": (CODES, seen(Observation("j2", "logs", 2, 125, J2.stdout))),
    "a client got a lost host": (CODES, seen(Observation("j1", "run", None, 125, J1.stdout))),
    "a result of a run that did not end": (CODES, with_program_runs(without=2)),
    "a result of another host": (
        CODES,
        with_program_runs(ProgramRun("h3", "j2", 2, 2, 13.0, 15.0, 15.0, 7), without=2),
    ),
    "the ledger has another code": (
        CODES,
        with_program_runs(ProgramRun("h2", "j2", 2, 2, 13.0, 15.0, 15.0, 0), without=2),
    ),
    "output was lost": (OUTPUT, kept(1, J1.stdout[:-1], J1.stderr)),
    "no output was kept": (OUTPUT, kept(1, b"", b"")),
    "a line was stored twice": (OUTPUT, kept(2, J2.stdout, J2.stderr + b"j2 err 5\n")),
    "a byte was changed": (OUTPUT, kept(1, J1.stdout.replace(b"j1 2 ", b"j1 3 ", 1), J1.stderr)),
    "a client saw a gap": (OUTPUT, seen(Observation("j1", "attach", 1, 0, half + J1.stdout[len(half) + 1 :]))),
    "a client saw too much": (OUTPUT, seen(Observation("j1", "logs", 1, 0, half + J1.stdout))),
    "a client saw too little": (OUTPUT, seen(Observation("j1", "run", None, 0, half))),
    "a killed client saw another beginning": (OUTPUT, seen(Observation("j1", "run", None, None, half[5:]))),
    "events with a gap": (OUTPUT, seen(Observation("j1", "json", None, 0, json_lines(half.decode())))),
    "two live runs under a fence": (OVERLAP, with_program_runs(ProgramRun("h1", "j2", 2, 1, 10.0, 13.1), without=1)),
    "a third run within the second": (OVERLAP, with_program_runs(ProgramRun("h3", "j2", 2, 3, 14.0, 14.5))),
    "a process was left": (PROCESSES, replace(clean(), processes={"h1": ["sleep 1000"], "h2": []})),
    "a run folder was left": (RUNS, replace(clean(), runs={"h1": [], "h2": ["f00d-2.1"]})),
}


def counts(evidence: Evidence) -> dict[str, int]:
    return {kind: len(found) for kind, found in check.check(evidence).findings.items() if found}


def test_clean_evidence_has_no_findings() -> None:
    report = check.check(clean())
    zeros = "; ".join(f"{kind} 0" for kind in KINDS)
    assert (report.line, report.is_clean) == (f"jobs accepted 2 = jobs finished 2; {zeros}", True)


def at_least(kind: str, evidence: Evidence) -> None:
    found = counts(evidence)
    assert found.get(kind, 0) >= 1, found


@pytest.mark.parametrize("name", ALTERED)
def test_altered_evidence_has_a_finding_of_its_kind(name: str) -> None:
    kind, evidence = ALTERED[name]
    at_least(kind, evidence)
    assert not check.check(evidence).is_clean


def test_every_kind_of_finding_has_altered_evidence() -> None:
    assert {kind for kind, _ in ALTERED.values()} == set(KINDS)


def test_overlapping_runs_of_a_job_without_a_fence_are_not_a_finding() -> None:
    _, evidence = ALTERED["two live runs under a fence"]
    assert counts(replace(evidence, fenced=frozenset())) == {}


def test_a_job_that_was_submitted_again_is_another_job() -> None:
    evidence = with_queue(lambda queue: queue.append(job(3, "j1.2", 0, attempt(1, "h2", "exited 0"))))
    evidence = replace(
        evidence,
        logs={**evidence.logs, 3: (J1.stdout, J1.stderr)},
        program_runs=[*evidence.program_runs, ProgramRun("h2", "j1", 3, 1, 5.0, 6.0, 6.0, 0)],
    )
    assert counts(evidence) == {}


def test_json_events_are_checked_by_their_bytes() -> None:
    text = J1.stdout.decode()
    assert counts(seen(Observation("j1", "json", None, 0, json_lines(text[:7], text[7:])))) == {}
    cut = json_lines(text[:7], text[7:])[:-9]  # the last line of a killed client is incomplete
    assert counts(seen(Observation("j1", "json", None, None, cut))) == {}


def test_a_ledger_is_read_back_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    create_ledger(path)
    lines = [
        "j1 12 1 start=5.0 uptime=1.2 pid=9 beat=6.5",
        "j2 13 2 start=5.5 uptime=1.2 pid=8 beat=7.5 end=7.5 uptime=2.0 code=7",
    ]
    with path.open("r+b") as ledger:
        for number, line in enumerate(lines, 1):
            ledger.seek(number * SLOT_BYTES)
            ledger.write(line.encode().ljust(SLOT_BYTES - 1) + b"\n")
    assert read_ledger(path) == lines
    first, second = (check.parse_program_run("h1", line) for line in read_ledger(path))
    assert first == ProgramRun("h1", "j1", 12, 1, 5.0, 6.5)
    assert second == ProgramRun("h1", "j2", 13, 2, 5.5, 7.5, 7.5, 7)


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_plan_and_another_seed_another_plan() -> None:
    hosts = ["h1", "h2", "h3", "h4"]
    assert plan.draw(7, 50, hosts, 3, 60.0) == plan.draw(7, 50, hosts, 3, 60.0)
    assert plan.draw(7, 50, hosts, 3, 60.0) != plan.draw(8, 50, hosts, 3, 60.0)


@pytest.mark.parametrize("seed", range(20))
def test_at_least_one_host_has_no_fault_at_any_time(seed: int) -> None:
    hosts = ["h1", "h2", "h3"]
    run_plan = plan.draw(seed, 5, hosts, 1, 120.0)
    struck = [fault for fault in run_plan.faults if fault.host]
    for fault in struck:
        busy = {each.host for each in struck if each.at <= fault.at <= each.at + each.seconds}
        assert len(busy) < len(hosts)
    assert {fault.kind for fault in plan.draw(seed, 5, hosts, 1, 600.0).faults} >= set(plan.GRID_FAULTS)
