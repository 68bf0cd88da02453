"""Checks the evidence of a chaos run, without any code of sshgrid, and prints one line of counts.

It compares four sources: the ledgers that the programs wrote on their hosts, the queue as `info --json` prints it, the
output and exit codes that clients got, and the files and processes left on the hosts. `python -m tests.chaos.check
FOLDER` checks a stored run again.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.chaos.program import Job

FINISHED = {"COMPLETED", "FAILED"}
REFUSED = {2, 125, 127}  # exit codes of sshgrid itself
TELLS_CODE = {"run", "json", "wait", "attach"}
SHOWS_OUTPUT = {"run", "json", "attach", "logs"}
EXITED = re.compile(r"exited (\d+)")
SHOWN = 10  # findings of a kind in the report

KINDS = (
    "jobs lost",
    "results taken twice",
    "wrong exit codes",
    "output bytes missing or doubled",
    "overlapping live runs under fence",
    "processes left",
    "run directories left",
)
LOST, TWICE, CODES, OUTPUT, OVERLAP, PROCESSES, RUNS = KINDS


@dataclass(frozen=True)
class Observation:
    """What one command of a client printed. `status` is None when it was killed."""

    label: str
    verb: str
    job: int | None
    status: int | None
    stdout: bytes = b""


@dataclass(frozen=True)
class ProgramRun:
    """A run of the program, from its ledger. `end` is None when it was killed; `beat` is its last sign of life."""

    host: str
    name: str
    job: int
    attempt: int
    start: float
    beat: float
    end: float | None = None
    code: int | None = None

    @property
    def last(self) -> float:
        return self.beat if self.end is None else self.end


@dataclass
class Evidence:
    """`expected`: name of a job -> its program. `fenced`: names of jobs that may have only one live run."""

    seed: int
    expected: Mapping[str, Job]
    fenced: frozenset[str]
    queue: Sequence[Mapping[str, Any]]  # the objects of `info --json`
    logs: Mapping[int, tuple[bytes, bytes]]  # job -> kept stdout and stderr
    observations: Sequence[Observation] = ()
    program_runs: Sequence[ProgramRun] = ()
    processes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    runs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    faults: Sequence[Mapping[str, Any]] = ()

    def job_of(self, label: str) -> Job:
        """The job of a label. A job that was submitted again has a number after its name."""
        return self.expected[label.partition(".")[0]]


@dataclass
class Report:
    accepted: int
    finished: int
    findings: dict[str, list[str]]
    figures: dict[str, str]

    @property
    def is_clean(self) -> bool:
        return self.accepted == self.finished and not any(self.findings.values())

    @property
    def line(self) -> str:
        sign = "=" if self.accepted == self.finished else "/="
        counts = "; ".join(f"{kind} {len(self.findings[kind])}" for kind in KINDS)
        return f"jobs accepted {self.accepted} {sign} jobs finished {self.finished}; {counts}"

    @property
    def text(self) -> str:
        lines = [self.line, *(f"{name}: {value}" for name, value in self.figures.items())]
        for kind, findings in self.findings.items():
            lines += [f"  {kind}: {finding}" for finding in findings[:SHOWN]]
            if len(findings) > SHOWN:
                lines.append(f"  {kind}: and {len(findings) - SHOWN} more")
        return "\n".join(lines)


def check(evidence: Evidence) -> Report:
    """Check everything. Each contradiction between the sources is a finding."""
    accepted = _accepted(evidence) | {str(job["name"]) for job in evidence.queue}
    findings = {
        LOST: [*_missing_jobs(evidence), *_unfinished(evidence)],
        TWICE: [*_duplicate_jobs(evidence), *_duplicate_results(evidence), *_duplicate_starts(evidence)],
        CODES: [*_wrong_codes(evidence), *_wrong_codes_seen(evidence), *_results_without_a_run(evidence)],
        OUTPUT: [*_wrong_logs(evidence), *_wrong_output_seen(evidence)],
        OVERLAP: list(_overlaps(evidence)),
        PROCESSES: [f"{host}: {process}" for host, left in evidence.processes.items() for process in left],
        RUNS: [f"{host}: {run}" for host, left in evidence.runs.items() for run in left],
    }
    finished = len({job["name"] for job in evidence.queue if job["state"] in FINISHED})
    return Report(len(accepted), finished, findings, _figures(evidence))


# --- lost -------------------------------------------------------------------------------------------------------------
def _accepted(evidence: Evidence) -> set[str]:
    """The labels of jobs that were accepted according to a client."""
    return {
        observation.label
        for observation in evidence.observations
        if observation.job is not None or observation.stdout or observation.status not in {None, *REFUSED}
    }


def _missing_jobs(evidence: Evidence) -> Iterator[str]:
    known = {job["name"] for job in evidence.queue}
    for label in sorted(_accepted(evidence) - known):
        yield f"{label} was accepted and is not in the queue"


def _unfinished(evidence: Evidence) -> Iterator[str]:
    for job in evidence.queue:
        if job["state"] not in FINISHED or job["exit_code"] is None:
            yield f"{job['name']} (job {job['id']}) is {job['state']}: {job['reason']}"


# --- twice ------------------------------------------------------------------------------------------------------------
def _duplicate_jobs(evidence: Evidence) -> Iterator[str]:
    for name, count in Counter(job["name"] for job in evidence.queue).items():
        if count > 1:
            yield f"{name} was submitted once and is {count} jobs"


def _duplicate_results(evidence: Evidence) -> Iterator[str]:
    for job in evidence.queue:
        results = [attempt["number"] for attempt in job["attempts"] if EXITED.fullmatch(attempt["outcome"])]
        if len(results) > 1:
            yield f"{job['name']}: results of the attempts {results} were taken"
        if results and results[-1] != job["attempts"][-1]["number"]:
            yield f"{job['name']}: attempt {results[-1]} had a result, and another attempt began"


def _duplicate_starts(evidence: Evidence) -> Iterator[str]:
    for (job, attempt), count in Counter((run.job, run.attempt) for run in evidence.program_runs).items():
        if count > 1:
            yield f"job {job}: attempt {attempt} began {count} times"


# --- codes ------------------------------------------------------------------------------------------------------------
def _wrong_codes(evidence: Evidence) -> Iterator[str]:
    for job in evidence.queue:
        code = evidence.job_of(job["name"]).code
        if job["exit_code"] not in (None, code):
            yield f"{job['name']} (job {job['id']}): {job['exit_code']} in the queue instead of {code}"


def _wrong_codes_seen(evidence: Evidence) -> Iterator[str]:
    for observation in evidence.observations:
        if observation.status is None:
            continue
        code = evidence.job_of(observation.label).code if observation.verb in TELLS_CODE else 0
        if observation.status != code:
            yield f"{observation.label}: `{observation.verb}` ended with {observation.status} instead of {code}"


def _results_without_a_run(evidence: Evidence) -> Iterator[str]:
    """Each stored result must be the end of a run in the ledger of that host."""
    ends = {(run.job, run.attempt, run.host): run.code for run in evidence.program_runs if run.end is not None}
    for job in evidence.queue:
        for attempt in job["attempts"]:
            if found := EXITED.fullmatch(attempt["outcome"]):
                code = ends.get((job["id"], attempt["number"], attempt["node"]))
                if code != int(found[1]):
                    run = f"attempt {attempt['number']} on {attempt['node']}"
                    yield f"{job['name']}: {found[1]} was stored for {run}, whose ledger has {code}"


# --- output -----------------------------------------------------------------------------------------------------------
def _wrong_logs(evidence: Evidence) -> Iterator[str]:
    for job in evidence.queue:
        if job["state"] not in FINISHED:
            continue
        expected = evidence.job_of(job["name"])
        for stream, expected_output, kept in zip(
            ("stdout", "stderr"),
            (expected.stdout, expected.stderr),
            evidence.logs.get(job["id"], (b"", b"")),
            strict=True,
        ):
            if kept != expected_output:
                yield f"{job['name']} (job {job['id']}): kept {stream}: {_difference(kept, expected_output)}"


def _wrong_output_seen(evidence: Evidence) -> Iterator[str]:
    """A command that ended must have printed all output, a killed command the beginning of it."""
    for observation in evidence.observations:
        if observation.verb not in SHOWS_OUTPUT:
            continue
        wanted = evidence.job_of(observation.label).stdout
        seen = _texts(observation.stdout) if observation.verb == "json" else observation.stdout
        if observation.status is None:
            wanted = wanted[: len(seen)]
        if seen != wanted:
            yield f"{observation.label}: seen by `{observation.verb}`: {_difference(seen, wanted)}"


def _texts(lines: bytes) -> bytes:
    """The program's stdout in the events of `run --json`. The last line of a killed client may be incomplete."""
    whole = lines[: lines.rfind(b"\n") + 1].splitlines()
    events = [json.loads(line) for line in whole]
    return "".join(event["text"] for event in events if event.get("stream") == "stdout" and "text" in event).encode()


