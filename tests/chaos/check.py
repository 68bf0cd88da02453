"""The checker of a torture run: from what was left behind to one line of figures. It knows nothing of sshgrid.

It compares four witnesses: the ledgers that the programs wrote on their hosts, the queue as `info --json` shows it, the
bytes and codes that clients saw, and what still lies and lives on the hosts. `python -m tests.chaos.check FOLDER` looks
at a kept run once more.
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
REFUSED = {2, 125, 127}  # sshgrid's own codes, when it cannot
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
class Sighting:
    """What one command of a client saw. `status` None: it did not live to its end."""

    label: str
    verb: str
    job: int | None
    status: int | None
    stdout: bytes = b""


@dataclass(frozen=True)
class Life:
    """A run of the program, as it noted itself. `end` None: it was ended by others, and last alive at `beat`."""

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
    """`expected`: name of a job -> its program; `fenced`: names of jobs that may have one live run only."""

    seed: int
    expected: Mapping[str, Job]
    fenced: frozenset[str]
    queue: Sequence[Mapping[str, Any]]  # the objects of `info --json`
    logs: Mapping[int, tuple[bytes, bytes]]  # job -> kept stdout and stderr
    sightings: Sequence[Sighting] = ()
    lives: Sequence[Life] = ()
    processes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    runs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    troubles: Sequence[Mapping[str, Any]] = ()

    def job_of(self, label: str) -> Job:
        """A job that was sent again has a number behind its name."""
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
    """Look at everything; every contradiction between the witnesses is a finding."""
    accepted = _accepted(evidence) | {str(job["name"]) for job in evidence.queue}
    findings = {
        LOST: [*_forgotten(evidence), *_unfinished(evidence)],
        TWICE: [*_doubled_jobs(evidence), *_doubled_results(evidence), *_doubled_starts(evidence)],
        CODES: [*_wrong_codes(evidence), *_wrong_codes_seen(evidence), *_invented_results(evidence)],
        OUTPUT: [*_wrong_logs(evidence), *_wrong_output_seen(evidence)],
        OVERLAP: list(_overlaps(evidence)),
        PROCESSES: [f"{host}: {process}" for host, left in evidence.processes.items() for process in left],
        RUNS: [f"{host}: {run}" for host, left in evidence.runs.items() for run in left],
    }
    finished = len({job["name"] for job in evidence.queue if job["state"] in FINISHED})
    return Report(len(accepted), finished, findings, _figures(evidence))


# --- lost -------------------------------------------------------------------------------------------------------------
def _accepted(evidence: Evidence) -> set[str]:
    """Labels of jobs that some client was told, or shown, to be accepted."""
    return {
        sighting.label
        for sighting in evidence.sightings
        if sighting.job is not None or sighting.stdout or sighting.status not in {None, *REFUSED}
    }


def _forgotten(evidence: Evidence) -> Iterator[str]:
    known = {job["name"] for job in evidence.queue}
    for label in sorted(_accepted(evidence) - known):
        yield f"{label} was accepted and is not in the queue"


def _unfinished(evidence: Evidence) -> Iterator[str]:
    for job in evidence.queue:
        if job["state"] not in FINISHED or job["exit_code"] is None:
            yield f"{job['name']} (job {job['id']}) is {job['state']}: {job['reason']}"


# --- twice ------------------------------------------------------------------------------------------------------------
def _doubled_jobs(evidence: Evidence) -> Iterator[str]:
    for name, count in Counter(job["name"] for job in evidence.queue).items():
        if count > 1:
            yield f"{name} was sent once and is {count} jobs"


def _doubled_results(evidence: Evidence) -> Iterator[str]:
    for job in evidence.queue:
        results = [attempt["number"] for attempt in job["attempts"] if EXITED.fullmatch(attempt["outcome"])]
        if len(results) > 1:
            yield f"{job['name']}: results of the attempts {results} were taken"
        if results and results[-1] != job["attempts"][-1]["number"]:
            yield f"{job['name']}: attempt {results[-1]} had a result, and another was begun"


def _doubled_starts(evidence: Evidence) -> Iterator[str]:
    for (job, attempt), count in Counter((life.job, life.attempt) for life in evidence.lives).items():
        if count > 1:
            yield f"job {job}: attempt {attempt} was begun {count} times"


# --- codes ------------------------------------------------------------------------------------------------------------
def _wrong_codes(evidence: Evidence) -> Iterator[str]:
    for job in evidence.queue:
        code = evidence.job_of(job["name"]).code
        if job["exit_code"] not in (None, code):
            yield f"{job['name']} (job {job['id']}): {job['exit_code']} in the queue instead of {code}"


def _wrong_codes_seen(evidence: Evidence) -> Iterator[str]:
    for sighting in evidence.sightings:
        if sighting.status is None:
            continue
        code = evidence.job_of(sighting.label).code if sighting.verb in TELLS_CODE else 0
        if sighting.status != code:
            yield f"{sighting.label}: `{sighting.verb}` ended with {sighting.status} instead of {code}"


def _invented_results(evidence: Evidence) -> Iterator[str]:
    """A result that was taken must be the end of a run, noted by that run itself on that host."""
    ends = {(life.job, life.attempt, life.host): life.code for life in evidence.lives if life.end is not None}
    for job in evidence.queue:
        for attempt in job["attempts"]:
            if found := EXITED.fullmatch(attempt["outcome"]):
                code = ends.get((job["id"], attempt["number"], attempt["node"]))
                if code != int(found[1]):
                    run = f"attempt {attempt['number']} on {attempt['node']}"
                    yield f"{job['name']}: {found[1]} was taken of {run}, whose ledger says {code}"


# --- output -----------------------------------------------------------------------------------------------------------
def _wrong_logs(evidence: Evidence) -> Iterator[str]:
    for job in evidence.queue:
        if job["state"] not in FINISHED:
            continue
        expected = evidence.job_of(job["name"])
        for stream, wanted, kept in zip(
            ("stdout", "stderr"),
            (expected.stdout, expected.stderr),
            evidence.logs.get(job["id"], (b"", b"")),
            strict=True,
        ):
            if kept != wanted:
                yield f"{job['name']} (job {job['id']}): kept {stream}: {_difference(kept, wanted)}"


def _wrong_output_seen(evidence: Evidence) -> Iterator[str]:
    """Who stayed to the end saw everything, who was killed saw a beginning of it."""
    for sighting in evidence.sightings:
        if sighting.verb not in SHOWS_OUTPUT:
            continue
        wanted = evidence.job_of(sighting.label).stdout
        seen = _texts(sighting.stdout) if sighting.verb == "json" else sighting.stdout
        if sighting.status is None:
            wanted = wanted[: len(seen)]
        if seen != wanted:
            yield f"{sighting.label}: seen by `{sighting.verb}`: {_difference(seen, wanted)}"


def _texts(lines: bytes) -> bytes:
    """The program's stdout in what `run --json` printed; a killed client's last line may be half."""
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
    by_job: dict[int, list[Life]] = defaultdict(list)
    for life in evidence.lives:
        if life.name in evidence.fenced:
            by_job[life.job].append(life)
    for job, lives in by_job.items():
        ordered = sorted(lives, key=lambda life: life.start)
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
    masters = [trouble["seconds"] for trouble in evidence.troubles if trouble["kind"] == "kill-master"]
    counts = Counter(str(trouble["kind"]) for trouble in evidence.troubles)
    killed = sum(sighting.status is None for sighting in evidence.sightings)
    ends = Counter(attempt["outcome"].partition(":")[0] for attempt in attempts)
    return {
        "seed": str(evidence.seed),
        "faults": f"{counts.total()}: " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()),
        "clients": f"{len(evidence.sightings)} commands, {killed} of them killed",
        "attempts": f"{len(attempts)} for {len(evidence.queue)} jobs, {len(evidence.lives)} runs in the ledgers; "
        + ", ".join(f"{count} {end or 'open'}" for end, count in ends.most_common()),
        "slowest relaunch": f"{max(gaps, default=0.0):.1f} s from the end of an attempt to the next",
        "slowest new master": f"{max(masters, default=0.0):.2f} s after the old one was killed",
    }


def _gaps(attempts: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    for before, after in pairwise(attempts):
        if before["ended"]:
            yield (datetime.fromisoformat(after["started"]) - datetime.fromisoformat(before["ended"])).total_seconds()


# --- evidence in a folder ---------------------------------------------------------------------------------------------
def parse_life(host: str, line: str) -> Life:
    """`j7 12 1 start=.. uptime=.. pid=.. beat=.. end=.. uptime=.. code=..`, the last three only of a run that ended."""
    name, job, attempt, *pairs = line.split()
    values = dict(pair.split("=", 1) for pair in pairs)
    return Life(
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
    """What `chaos.py` has kept."""
    plan = json.loads((folder / "plan.json").read_text())
    queue = json.loads((folder / "queue.json").read_text())
    left = json.loads((folder / "left.json").read_text())
    errands = plan["errands"]
    return Evidence(
        seed=plan["seed"],
        expected={errand["job"]["name"]: Job(**errand["job"]) for errand in errands},
        fenced=frozenset(errand["job"]["name"] for errand in errands if errand["on_host_loss"] == "fence"),
        queue=queue,
        logs={job["id"]: _kept_logs(folder / "logs", job["id"]) for job in queue},
        sightings=[_sighting(each) for each in json.loads((folder / "sightings.json").read_text())],
        lives=[
            parse_life(path.name, line)
            for path in sorted((folder / "ledger").iterdir())
            for line in path.read_text().splitlines()
        ],
        processes=left["processes"],
        runs=left["runs"],
        troubles=json.loads((folder / "troubles.json").read_text()),
    )


def _kept_logs(folder: Path, job: int) -> tuple[bytes, bytes]:
    return (folder / f"{job}.out").read_bytes(), (folder / f"{job}.err").read_bytes()


def _sighting(each: Mapping[str, Any]) -> Sighting:
    return Sighting(each["label"], each["verb"], each["job"], each["status"], Path(each["stdout"]).read_bytes())


def main() -> int:
    report = check(load(Path(sys.argv[1])))
    sys.stdout.write(report.text + "\n")
    return 0 if report.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
