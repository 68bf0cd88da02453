"""The plan of a chaos run, drawn from its seed: the jobs, how clients submit and follow them, and the faults.

At least one host has no fault at any time, because an attached client gives up when no host is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from tests.chaos.program import Job

CODES = (0, 0, 0, 0, 0, 3, 7, 42, 255)
SHARE_OF_SENDING = 0.75  # of the time with faults; in the rest the submitted jobs can end
# How a client runs a job: `run`, `run --json`; `run -d` and then `wait`, `attach` or `logs -f`.
WAYS = ("run", "run", "run", "json", "wait", "attach", "logs")
HOST_LOSS = ("relaunch", "relaunch", "relaunch", "relaunch", "fence", "fence", "wait")

# kind -> (weight, shortest and longest duration in seconds)
HOST_FAULTS: dict[str, tuple[int, float, float]] = {
    "cut": (4, 1.0, 8.0),
    "long-cut": (2, 14.0, 25.0),
    "reset-sessions": (4, 0.0, 0.0),
    "refuse": (1, 1.0, 6.0),  # every packet is answered with a TCP reset
    "lose": (1, 3.0, 8.0),  # a third of the packets
    "stop-server": (1, 1.0, 6.0),
    "power": (4, 0.5, 8.0),
    "long-power": (1, 14.0, 25.0),
    "full-disk": (2, 2.0, 8.0),
}
GRID_FAULTS: dict[str, int] = {"kill-master": 5, "kill-client": 6}
SECONDS_BETWEEN_FAULTS = 1.8
REST_SECONDS = 3.0  # between two faults of a host


@dataclass(frozen=True)
class ClientJob:
    """A job, and how a client runs it."""

    job: Job
    client: int
    at: float  # seconds after the start of the run
    way: str
    on_host_loss: str


@dataclass(frozen=True)
class Fault:
    at: float
    kind: str
    host: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Plan:
    seed: int
    client_jobs: tuple[ClientJob, ...]
    faults: tuple[Fault, ...]
    seconds: float


def draw(
    seed: int,
    jobs: int,
    hosts: Sequence[str],
    clients: int,
    seconds: float,
    kinds: Sequence[str] = (),
    every: float = SECONDS_BETWEEN_FAULTS,
) -> Plan:
    """Draw a plan. `kinds` limits the kinds of faults; `every` is the mean time between two faults in seconds."""
    # Two generators, so that other faults leave the jobs unchanged.
    client_jobs = _client_jobs(Random(f"{seed} jobs"), jobs, clients, seconds * SHARE_OF_SENDING)
    faults = _faults(Random(f"{seed} faults"), hosts, seconds, kinds, every)
    return Plan(seed, client_jobs, faults, seconds)


def _client_jobs(rng: Random, count: int, clients: int, seconds: float) -> tuple[ClientJob, ...]:
    times = sorted(rng.uniform(0.0, seconds) for _ in range(count))
    return tuple(
        ClientJob(_job(rng, f"j{number}"), rng.randrange(clients), at, rng.choice(WAYS), rng.choice(HOST_LOSS))
        for number, at in enumerate(times, 1)
    )


def _job(rng: Random, name: str) -> Job:
    seconds = round(min(20.0, 0.1 * 200.0 ** rng.random()), 2)  # 0.1 to 20 s, many short ones
    lines = rng.choice((1, 7, 30, 100, 400))
    width = rng.choice((0, 40, 40, 500, 4000))
    return Job(name, seconds, lines, width, rng.choice(CODES), rng.random() < 0.1)


def _faults(rng: Random, hosts: Sequence[str], seconds: float, kinds: Sequence[str], every: float) -> tuple[Fault, ...]:
    weights = {kind: row[0] for kind, row in HOST_FAULTS.items()} | GRID_FAULTS
    chosen = [kind for kind in weights if not kinds or kind in kinds]
    busy_until = dict.fromkeys(hosts, 0.0)
    found = []
    at = 2.0
    while chosen and at < seconds:
        kind = rng.choices(chosen, [weights[kind] for kind in chosen])[0]
        fault = Fault(round(at, 2), kind) if kind in GRID_FAULTS else _host_fault(rng, kind, at, busy_until)
        if fault is not None:
            found.append(fault)
        at += rng.expovariate(1 / every)
    return tuple(found)


def _host_fault(rng: Random, kind: str, at: float, busy_until: dict[str, float]) -> Fault | None:
    """A fault of a free host; None when fewer than two hosts are free."""
    free = [host for host, until in busy_until.items() if until <= at]
    if len(free) < 2:
        return None
    host = rng.choice(free)
    _, shortest, longest = HOST_FAULTS[kind]
    seconds = round(rng.uniform(shortest, longest), 2)
    busy_until[host] = at + seconds + REST_SECONDS
    return Fault(round(at, 2), kind, host, seconds)