def _difference(seen: bytes, wanted: bytes) -> str:
    same = next(
        (at for at, (a, b) in enumerate(zip(seen, wanted, strict=False)) if a != b), min(len(seen), len(wanted))
    )
    return f"{len(seen)} bytes instead of {len(wanted)}, the same up to byte {same}"


# --- overlaps ---------------------------------------------------------------------------------------------------------
def _overlaps(evidence: Evidence) -> Iterator[str]:
    by_job: dict[int, list[ProgramRun]] = defaultdict(list)
    for run in evidence.program_runs:
        if run.name in evidence.fenced:
            by_job[run.job].append(run)
    for job, program_runs in by_job.items():
        ordered = sorted(program_runs, key=lambda run: run.start)
        for before, after in pairwise(ordered):
            if after.start < before.last:
                yield (
                    f"{before.name} (job {job}): attempt {after.attempt} on {after.host} began "
                    f"{before.last - after.start:.1f} s before attempt {before.attempt} on {before.host} was over"
                )


# --- figures ----------------------------------------------------------------------------------------------------------
def _figures(evidence: Evidence) -> dict[str, str]:
    attempts = [attempt for job in evidence.queue for attempt in job["attempts"]]
    gaps = [gap for job in evidence.queue for gap in _gaps(job["attempts"])]
    masters = [record["seconds"] for record in evidence.faults if record["kind"] == "kill-master"]
    counts = Counter(str(record["kind"]) for record in evidence.faults)
    killed = sum(observation.status is None for observation in evidence.observations)
    ends = Counter(attempt["outcome"].partition(":")[0] for attempt in attempts)
    return {
        "seed": str(evidence.seed),
        "faults": f"{counts.total()}: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()),
        "clients": f"{len(evidence.observations)} commands, {killed} of them killed",
        "attempts": f"{len(attempts)} for {len(evidence.queue)} jobs, {len(evidence.program_runs)} runs in ledgers; "
        + ", ".join(f"{count} {end or 'open'}" for end, count in ends.most_common()),
        "slowest relaunch": f"{max(gaps, default=0.0):.1f} s from the end of an attempt to the next",
        "slowest new master": f"{max(masters, default=0.0):.2f} s after the old one was killed",
    }


def _gaps(attempts: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    for before, after in pairwise(attempts):
        if before["ended"]:
            yield (datetime.fromisoformat(after["started"]) - datetime.fromisoformat(before["ended"])).total_seconds()


# --- evidence in a folder ---------------------------------------------------------------------------------------------
def parse_program_run(host: str, line: str) -> ProgramRun:
    """`j7 12 1 start=.. uptime=.. pid=.. beat=.. end=.. uptime=.. code=..`, the last three only of a run that ended."""
    name, job, attempt, *pairs = line.split()
    values = dict(pair.split("=", 1) for pair in pairs)
    return ProgramRun(
        host,
        name,
        int(job),
        int(attempt),
        float(values["start"]),
        float(values["beat"]),
        float(values["end"]) if "end" in values else None,
        int(values["code"]) if "code" in values else None,
    )


def load(folder: Path) -> Evidence:
    """The evidence that chaos.py has stored in this folder."""
    plan = json.loads((folder / "plan.json").read_text())
    queue = json.loads((folder / "queue.json").read_text())
    left = json.loads((folder / "left.json").read_text())
    client_jobs = plan["client_jobs"]
    return Evidence(
        seed=plan["seed"],
        expected={client_job["job"]["name"]: Job(**client_job["job"]) for client_job in client_jobs},
        fenced=frozenset(
            client_job["job"]["name"] for client_job in client_jobs if client_job["on_host_loss"] == "fence"
        ),
        queue=queue,
        logs={job["id"]: _kept_logs(folder / "logs", job["id"]) for job in queue},
        observations=[_observation(each) for each in json.loads((folder / "observations.json").read_text())],
        program_runs=[
            parse_program_run(path.name, line)
            for path in sorted((folder / "ledger").iterdir())
            for line in path.read_text().splitlines()
        ],
        processes=left["processes"],
        runs=left["runs"],
        faults=json.loads((folder / "faults.json").read_text()),
    )


def _kept_logs(folder: Path, job: int) -> tuple[bytes, bytes]:
    return (folder / f"{job}.out").read_bytes(), (folder / f"{job}.err").read_bytes()


def _observation(each: Mapping[str, Any]) -> Observation:
    return Observation(each["label"], each["verb"], each["job"], each["status"], Path(each["stdout"]).read_bytes())


def main() -> int:
    report = check(load(Path(sys.argv[1])))
    sys.stdout.write(report.text + "\n")
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
